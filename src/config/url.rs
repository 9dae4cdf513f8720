//! Options of libpq that the SQL client does not know, taken out of a connection string before it reads the rest.
//!
//! Invariant: what is left means the same as before, and what is taken means what libpq takes it for (documentation of
//! libpq, "Connection Strings").

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

/// A connection string without the options that were taken from it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub rest: String,
    /// Values by name; the last one counts, an empty one counts as absent.
    pub options: BTreeMap<&'static str, String>,
}

/// Takes the options called `names` out of a URL or a `key=value` string. A string of neither form stays as it is.
pub(super) fn take(text: &str, names: &[&'static str]) -> Taken {
    let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
    if is_url { of_url(text, names) } else { of_pairs(text, names) }
}

fn of_url(text: &str, names: &[&'static str]) -> Taken {
    let mut options = BTreeMap::new();
    // A password may hold a question mark; it ends before the first at sign.
    let host = text.find('@').unwrap_or(0);
    let Some(mark) = text[host..].find('?').map(|at| host + at) else {
        return Taken { rest: text.to_owned(), options };
    };
    let mut rest = Vec::new();
    for pair in text[mark + 1..].split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match names.iter().find(|name| **name == key) {
            Some(name) => set(&mut options, name, percent_decode_str(value).decode_utf8_lossy().into_owned()),
            None => rest.push(pair),
        }
    }
    let rest = match rest.as_slice() {
        [] => text[..mark].to_owned(),
        rest => format!("{}?{}", &text[..mark], rest.join("&")),
    };
    Taken { rest, options }
}

/// `key = value` and `key = 'value'`, with a backslash before the next character as it is.
fn of_pairs(text: &str, names: &[&'static str]) -> Taken {
    let mut options = BTreeMap::new();
    let mut rest = String::new();
    let mut left = text;
    while let Some(equals) = left.find('=') {
        let Some((value, length)) = value(&left[equals + 1..]) else { break };
        let (pair, next) = left.split_at(equals + 1 + length);
        match names.iter().find(|name| **name == left[..equals].trim()) {
            Some(name) => set(&mut options, name, value),
            None => rest.push_str(pair),
        }
        left = next;
    }
    rest.push_str(left);
    Taken { rest, options }
}

/// The value at the start of `text` and how many bytes it takes; `None` when its quote is never closed.
fn value(text: &str) -> Option<(String, usize)> {
    let start = text.len() - text.trim_start().len();
    let quoted = text[start..].starts_with('\'');
    let first = start + usize::from(quoted);
    let mut value = String::new();
    let mut characters = text[first..].char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Some((value, first + at + 1)),
            other if !quoted && other.is_whitespace() => return Some((value, first + at)),
            other => value.push(other),
        }
    }
    (!quoted).then_some((value, text.len()))
}

fn set(options: &mut BTreeMap<&'static str, String>, name: &'static str, value: String) {
    match value.is_empty() {
        true => options.remove(name),
        false => options.insert(name, value),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str] = &["sslmode", "sslrootcert"];

    fn took(text: &str) -> (String, Vec<(&'static str, String)>) {
        let taken = take(text, NAMES);
        (taken.rest, taken.options.into_iter().collect())
    }

    #[test]
    fn options_are_taken_out_of_a_url_and_the_rest_stays() {
        let text = "postgresql://u:p?w@h:1/d?sslmode=verify-full&connect_timeout=3&sslrootcert=%2Fa%20b.pem";
        let (rest, options) = took(text);
        assert_eq!(rest, "postgresql://u:p?w@h:1/d?connect_timeout=3");
        assert_eq!(options, [("sslmode", "verify-full".to_owned()), ("sslrootcert", "/a b.pem".to_owned())]);
        assert_eq!(took("postgres://h/d?sslmode=require").0, "postgres://h/d");
        assert_eq!(took("postgres://h/d").0, "postgres://h/d");
        // The last one counts, an empty one is none.
        assert_eq!(took("postgres://h/d?sslmode=a&sslmode=b").1, [("sslmode", "b".to_owned())]);
        assert!(took("postgres://h/d?sslmode=a&sslmode=").1.is_empty());
    }

    #[test]
    fn options_are_taken_out_of_pairs_and_the_rest_stays() {
        let (rest, options) =
            took(r"host=h  sslmode = verify-ca password='a sslmode=disable \' b' sslrootcert='/a b.pem'");
        assert_eq!(rest, r"host=h password='a sslmode=disable \' b'");
        assert_eq!(options, [("sslmode", "verify-ca".to_owned()), ("sslrootcert", "/a b.pem".to_owned())]);
        assert_eq!(took("host='open sslmode=disable").0, "host='open sslmode=disable");
        assert_eq!(took("nothing").0, "nothing");
    }
}
