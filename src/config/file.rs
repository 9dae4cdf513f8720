//! The configuration file: flat TOML whose keys are those of the flags, with the line of each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::options::CHOICES;
use super::{Origin, Sourced};
use crate::error::Result;

/// Values by key, as text.
pub(super) type Values = BTreeMap<String, Sourced<String>>;

/// Reads the file; it may hold the keys of `CHOICES`.
pub(super) fn read(path: &Sourced<PathBuf>) -> Result<Values> {
    let shown = path.value.display();
    let text = std::fs::read_to_string(&path.value).map_err(|e| {
        path.refuse(format!("can't read {shown}: {e}")).with_hint("name a file that this user can read")
    })?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| line_of(&text, span.start));
        // The parser's own display quotes the line, which may hold a password.
        path.refuse(format!("{shown}:{line} is no valid TOML: {}", e.message()))
    })?;
    let mut values = Values::new();
    for (key, value) in table {
        let origin =
            Origin::File { path: path.value.clone(), line: line_of_key(&text, &key), key: key.clone() };
        let value = match value {
            toml::Value::String(text) => Ok(text),
            toml::Value::Integer(number) => Ok(number.to_string()),
            toml::Value::Boolean(yes) => Ok(yes.to_string()),
            other => Err(other.type_str()),
        };
        let sourced = Sourced::new(String::new(), origin.clone());
        if !CHOICES.iter().any(|choice| choice.key == key) {
            let keys: Vec<&str> = CHOICES.iter().map(|choice| choice.key).collect();
            return Err(sourced.refuse("unknown key").with_hint(format!("the keys are {}", keys.join(", "))));
        }
        match value {
            Ok(text) => values.insert(key, Sourced::new(text, origin)),
            Err(kind) => {
                return Err(sourced.refuse(format!("{kind} where text or a number is wanted")));
            }
        };
    }
    Ok(values)
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}

/// The line that begins with the key; keys are flat, so the first such line is it.
fn line_of_key(text: &str, key: &str) -> usize {
    let begins = |line: &str| {
        let line = line.trim_start().trim_start_matches(['"', '\'', '[']);
        line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', '"', '\'', '.', ']']))
    };
    text.lines().position(begins).map_or(1, |index| index + 1)
}
