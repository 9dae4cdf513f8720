//! Composite literals: `(1,"a ""b""",)`.
//!
//! Source: `record_out` and `record_in` in `utils/adt/rowtypes.c`. Invariant: [`write_record`] prints the server's own
//! bytes, so that it can be compared with `record::text`; [`parse_record`] reads everything that the server prints.

use super::datum::datum_from_text;
use super::{Datum, Row, RowBuilder, TypeClass};
use crate::error::{Error, ErrorKind, Result};

/// Appends the literal of a row. NULL fields are empty.
pub fn write_record<'a>(fields: impl IntoIterator<Item = Datum<'a>>, out: &mut Vec<u8>) {
    out.push(b'(');
    for (i, datum) in fields.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        match datum {
            Datum::Text(text) => write_field(text, out),
            // Booleans and integers need no quotes; errors never reach a literal.
            other => {
                other.write_text(out);
            }
        }
    }
    out.push(b')');
}

fn write_field(text: &[u8], out: &mut Vec<u8>) {
    let special = |b: &u8| matches!(b, b'"' | b'\\' | b'(' | b')' | b',' | b' ' | 9..=13);
    if !text.is_empty() && !text.iter().any(special) {
        out.extend_from_slice(text);
        return;
    }
    out.push(b'"');
    for &b in text {
        if matches!(b, b'"' | b'\\') {
            out.push(b);
        }
        out.push(b);
    }
    out.push(b'"');
}

/// Reads a literal with one field per class into a packed row.
///
/// # Errors
/// `Protocol` if the text is not a literal of that many fields, or a field does not fit its class.
pub fn parse_record(text: &[u8], classes: &[TypeClass]) -> Result<Row> {
    let body = trim_space(text)
        .strip_prefix(b"(")
        .and_then(|rest| rest.strip_suffix(b")"))
        .ok_or_else(|| malformed("it is not enclosed in parentheses"))?;
    let mut builder = RowBuilder::default();
    if classes.is_empty() {
        return if body.is_empty() { Ok(Row::empty()) } else { Err(malformed("it has too many fields")) };
    }
    let mut rest = Some(body);
    let mut field = Vec::new();
    for class in classes {
        let Some(from) = rest else { return Err(malformed("it has too few fields")) };
        let (present, after) = next_field(from, &mut field)?;
        rest = after;
        builder.push(if present { datum_from_text(*class, &field)? } else { Datum::Null });
    }
    if rest.is_some() {
        return Err(malformed("it has too many fields"));
    }
    Ok(builder.finish())
}

/// Reads one field into `field`; whether it is not NULL, and what follows its comma.
fn next_field<'t>(text: &'t [u8], field: &mut Vec<u8>) -> Result<(bool, Option<&'t [u8]>)> {
    field.clear();
    // Only a field without any character, not even quotes, is NULL.
    let present = !matches!(text, [] | [b',', ..]);
    let (mut rest, mut quoted) = (text, false);
    loop {
        rest = match rest {
            [] if quoted => return Err(malformed("a quote is not closed")),
            [] => return Ok((present, None)),
            [b',', after @ ..] if !quoted => return Ok((present, Some(after))),
            [b'(' | b')', ..] if !quoted => return Err(malformed("a parenthesis is not quoted")),
            [b'\\', byte, after @ ..] => {
                field.push(*byte);
                after
            }
            [b'\\'] => return Err(malformed("it ends with an escape")),
            [b'"', b'"', after @ ..] if quoted => {
                field.push(b'"');
                after
            }
            [b'"', after @ ..] => {
                quoted = !quoted;
                after
            }
            [byte, after @ ..] => {
                field.push(*byte);
                after
            }
        };
    }
}

fn trim_space(text: &[u8]) -> &[u8] {
    text.trim_ascii()
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("A row literal can't be read: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn literal(fields: &[Datum<'_>]) -> String {
        let mut out = Vec::new();
        write_record(fields.iter().copied(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn literals_are_those_of_record_out() {
        let fields = [
            Datum::Int(-5),
            Datum::Bool(true),
            Datum::Null,
            Datum::Text(b""),
            Datum::Text(b"a \"b\" \\c"),
            Datum::Text(b"plain"),
            Datum::Text(b"x,y"),
        ];
        let text = literal(&fields);
        assert_eq!(text, r#"(-5,t,,"","a ""b"" \\c",plain,"x,y")"#);
        let mut classes = vec![TypeClass::Int4, TypeClass::Bool];
        classes.extend([TypeClass::Text; 5]);
        assert_eq!(parse_record(text.as_bytes(), &classes).unwrap(), Row::from_datums(fields));
        assert_eq!(literal(&[]), "()");
        assert_eq!(literal(&[Datum::Null]), "()");
    }

    #[test]
    fn a_literal_that_does_not_fit_is_a_protocol_error() {
        for bad in ["", "(", "1,2", "(1)", "(1,2,3)", "(\"1,2)", "(1,2\\)", "(x,2)", "(1,(2))"] {
            let result = parse_record(bad.as_bytes(), &[TypeClass::Int4, TypeClass::Text]);
            assert_eq!(result.map_err(|e| e.kind()), Err(ErrorKind::Protocol), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_row_survives_its_literal(
            fields in proptest::collection::vec(proptest::option::of(proptest::collection::vec(any::<char>(), 0..12)), 0..8)
        ) {
            let fields: Vec<Option<String>> = fields.into_iter().map(|f| f.map(String::from_iter)).collect();
            let text = |f: &Option<String>| f.clone().map(String::into_bytes);
            let fields: Vec<Option<Vec<u8>>> = fields.iter().map(text).collect();
            let row = Row::from_datums(fields.iter().map(|f| f.as_deref().map_or(Datum::Null, Datum::Text)));
            let mut out = Vec::new();
            write_record(row.iter(), &mut out);
            prop_assert_eq!(parse_record(&out, &vec![TypeClass::Text; fields.len()]).unwrap(), row);
        }
    }
}
