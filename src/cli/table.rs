//! Tables and numbers for people.

use std::io::IsTerminal;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use super::text::one_line;

/// Rows under a header, as wide as the terminal at most. Elsewhere there are no lines in between and a row is one line
/// however long it is, for `grep` and its like.
pub(super) fn render(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    drawn(header, rows, std::io::stdout().is_terminal())
}

fn drawn(header: &[&str], rows: impl Iterator<Item = Vec<String>>, terminal: bool) -> String {
    let mut table = Table::new();
    let (style, arrangement) = match terminal {
        true => (presets::UTF8_HORIZONTAL_ONLY, ContentArrangement::Dynamic),
        false => (presets::NOTHING, ContentArrangement::Disabled),
    };
    table.load_style(style).set_content_arrangement(arrangement);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| one_line(cell)));
    }
    format!("{}\n", table.trim_fmt())
}

/// A JSON value for people.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `1.2 MiB`, or `-` for what is unknown.
pub(super) fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), human_bytes)
}

/// `1.2 MiB`.
pub(super) fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{amount:.1} {}", units[unit]) }
}

/// `34 ms`, `90.5 s`, `3 min`.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_drawn_on_a_terminal_alone() {
        let rows = || {
            [["a", "1"], ["b", &"long ".repeat(100)]].map(|row| row.map(str::to_owned).to_vec()).into_iter()
        };
        let piped = drawn(&["name", "value"], rows(), false);
        assert!(piped.is_ascii() && piped.lines().count() == 3, "{piped}");
        assert!(!drawn(&["name", "value"], rows(), true).is_ascii());
    }

    #[test]
    fn a_cell_neither_ends_its_line_nor_commands_the_terminal() {
        let shown = render(&["name"], std::iter::once(vec!["a\nb\u{1b}]0;title\u{7}".to_owned()]));
        assert!(shown.contains("a\\nb\\u{1b}]0;title\\u{7}"), "{shown}");
    }

    #[test]
    fn sizes_and_ages_are_readable() {
        assert_eq!(human_bytes(900), "900 B");
        assert_eq!(human_bytes(1_258_291), "1.2 MiB");
        assert_eq!(seconds(0.034), "34 ms");
        assert_eq!(seconds(90_000.0), "25.0 h");
        assert_eq!(bytes(&Value::Null), "-");
    }
}
