// Keeps a page up to date and lets charts be read point by point. Everything here is an extra: without it the page shows
// the same numbers and reads itself again every ten seconds.
"use strict";

// ---- Charts ---------------------------------------------------------------------------------------------------------

const binary = (value, units) => {
  let unit = 0;
  while (Math.abs(value) >= 1023.95 && unit + 1 < units.length) { value /= 1024; unit += 1; }
  return `${unit === 0 || Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
};
const sizes = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const formats = {
  bytes: (v) => binary(v, sizes),
  bytes_per_second: (v) => `${binary(v, sizes)}/s`,
  seconds: (v) => (v < 1 ? `${(v * 1000).toFixed(0)} ms` : v < 10 ? `${v.toFixed(1)} s` : v < 120 ? `${v.toFixed(0)} s`
    : v < 7200 ? `${(v / 60).toFixed(0)} min` : `${(v / 3600).toFixed(1)} h`),
  rows_per_second: (v) => `${v >= 1000 ? `${(v / 1000).toFixed(1)} k` : v >= 10 || v === 0 ? v.toFixed(0) : v.toFixed(1)}/s`,
};

// Shows the point at `index` of a chart; null shows the newest again.
function point(chart, index) {
  const output = chart.querySelector(".newest");
  const cursor = chart.querySelector(".cursor");
  if (chart.newest === undefined) chart.newest = output.textContent;
  if (index === null) {
    output.textContent = chart.newest;
    cursor.hidden = true;
    chart.at = undefined;
    return;
  }
  const points = JSON.parse(chart.dataset.points);
  index = Math.max(0, Math.min(points.length - 1, index));
  const [time, value] = points[index];
  const [from, to] = [points[0][0], Math.max(points[points.length - 1][0], points[0][0] + 60)];
  const shown = value === null ? "unknown" : formats[chart.dataset.unit](value);
  output.textContent = `${shown} at ${new Date(time * 1000).toISOString().slice(11, 19)}`;
  cursor.hidden = false;
  cursor.style.left = `${((time - from) / (to - from)) * 100}%`;
  chart.at = index;
}

function nearest(chart, event) {
  const box = chart.querySelector(".canvas").getBoundingClientRect();
  const points = JSON.parse(chart.dataset.points);
  const [from, to] = [points[0][0], Math.max(points[points.length - 1][0], points[0][0] + 60)];
  const time = from + ((event.clientX - box.left) / box.width) * (to - from);
  let best = 0;
  points.forEach(([at], n) => { if (Math.abs(at - time) < Math.abs(points[best][0] - time)) best = n; });
  return best;
}

const chartOf = (event) => event.target instanceof Element && event.target.closest(".chart[data-points]");
document.addEventListener("pointermove", (event) => {
  const chart = chartOf(event);
  document.querySelectorAll(".chart[data-points]").forEach((other) => {
    if (other !== chart && other.at !== undefined && other !== document.activeElement) point(other, null);
  });
  if (chart) point(chart, nearest(chart, event));
});
document.addEventListener("keydown", (event) => {
  const chart = chartOf(event);
  if (!chart) return;
  const last = JSON.parse(chart.dataset.points).length - 1;
  const at = chart.at ?? last + 1;
  const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last, Escape: null }[event.key];
  if (next === undefined) return;
  point(chart, next);
  event.preventDefault();
});
document.addEventListener("focusout", (event) => { const chart = chartOf(event); if (chart) point(chart, null); });

// ---- Live pages -----------------------------------------------------------------------------------------------------

// Children are told apart by what they are and not by their place alone: what comes above a chart must not take its focus.
const alike = (a, b) => a.nodeName === b.nodeName
  && (a.nodeType !== Node.ELEMENT_NODE || (a.id === b.id && a.classList[0] === b.classList[0]));

// Makes `old` look like `fresh`, keeping every element that is still there: focus, selection and scroll stay.
function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) { old.replaceWith(document.importNode(fresh, true)); return; }
  if (old.nodeType === Node.TEXT_NODE) { if (old.data !== fresh.data) old.data = fresh.data; return; }
  if (old.nodeType !== Node.ELEMENT_NODE) return;
  // What the reader did: opened or closed, looked at a point, typed.
  const kept = (name) => (name === "open" && old.nodeName === "DETAILS")
    || ((name === "style" || name === "hidden") && old.className === "cursor") || (name === "value" && old === document.activeElement);
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && !kept(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value && !kept(name)) old.setAttribute(name, value);
  if (old.matches("output.newest")) {
    const chart = old.closest(".chart");
    chart.newest = fresh.textContent;
    if (chart.at !== undefined) { point(chart, chart.at); return; }
  }
  let at = old.firstChild;
  for (const node of [...fresh.childNodes]) {
    let same = at;
    while (same && node.nodeType === Node.ELEMENT_NODE && !alike(same, node)) same = same.nextSibling;
    if (!same || !alike(same, node)) { old.insertBefore(document.importNode(node, true), at); continue; }
    while (at !== same) { const gone = at; at = at.nextSibling; gone.remove(); }
    at = same.nextSibling;
    morph(same, node);
  }
  while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
}

let reading = false;
let again = false;
async function refresh() {
  if (reading) { again = true; return; }
  reading = true;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
    // A page of ours also when it says that something is not there (any more): only what is no page means that nobody answers.
    if (!(answer.headers.get("content-type") || "").startsWith("text/html")) throw new Error(String(answer.status));
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = fresh.title;
    for (const part of ["header.top", "main", "footer p"]) morph(document.querySelector(part), fresh.querySelector(part));
    const icon = fresh.querySelector("link[rel=icon]").getAttribute("href");
    const shown = document.querySelector("link[rel=icon]");
    if (shown.getAttribute("href") !== icon) shown.setAttribute("href", icon);
    document.body.dataset.severity = fresh.body.dataset.severity;
    say("live");
  } catch (error) {
    say("away");
  }
  reading = false;
  if (again) { again = false; refresh(); }
}

function say(state) {
  const words = { live: " · live", away: " · NOT live: the sidecar does not answer" }[state];
  document.body.dataset.connection = state;
  const place = document.getElementById("live");
  if (place) place.textContent = words;
}

if ("live" in document.body.dataset && "EventSource" in window) {
  let first = true;
  const events = new EventSource("/api/v1/events");
  // The first event tells only that the line stands: the page was made a moment ago.
  events.addEventListener("look", () => { if (first) { first = false; say("live"); } else if (!document.hidden) refresh(); });
  events.addEventListener("error", () => say("away"));
  events.addEventListener("open", () => { if (!first) refresh(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  addEventListener("pagehide", () => events.close());
}
