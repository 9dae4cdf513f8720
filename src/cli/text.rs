//! Text on a terminal that holds what others wrote: names, messages, queries.
//!
//! Invariant: a control character in it never reaches the terminal, and where a line is expected never ends it.

use std::borrow::Cow;

/// The text on one line, control characters as their escapes.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, char::is_control)
}

/// The text with its lines, all other control characters as their escapes.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.is_control() && c != '\n')
}

fn escaped(text: &str, bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&bad) {
        return Cow::Borrowed(text);
    }
    let plain = |c: char| if bad(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(plain).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_name_holds_stays_on_its_line() {
        assert_eq!(one_line("a\nb\u{1b}[31m\ttables"), "a\\nb\\u{1b}[31m\\ttables");
        assert_eq!(one_line("Müller's table"), "Müller's table");
        assert_eq!(printable("a\nb\u{1b}[31m\u{9b}2J\r"), "a\nb\\u{1b}[31m\\u{9b}2J\\r");
    }
}
