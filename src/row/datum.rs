//! One scalar value, borrowed from a packed row.

use super::TypeClass;
use crate::error::{Error, ErrorKind, Result};
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
    /// An expression failed for this row: `SQLSTATE:message`, and the statement where PostgreSQL computed it
    /// ([`error_payload`]). It spreads through strict kernels and suspends the
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

/// The datum of a value's server text (client_encoding UTF8). Integers and booleans must be in the one form the server
/// prints, text must be valid UTF-8; otherwise a Protocol error without the value.
pub fn datum_from_text(class: TypeClass, text: &[u8]) -> Result<Datum<'_>> {
    let datum = match class {
        TypeClass::Bool => match text {
            b"t" => Some(Datum::Bool(true)),
            b"f" => Some(Datum::Bool(false)),
            _ => None,
        },
        TypeClass::Int2 => canonical_int(text, i16::MIN.into(), i16::MAX.into()),
        TypeClass::Int4 => canonical_int(text, i32::MIN.into(), i32::MAX.into()),
        TypeClass::Int8 => canonical_int(text, i64::MIN, i64::MAX),
        TypeClass::Oid => canonical_int(text, 0, u32::MAX.into()),
        _ => std::str::from_utf8(text).ok().map(|t| Datum::Text(t.as_bytes())),
    };
    datum.ok_or_else(|| {
        let what = match class {
            TypeClass::Bool => "the value is not a boolean as the server prints it",
            _ if class.is_int() => "the value is not an integer of its type as the server prints it",
            _ => "the value is not valid UTF-8",
        };
        Error::new(ErrorKind::Protocol, what)
    })
}

/// A packed integer prints in one form only, so no other form may be packed: no sign `+`, no leading zeros, no `-0`.
fn canonical_int<'a>(text: &[u8], min: i64, max: i64) -> Option<Datum<'a>> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [] => return None,
        [b'0'] if !negative => return Some(Datum::Int(0)),
        [b'0', ..] => return None,
        _ => {}
    }
    let mut value: i64 = 0;
    for &b in digits {
        if !b.is_ascii_digit() {
            return None;
        }
        let digit = i64::from(b - b'0');
        value = value.checked_mul(10)?;
        value = if negative { value.checked_sub(digit)? } else { value.checked_add(digit)? };
    }
    (min <= value && value <= max).then_some(Datum::Int(value))
}

/// Between message and statement in the payload of [`Datum::Error`].
const STATEMENT: char = '\u{1f}';
/// Bytes of a statement that a payload keeps: every row that fails has one.
const STATEMENT_KEPT: usize = 600;

/// The payload of [`Datum::Error`] for a failure of `statement` on the server.
pub fn error_payload(sqlstate: &str, message: &str, statement: &str) -> String {
    let mut end = statement.len().min(STATEMENT_KEPT);
    while !statement.is_char_boundary(end) {
        end -= 1;
    }
    let (kept, rest) = statement.split_at(end);
    format!("{sqlstate}:{message}{STATEMENT}{kept}{}", if rest.is_empty() { "" } else { " ..." })
}

/// Splits the payload of [`Datum::Error`] into SQLSTATE, message, and the statement if it was the server's.
pub fn error_parts(payload: &[u8]) -> (String, String, Option<String>) {
    let text = String::from_utf8_lossy(payload);
    let (state, rest) = text.split_once(':').unwrap_or(("XX000", &text));
    match rest.split_once(STATEMENT) {
        Some((message, statement)) => (state.to_owned(), message.to_owned(), Some(statement.to_owned())),
        None => (state.to_owned(), rest.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_keeps_the_beginning_of_the_statement_in_whole_characters() {
        let parts = |state: &str, message: &str, statement: Option<&str>| {
            (state.to_owned(), message.to_owned(), statement.map(str::to_owned))
        };
        assert_eq!(error_parts(b"22012:division: by zero"), parts("22012", "division: by zero", None));
        assert_eq!(error_parts(b"nonsense"), parts("XX000", "nonsense", None));
        let payload = error_payload("22012", "division by zero", "select 1 / 0");
        let wanted = parts("22012", "division by zero", Some("select 1 / 0"));
        assert_eq!(error_parts(payload.as_bytes()), wanted);
        let long = format!("{}\u{e9}{}", "x".repeat(STATEMENT_KEPT - 1), "y".repeat(50));
        let payload = error_payload("22012", "m", &long);
        let cut = format!("{} ...", "x".repeat(STATEMENT_KEPT - 1));
        assert_eq!(error_parts(payload.as_bytes()), parts("22012", "m", Some(&cut)));
    }

    #[test]
    fn the_limits_of_every_integer_type_are_read_and_one_beyond_is_refused() {
        use TypeClass::*;
        for (class, text, want) in [
            (Int2, "-32768", -32768),
            (Int4, "2147483647", 2147483647),
            (Int8, "-9223372036854775808", i64::MIN),
            (Int8, "9223372036854775807", i64::MAX),
            (Oid, "4294967295", 4294967295),
            (Int4, "0", 0),
        ] {
            assert_eq!(datum_from_text(class, text.as_bytes()).unwrap(), Datum::Int(want));
        }
        for (class, text) in [
            (Int2, "32768"),
            (Int4, "-2147483649"),
            (Int8, "9223372036854775808"),
            (Int8, "-9223372036854775809"),
            (Oid, "-1"),
            (Int4, "+1"),
            (Int4, "01"),
            (Int4, "-0"),
            (Int4, "-"),
            (Int4, ""),
            (Int4, "1 "),
        ] {
            let e = datum_from_text(class, text.as_bytes()).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Protocol, "{class:?} {text}");
        }
    }

    #[test]
    fn booleans_are_one_letter_and_text_is_utf8() {
        assert_eq!(datum_from_text(TypeClass::Bool, b"t").unwrap(), Datum::Bool(true));
        assert_eq!(datum_from_text(TypeClass::Bool, b"f").unwrap(), Datum::Bool(false));
        assert!(datum_from_text(TypeClass::Bool, b"true").is_err());
        assert_eq!(datum_from_text(TypeClass::Numeric, b"1.00").unwrap(), Datum::Text(b"1.00"));
        assert!(datum_from_text(TypeClass::Other, b"\xff").is_err());
    }
}
