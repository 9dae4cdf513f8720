//! What pages and the API show: one struct per subject, the same for HTML and JSON.
//!
//! Invariant: nothing here holds a value of a user's row; errors of the server are redacted, queries can be switched off.

mod graph;
mod pipeline;
mod recovery;
#[cfg(test)]
mod seen_tests;
mod slot;
mod table;

pub use graph::Graph;
pub use pipeline::{Overview, worst};
pub use recovery::RecoveryLog;
pub use table::{Order, TablePage, Tables};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::observe::{Key, Seen};

/// What stays as it is in an address.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Text as part of an address.
pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, KEPT).to_string()
}

/// Database and pipeline of something that was seen.
pub fn key(seen: &Seen) -> Key {
    (seen.database.clone(), seen.pipeline.clone())
}

/// The address of a stream table's page; `several` pipelines are told apart.
pub fn table_url(key: &Key, name: &str, several: bool) -> String {
    let place = match several {
        true => format!("?database={}&pipeline={}", encoded(&key.0), encoded(&key.1)),
        false => String::new(),
    };
    format!("/tables/{}{place}", encoded(name))
}

/// A name that fits into a narrow place.
pub fn short(name: &str, most: usize) -> String {
    match name.char_indices().nth(most) {
        None => name.to_owned(),
        Some(_) => {
            let kept: String = name.chars().take(most - 1).collect();
            format!("{kept}…")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_form_become_addresses() {
        let key = ("a b".to_owned(), "main".to_owned());
        assert_eq!(table_url(&key, "s.\"A/ü\"", false), "/tables/s.%22A%2F%C3%BC%22");
        assert_eq!(table_url(&key, "s.t", true), "/tables/s.t?database=a%20b&pipeline=main");
        assert_eq!(short("abcdef", 4), "abc…");
        assert_eq!(short("üöä", 3), "üöä");
    }
}
