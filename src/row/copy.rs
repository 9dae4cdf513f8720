//! `COPY ... TO STDOUT` text format to packed rows, and the shared step from a column's text to a datum.
//!
//! Source: `CopyAttributeOutText` in `commands/copyto.c`; the reader's side follows `CopyReadAttributesText` in
//! `commands/copyfromparse.c`. Invariant: a row read here is equal, byte for byte, to the row that the stream gives
//! for the same values.

use super::datum::datum_from_text;
use super::{Datum, Row, RowBuilder, TypeClass};
use crate::error::{Error, ErrorKind, Result};

/// Reads lines of `COPY ... TO STDOUT` (text format, default delimiter and null marker). Keeps its buffers.
pub struct CopyDecoder {
    classes: Vec<TypeClass>,
    builder: RowBuilder,
    unescaped: Vec<u8>,
}

impl CopyDecoder {
    /// A decoder for lines with one field per class.
    pub fn new(classes: Vec<TypeClass>) -> CopyDecoder {
        CopyDecoder { classes, builder: RowBuilder::default(), unescaped: Vec::new() }
    }

    /// The row of one line, with or without its newline. The server sends each line as one CopyData message.
    ///
    /// # Errors
    /// `Protocol` if the number of fields or a value does not fit the classes.
    pub fn decode(&mut self, line: &[u8]) -> Result<Row> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let result = self.fields(line);
        // Also after an error, so that the next line starts with an empty builder.
        let row = self.builder.finish();
        result.map(|()| row)
    }

    fn fields(&mut self, line: &[u8]) -> Result<()> {
        if self.classes.is_empty() {
            // A table without columns comes as empty lines.
            return if line.is_empty() { Ok(()) } else { Err(wrong_count(1, 0)) };
        }
        let mut count = 0;
        // Tabs in values are escaped, so every tab ends a field.
        for field in line.split(|&b| b == b'\t') {
            let Some(&class) = self.classes.get(count) else {
                return Err(wrong_count(count + 1, self.classes.len()));
            };
            count += 1;
            if field == b"\\N" {
                self.builder.push(Datum::Null);
            } else if field.contains(&b'\\') {
                unescape(field, &mut self.unescaped);
                self.builder.push(datum_from_text(class, &self.unescaped)?);
            } else {
                self.builder.push(datum_from_text(class, field)?);
            }
        }
        if count < self.classes.len() {
            return Err(wrong_count(count, self.classes.len()));
        }
        Ok(())
    }
}

fn wrong_count(got: usize, want: usize) -> Error {
    Error::new(ErrorKind::Protocol, format!("A COPY line has {got} fields or more, expected {want}"))
}

/// Undoes the escapes of one field into `out`.
fn unescape(field: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let mut rest = field;
    while let Some(at) = rest.iter().position(|&b| b == b'\\') {
        out.extend_from_slice(&rest[..at]);
        let (byte, used) = escape(&rest[at + 1..]);
        out.push(byte);
        rest = &rest[at + 1 + used..];
    }
    out.extend_from_slice(rest);
}

/// The byte that the escape behind a backslash stands for, and its length.
fn escape(text: &[u8]) -> (u8, usize) {
    let digits = |from: &[u8], most: usize, base: u32| {
        let n = from.iter().take(most).take_while(|b| char::from(**b).is_digit(base)).count();
        let value = from[..n].iter().fold(0u32, |v, b| v * base + char::from(*b).to_digit(base).unwrap_or(0));
        (value as u8, n)
    };
    match text {
        // A backslash at the very end stands for itself.
        [] => (b'\\', 0),
        [b'b', ..] => (8, 1),
        [b'f', ..] => (12, 1),
        [b'n', ..] => (b'\n', 1),
        [b'r', ..] => (b'\r', 1),
        [b't', ..] => (b'\t', 1),
        [b'v', ..] => (11, 1),
        [b'0'..=b'7', ..] => digits(text, 3, 8),
        [b'x', rest @ ..] => match digits(rest, 2, 16) {
            (_, 0) => (b'x', 1),
            (byte, n) => (byte, n + 1),
        },
        [other, ..] => (*other, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_packed_by_their_class() {
        let mut decoder = CopyDecoder::new(vec![
            TypeClass::Int8,
            TypeClass::Bool,
            TypeClass::Text,
            TypeClass::Numeric,
            TypeClass::Text,
        ]);
        let row = decoder.decode(b"-9223372036854775808\tt\ta\\tb\\\\\\n\\x41\\101\t1.50\t\\N\n").unwrap();
        let want = [
            Datum::Int(i64::MIN),
            Datum::Bool(true),
            Datum::Text(b"a\tb\\\nAA"),
            Datum::Text(b"1.50"),
            Datum::Null,
        ];
        assert_eq!(row, Row::from_datums(want));
        let row = decoder.decode(b"0\tf\t\tNaN\t\\\\N").unwrap();
        let want =
            [Datum::Int(0), Datum::Bool(false), Datum::Text(b""), Datum::Text(b"NaN"), Datum::Text(b"\\N")];
        assert_eq!(row, Row::from_datums(want));
    }

    #[test]
    fn a_line_that_does_not_fit_is_a_protocol_error_and_leaves_nothing_behind() {
        let mut decoder = CopyDecoder::new(vec![TypeClass::Int4, TypeClass::Bool]);
        for bad in ["1", "1\tt\t", "x\tt", "1\ttrue", "\tt", "-\tt", "99999999999999999999\tt"] {
            assert_eq!(
                decoder.decode(bad.as_bytes()).map_err(|e| e.kind()),
                Err(ErrorKind::Protocol),
                "{bad}"
            );
        }
        assert_eq!(decoder.decode(b"1\tt").unwrap(), Row::from_datums([Datum::Int(1), Datum::Bool(true)]));
        assert_eq!(CopyDecoder::new(vec![]).decode(b"\n").unwrap(), Row::empty());
    }

    /// As `CopyAttributeOutText` escapes.
    fn escaped(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for &b in text {
            match b {
                8 => out.extend_from_slice(b"\\b"),
                12 => out.extend_from_slice(b"\\f"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                11 => out.extend_from_slice(b"\\v"),
                b'\\' => out.extend_from_slice(b"\\\\"),
                _ => out.push(b),
            }
        }
        out
    }

    proptest! {
        #[test]
        fn any_text_survives_copy(a in proptest::collection::vec(any::<char>(), 0..50), b in any::<i64>()) {
            // Every text that a server sends is UTF-8 (client_encoding).
            let a: Vec<u8> = a.into_iter().collect::<String>().into_bytes();
            let mut line = escaped(&a);
            line.extend_from_slice(format!("\t{b}\n").as_bytes());
            let row = CopyDecoder::new(vec![TypeClass::Text, TypeClass::Int8]).decode(&line).unwrap();
            prop_assert_eq!(row, Row::from_datums([Datum::Text(&a), Datum::Int(b)]));
        }
    }
}
