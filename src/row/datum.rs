//! One scalar value, borrowed from a packed row.

use std::io::Write;

/// A scalar value. `Text` holds the server's own text for every type that is not boolean or integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datum<'a> {
    Null,
    Bool(bool),
    /// int2, int4, int8, oid.
    Int(i64),
    /// Server text (client_encoding UTF8) of any other type.
    Text(&'a [u8]),
    /// An expression failed for this row: `SQLSTATE:message`. It spreads through strict kernels and suspends the
    /// stream table only if it reaches the output, a filter or a join key (hazard B1).
    Error(&'a [u8]),
}

impl<'a> Datum<'a> {
    pub fn is_null(&self) -> bool {
        matches!(self, Datum::Null)
    }

    pub fn is_error(&self) -> bool {
        matches!(self, Datum::Error(_))
    }

    /// Appends the server's text form (`t`/`f` for booleans). Returns false for NULL, which has no text.
    pub fn write_text(&self, out: &mut Vec<u8>) -> bool {
        match self {
            Datum::Null => return false,
            Datum::Bool(true) => out.push(b't'),
            Datum::Bool(false) => out.push(b'f'),
            // Writing into a vector does not fail.
            Datum::Int(i) => drop(write!(out, "{i}")),
            Datum::Text(t) | Datum::Error(t) => out.extend_from_slice(t),
        }
        true
    }
}

/// Splits the payload of [`Datum::Error`] into SQLSTATE and message.
pub fn error_parts(payload: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(payload);
    match text.split_once(':') {
        Some((state, message)) => (state.to_owned(), message.to_owned()),
        None => ("XX000".to_owned(), text.into_owned()),
    }
}
