//! Constants of the tree as rows: the image that the server would print under the pinned settings.
//!
//! Only types with a native class; a constant of another type stays inside an expression that PostgreSQL computes.
//! Layouts: by-value datums are printed as 8 little-endian bytes, by-reference ones in full, varlena with its header
//! (`nodes/outfuncs.c`, `outDatum`).

use crate::analyzer::facts::Facts;
use crate::analyzer::node::{Node, Value};
use crate::row::{Datum, Row, TypeClass};

use super::types;

/// The value of a non-null int4 constant.
pub fn int4(node: &Node) -> Option<i32> {
    Some(i32::from_le_bytes(array(bytes(node)?)?))
}

/// A one-column row for a CONST node, `None` if its type has no native form here.
pub fn literal(facts: &Facts, node: &Node) -> Option<Row> {
    if node.bool("constisnull") {
        return Some(Row::from_datums([Datum::Null]));
    }
    let oid = node.oid("consttype").ok()?;
    let class = types::info(facts, oid, -1, 0).class;
    let bytes = bytes(node)?;
    let text: Vec<u8> = match class {
        TypeClass::Bool => return Some(Row::from_datums([Datum::Bool(*bytes.first()? != 0)])),
        TypeClass::Int2 => return int(i64::from(i16::from_le_bytes(array(bytes)?))),
        TypeClass::Int4 => return int(i64::from(i32::from_le_bytes(array(bytes)?))),
        TypeClass::Int8 => return int(i64::from_le_bytes(array(bytes)?)),
        TypeClass::Oid => return int(i64::from(u32::from_le_bytes(array(bytes)?))),
        TypeClass::Text | TypeClass::Varchar | TypeClass::Bpchar => varlena(bytes)?.to_vec(),
        TypeClass::Name => bytes.split(|b| *b == 0).next()?.to_vec(),
        TypeClass::Char => return ascii_char(*bytes.first()?),
        TypeClass::Bytea => format!("\\x{}", hex(varlena(bytes)?)).into_bytes(),
        TypeClass::Uuid => uuid(bytes)?.into_bytes(),
        TypeClass::Numeric => numeric(varlena(bytes)?)?.into_bytes(),
        TypeClass::Date => date(i32::from_le_bytes(array(bytes)?)).into_bytes(),
        TypeClass::Time => time(i64::from_le_bytes(array(bytes)?)).into_bytes(),
        TypeClass::Timestamp => timestamp(i64::from_le_bytes(array(bytes)?), "").into_bytes(),
        TypeClass::Timestamptz => timestamp(i64::from_le_bytes(array(bytes)?), "+00").into_bytes(),
        TypeClass::Enum => enum_label(facts, oid, u32::from_le_bytes(array(bytes)?))?.into_bytes(),
        TypeClass::Float8 => float8_text(f64::from_le_bytes(array(bytes)?))?.into_bytes(),
        TypeClass::Float4 | TypeClass::Interval | TypeClass::Other => return None,
    };
    Some(Row::from_datums([Datum::Text(&text)]))
}

fn bytes(node: &Node) -> Option<&[u8]> {
    match node.field("constvalue") {
        Value::Datum { bytes, .. } => Some(bytes),
        _ => None,
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.get(..N)?.try_into().ok()
}

fn int(value: i64) -> Option<Row> {
    Some(Row::from_datums([Datum::Int(value)]))
}

/// `charout`: non-ASCII bytes are printed in octal by 16 and later and raw before; those stay with the server.
fn ascii_char(byte: u8) -> Option<Row> {
    match byte {
        0 => Some(Row::from_datums([Datum::Text(b"")])),
        1..=127 => Some(Row::from_datums([Datum::Text(&[byte])])),
        _ => None,
    }
}

/// The payload behind a 1-byte or 4-byte header (`varatt.h`); a stored constant is never compressed or external.
fn varlena(bytes: &[u8]) -> Option<&[u8]> {
    match bytes.first()? & 3 {
        0 => bytes.get(4..),
        1 | 3 => bytes.get(1..),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn uuid(bytes: &[u8]) -> Option<String> {
    let h = hex(bytes.get(..16)?);
    Some(format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..32]))
}

fn enum_label(facts: &Facts, oid: u32, label: u32) -> Option<String> {
    let ty = facts.types.get(&oid)?;
    let ty = if ty.base == oid { ty } else { facts.types.get(&ty.base)? };
    ty.labels.iter().find(|(o, _)| *o == label).map(|(_, l)| l.clone())
}

/// `numeric_out` of the on-disk format (`utils/adt/numeric.c`): base 10000 digits, weight, display scale.
fn numeric(payload: &[u8]) -> Option<String> {
    let header = u16::from_le_bytes(array(payload)?);
    if header & 0xC000 == 0xC000 {
        let special = match header & 0xF000 {
            0xC000 => "NaN",
            0xD000 => "Infinity",
            _ => "-Infinity",
        };
        return Some(special.to_owned());
    }
    let (negative, scale, weight, digits) = if header & 0x8000 != 0 {
        let magnitude = i32::from(header & 0x3F);
        let weight = if header & 0x40 != 0 { magnitude - 64 } else { magnitude };
        (header & 0x2000 != 0, usize::from((header & 0x1F80) >> 7), weight, payload.get(2..)?)
    } else {
        let weight = i32::from(i16::from_le_bytes(array(payload.get(2..)?)?));
        (header & 0x4000 != 0, usize::from(header & 0x3FFF), weight, payload.get(4..)?)
    };
    let digits: Vec<u16> = digits.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
    let digit = |position: i32| {
        let index = usize::try_from(weight - position).ok();
        index.and_then(|i| digits.get(i)).copied().unwrap_or(0)
    };
    let whole: String = (0..=weight).rev().map(|p| format!("{:04}", digit(p))).collect();
    let whole = whole.trim_start_matches('0');
    let mut fraction = String::new();
    let mut position = -1;
    while fraction.len() < scale {
        fraction.push_str(&format!("{:04}", digit(position)));
        position -= 1;
    }
    fraction.truncate(scale);
    let mut text = String::from(if negative { "-" } else { "" });
    text.push_str(if whole.is_empty() { "0" } else { whole });
    if scale > 0 {
        text.push('.');
        text.push_str(&fraction);
    }
    Some(text)
}

/// `float8out` with the shortest digits (`common/d2s.c`): fixed notation for exponents -4 to 14.
pub fn float8_text(value: f64) -> Option<String> {
    if !value.is_finite() {
        return None;
    }
    let mut text = Vec::new();
    crate::row::float::write_f64(value, &mut text);
    String::from_utf8(text).ok()
}

/// Days since 2000-01-01, in ISO style (`EncodeDateOnly`).
fn date(days: i32) -> String {
    match days {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        days => {
            let (text, bc) = calendar(i64::from(days));
            text + bc
        }
    }
}

/// Microseconds since 2000-01-01, in ISO style (`EncodeDateTime`), with `zone` behind the time.
fn timestamp(micros: i64, zone: &str) -> String {
    const DAY: i64 = 86_400_000_000;
    match micros {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        micros => {
            let (text, bc) = calendar(micros.div_euclid(DAY));
            format!("{text} {}{zone}{bc}", time(micros.rem_euclid(DAY)))
        }
    }
}

/// Microseconds since midnight; trailing zeros of the fraction are not printed.
fn time(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    match micros % 1_000_000 {
        0 => text,
        fraction => format!("{text}.{fraction:06}").trim_end_matches('0').to_owned(),
    }
}

/// Proleptic Gregorian date of a day number counted from 2000-01-01, and the suffix of years before 1.
fn calendar(days: i64) -> (String, &'static str) {
    // Days since 0000-03-01, so that the leap day is the last one of a year.
    let shifted = days + 730_425;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (shown, bc) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{shown:04}-{month:02}-{day:02}"), bc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_printed_as_the_server_prints_them() {
        assert_eq!(date(0), "2000-01-01");
        assert_eq!(date(59), "2000-02-29");
        assert_eq!(date(-1), "1999-12-31");
        assert_eq!(date(-730_120), "0001-12-31 BC");
        assert_eq!(date(i32::MAX), "infinity");
        assert_eq!(timestamp(86_400_000_000 + 1_500_000, "+00"), "2000-01-02 00:00:01.5+00");
        assert_eq!(timestamp(-1, ""), "1999-12-31 23:59:59.999999");
    }

    #[test]
    fn floats_are_printed_with_the_shortest_digits() {
        let texts: Vec<_> = [1.5, -0.0, 1e14, 1e15, 1.25e-5, 0.0001, 123456789.125, 1.7976931348623157e308]
            .into_iter()
            .filter_map(float8_text)
            .collect();
        let wanted = [
            "1.5",
            "-0",
            "100000000000000",
            "1e+15",
            "1.25e-05",
            "0.0001",
            "123456789.125",
            "1.7976931348623157e+308",
        ];
        assert_eq!(texts, wanted);
        assert_eq!(float8_text(f64::NAN), None);
    }

    #[test]
    fn numerics_keep_their_display_scale() {
        // 12345.6700: short header with scale 4, weight 1.
        let header: u16 = 0x8000 | (4 << 7) | 1;
        let mut payload = header.to_le_bytes().to_vec();
        [1u16, 2345, 6700].iter().for_each(|d| payload.extend(d.to_le_bytes()));
        assert_eq!(numeric(&payload).as_deref(), Some("12345.6700"));
        // -0.0005: weight -1.
        let header: u16 = 0x8000 | 0x2000 | (4 << 7) | 0x40 | 63;
        let mut payload = header.to_le_bytes().to_vec();
        payload.extend(5u16.to_le_bytes());
        assert_eq!(numeric(&payload).as_deref(), Some("-0.0005"));
        assert_eq!(numeric(&0x8000u16.to_le_bytes()).as_deref(), Some("0"));
    }
}
