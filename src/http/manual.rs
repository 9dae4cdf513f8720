//! Pages of the manual that advice links to, from the files of `docs/`, so that they match the program and need no network.

use std::fmt::Write;

use pulldown_cmark::{CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// Names and texts.
const PAGES: &[(&str, &str)] = &[
    ("runbook", include_str!("../../docs/runbook.md")),
    ("dashboard", include_str!("../../docs/dashboard.md")),
    ("monitoring", include_str!("../../docs/monitoring.md")),
    ("capture", include_str!("../../docs/capture.md")),
    ("high-availability", include_str!("../../docs/high-availability.md")),
    ("backup-and-restore", include_str!("../../docs/backup-and-restore.md")),
    ("capacity-planning", include_str!("../../docs/capacity-planning.md")),
    ("health", include_str!("../../docs/health.md")),
    ("sql", include_str!("../../docs/sql.md")),
];

/// A page of the manual.
pub(super) struct Page {
    pub title: String,
    pub html: String,
}

/// The anchor of a heading, as code hosts make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// A link of a page: to another page that is here, to a heading, or elsewhere (`None`: nowhere we can go).
fn target(link: &str) -> Option<String> {
    if link.starts_with('#') || link.starts_with("https://") {
        return Some(link.to_owned());
    }
    let (file, heading) = link.split_once('#').map_or((link, String::new()), |(f, h)| (f, format!("#{h}")));
    let name = file.strip_suffix(".md")?;
    PAGES.iter().any(|(known, _)| *known == name).then(|| format!("/manual/{name}{heading}"))
}

/// Renders a page.
pub(super) fn page(name: &str) -> Option<Page> {
    let (_, text) = PAGES.iter().find(|(known, _)| *known == name)?;
    let events: Vec<Event<'_>> = Parser::new_ext(text, Options::ENABLE_TABLES).collect();
    let mut title = name.to_owned();
    let mut shown = Vec::with_capacity(events.len());
    // Links that lead nowhere lose their markup; they never nest.
    let mut dead = false;
    for (n, event) in events.iter().enumerate() {
        match event {
            Event::Start(Tag::Heading { level, .. }) => {
                let words: String = events[n + 1..]
                    .iter()
                    .take_while(|e| !matches!(e, Event::End(TagEnd::Heading(_))))
                    .filter_map(|e| match e {
                        Event::Text(text) | Event::Code(text) => Some(text.to_string()),
                        _ => None,
                    })
                    .collect();
                let id = Some(CowStr::from(anchor(&words)));
                if *level == HeadingLevel::H1 {
                    title = words;
                }
                shown.push(Event::Start(Tag::Heading { level: *level, id, classes: vec![], attrs: vec![] }));
            }
            Event::Start(Tag::Link { dest_url, link_type, .. }) => match target(dest_url) {
                Some(url) => shown.push(Event::Start(Tag::Link {
                    link_type: *link_type,
                    dest_url: url.into(),
                    title: "".into(),
                    id: "".into(),
                })),
                None => dead = true,
            },
            Event::End(TagEnd::Link) if dead => dead = false,
            Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image) => {}
            // Column alignments would become style attributes, which the policy of our pages forbids.
            Event::Start(Tag::Table(columns)) => shown.push(Event::Start(Tag::Table(
                columns.iter().map(|_| pulldown_cmark::Alignment::None).collect(),
            ))),
            // Comments are for who reads the file; any other markup is shown as it is written.
            Event::Html(text) | Event::InlineHtml(text) if text.trim_start().starts_with("<!--") => {}
            Event::Html(text) | Event::InlineHtml(text) => shown.push(Event::Text(text.clone())),
            other => shown.push(other.clone()),
        }
    }
    let mut html = String::new();
    pulldown_cmark::html::push_html(&mut html, shown.into_iter());
    // What is wider than a phone scrolls by itself, also with the keyboard.
    let html = html
        .replace(
            "<table>",
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"table\"><table>",
        )
        .replace("</table>", "</table></div>")
        .replace("<pre>", "<pre tabindex=\"0\">");
    Some(Page { title, html })
}

/// The pages that there are, as a list.
pub(super) fn contents() -> String {
    let mut html = String::new();
    for (name, text) in PAGES {
        let title = text.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or(name);
        let _ = write!(html, "<li><a href=\"/manual/{name}\">{title}</a></li>");
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_are_anchors_and_links_lead_somewhere_or_are_none() {
        let page = page("runbook").unwrap();
        assert!(page.html.contains("<h2 id=\"slot_lag\">"), "{}", page.html);
        assert!(page.html.contains("href=\"/manual/high-availability\""));
        assert!(!page.html.contains(".md\""), "a link to a file that is not served");
        assert!(super::page("../Cargo").is_none());
    }

    #[test]
    fn no_page_needs_an_inline_style() {
        for (name, _) in PAGES {
            let html = page(name).unwrap().html;
            assert!(!html.contains("style=") && !html.contains("<script"), "{name}");
        }
        assert!(contents().contains("/manual/runbook"));
    }
}
