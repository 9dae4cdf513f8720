//! Words of the server without values of rows.
//!
//! Invariant: a message is shown only where its SQLSTATE belongs to messages that name objects, settings and limits. All
//! others (a violated constraint, a value that does not fit, whatever a user's function raises) may quote what is stored
//! in a row; of them the SQLSTATE and its meaning are shown, and the words stay in the log and in SQL for the owner.

/// SQLSTATEs, or their first two characters, whose messages name objects and limits but never values.
const HARMLESS: &[&str] = &[
    "08", "0A000", "25006", "25P03", "28", "3D000", "3F000", "40001", "40P01", "42501", "42703", "42704",
    "42809", "42883", "42P01", "42P07", "53", "54", "55", "57", "58",
];

/// What SQLSTATEs and classes mean, in the words of PostgreSQL's appendix A.
const MEANINGS: &[(&str, &str)] = &[
    ("21000", "more than one row from a subquery used as an expression"),
    ("22001", "a text that is too long for its type"),
    ("22003", "a number that is out of range"),
    ("22008", "a date or time that is out of range"),
    ("22012", "division by zero"),
    ("22023", "an argument that a function does not take"),
    ("22P02", "a text that is no value of its type"),
    ("23502", "a NULL where a constraint forbids it"),
    ("23503", "a foreign key was violated"),
    ("23505", "a unique constraint was violated"),
    ("23514", "a check constraint was violated"),
    ("22", "a value that can't be processed"),
    ("23", "a constraint was violated"),
    ("P0", "an error raised by a function or trigger"),
    ("42", "an object or a right is missing"),
    ("XX", "an internal error"),
];

fn harmless(sqlstate: &str) -> bool {
    HARMLESS.iter().any(|known| sqlstate.starts_with(known))
}

/// A message that may be shown to anybody who may see the pages.
pub fn message(sqlstate: Option<&str>, message: Option<&str>) -> Option<String> {
    let message = message?;
    match sqlstate {
        Some(state) if harmless(state) => Some(message.to_owned()),
        Some(state) => Some(format!("{} (the words may quote values: see the log)", meaning(state))),
        // Our own mark on refreshes that a crash cut off.
        None if message.starts_with("interrupted;") => Some(message.to_owned()),
        None => Some("an error without a SQLSTATE (the words are in the log)".to_owned()),
    }
}

fn meaning(sqlstate: &str) -> &'static str {
    let known = MEANINGS.iter().find(|(state, _)| sqlstate.starts_with(state));
    known.map_or("an error", |(_, meaning)| meaning)
}

/// A sentence of ours that may end with a server's message, as errors are displayed: `... (SQLSTATE xxxxx)`.
pub fn sentence(text: &str) -> String {
    let state = text.rsplit_once("(SQLSTATE ").and_then(|(_, rest)| rest.get(..5));
    match state {
        Some(state) if !harmless(state) => {
            format!("{} (SQLSTATE {state}; the words may quote values: see the log)", meaning(state))
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_without_values_are_shown() {
        let shown = message(Some("42P01"), Some("relation \"t\" does not exist"));
        assert_eq!(shown.as_deref(), Some("relation \"t\" does not exist"));
        for state in ["22P02", "23505", "P0001", "XX000", "99999"] {
            let shown = message(Some(state), Some("no value: \"secret\"")).unwrap();
            assert!(!shown.contains("secret"), "{state}: {shown}");
        }
        assert!(!message(None, Some("secret")).unwrap().contains("secret"));
        assert_eq!(message(Some("22012"), None), None);
    }

    #[test]
    fn a_sentence_loses_the_words_of_a_server_that_may_quote_values() {
        assert_eq!(sentence("the sidecar started"), "the sidecar started");
        assert_eq!(sentence("the server is away (SQLSTATE 57P01)"), "the server is away (SQLSTATE 57P01)");
        let shown = sentence("apply: bad value \"secret\" (SQLSTATE 22P02)");
        assert!(shown.starts_with("a text that is no value") && !shown.contains("secret"), "{shown}");
    }
}
