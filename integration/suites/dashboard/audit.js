// What is wrong with a page for those who do not see it, do not see it well, or have no mouse: a list of sentences.
const wrong = [];
const say = (what, element) => wrong.push(`${what}: ${element.outerHTML.replace(/\s+/g, " ").slice(0, 160)}`);
const all = (selector) => [...document.querySelectorAll(selector)];
const one = (selector) => { if (all(selector).length !== 1) wrong.push(`${all(selector).length} of ${selector}`); };
["main", "header.top", "footer", "nav.main", "h1", "head > title"].forEach(one);
if (!document.documentElement.lang) wrong.push("no language");
const shown = (element) => {
  const style = getComputedStyle(element);
  return element.getClientRects().length > 0 && style.visibility !== "hidden";
};
const name = (element) => (element.getAttribute("aria-label") || (element.labels && element.labels[0] && element.labels[0].textContent) || element.textContent || element.title || "").trim();
all("nav, [role=region], [role=img], form[class=theme]").forEach((e) => { if (!e.getAttribute("aria-label")) say("no label", e); });
all("a, button, input:not([type=hidden]), select").forEach((e) => { if (!name(e)) say("no name", e); });
all("svg").forEach((e) => { if (e.getAttribute("aria-hidden") !== "true" && !e.getAttribute("aria-label")) say("a drawing without words", e); });
all("th").forEach((e) => { if (!e.scope && !e.closest(".manual")) say("a heading of nothing", e); });
all("[aria-labelledby]").forEach((e) => { if (!document.getElementById(e.getAttribute("aria-labelledby"))) say("a label that is not there", e); });
const ids = all("[id]").map((e) => e.id);
ids.forEach((id, n) => { if (ids.indexOf(id) !== n) wrong.push(`twice: #${id}`); });
let level = 1;
all("h1, h2, h3, h4").forEach((e) => { const now = Number(e.nodeName[1]); if (now > level + 1) say("a heading skips a level", e); level = now; });
all(".scroll, pre").forEach((e) => { if (e.scrollWidth > e.clientWidth && e.tabIndex !== 0) say("scrolls only with a mouse", e); });

// Contrast of every visible text against what is behind it.
const parse = (text) => {
  const [r, g, b, a = 1] = (text.match(/[\d.]+/g) || []).map(Number);
  return text === "none" || text === "transparent" ? [0, 0, 0, 0] : [r, g, b, a];
};
const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
const light = (colour) => {
  const [r, g, b] = colour.slice(0, 3).map((c) => { const s = c / 255; return s <= 0.03928 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const behind = (element) => {
  const layers = [];
  for (let e = element; e; e = e.parentElement) {
    const rect = e.matches("g.node") && e.querySelector("rect");
    layers.push(parse(getComputedStyle(rect || e)[rect ? "fill" : "backgroundColor"]));
  }
  return layers.reduceRight((back, layer) => over(layer, back), [255, 255, 255, 1]);
};
let texts = 0;
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const element = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || !shown(element) || element.closest("title, script, noscript, .hidden, .skip")) continue;
  const style = getComputedStyle(element);
  const back = behind(element);
  const colour = over(parse(element instanceof SVGTextElement ? style.fill : style.color), back);
  const size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  texts += 1;
  const found = ratio(colour, back);
  if (found < (large ? 3 : 4.5)) say(`contrast ${found.toFixed(2)} of "${walk.currentNode.data.trim().slice(0, 30)}"`, element);
}
if (texts < 20) wrong.push(`only ${texts} texts were looked at`);
const width = document.scrollingElement.scrollWidth;
if (width > innerWidth) wrong.push(`the page is ${width} wide, the window ${innerWidth}: ${all("main *").filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre")).slice(0, 3).map((e) => e.outerHTML.slice(0, 80)).join(" | ")}`);
return wrong;
