//! Constants as typed literals, decoded from the bytes that the tree holds.
//!
//! The bytes are in the server's order; only little-endian servers exist among the supported platforms, and a wrong
//! guess would not pass verification. Every text here reads the same under any DateStyle and IntervalStyle.

use super::names::{self, quote_literal};
use super::numeric;
use crate::analyzer::facts::Facts;
use crate::analyzer::node::{Node, Value};
use crate::error::{Error, Result};

/// `pg_type.oid` of `unknown`: a literal whose type was left open (an argument of `"any"`).
const UNKNOWN: u32 = 705;

/// `'text'::type`, `NULL::type`, or a bare literal for an untyped one.
pub(super) fn constant(node: &Node, facts: &Facts) -> Result<String> {
    let ty = node.oid("consttype")?;
    let typmod = i32::try_from(node.int("consttypmod")?).unwrap_or(-1);
    let literal = match node.field("constvalue") {
        _ if node.bool("constisnull") => "NULL".to_owned(),
        Value::Datum { bytes, .. } => match facts.literals.get(&(ty, bytes.clone())) {
            Some(text) => quote_literal(text),
            None => quote_literal(&text(facts, ty, bytes)?),
        },
        _ => return Err(Error::unsupported("a constant without value")),
    };
    if ty == UNKNOWN {
        return Ok(literal);
    }
    Ok(format!("{literal}::{}", names::type_name(facts, ty, typmod)?))
}

fn text(facts: &Facts, oid: u32, bytes: &[u8]) -> Result<String> {
    let ty = names::type_facts(facts, oid)?;
    let decoded = match ty.typtype {
        'e' => fixed(bytes)
            .map(u32::from_le_bytes)
            .and_then(|label| ty.labels.iter().find(|(oid, _)| *oid == label).map(|(_, name)| name.clone())),
        _ => decode(ty.base, bytes),
    };
    decoded.ok_or_else(|| {
        Error::unsupported(format!("a constant of type {}.{} could not be read", ty.schema, ty.name))
    })
}

fn fixed<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

/// The value behind a varlena header: four bytes, or one where the lowest bit says so. Compressed and external values
/// are never in a tree; the two bits that mark them are refused.
pub(super) fn payload(bytes: &[u8]) -> Option<&[u8]> {
    let first = *bytes.first()?;
    match first & 3 {
        0 => bytes.get(4..),
        1 | 3 if first != 1 => bytes.get(1..),
        _ => None,
    }
}

fn string(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

/// Text by the base type's fixed OID (`pg_type.dat`).
fn decode(base: u32, bytes: &[u8]) -> Option<String> {
    let text = match base {
        16 => if *bytes.first()? != 0 { "true" } else { "false" }.to_owned(),
        21 => i16::from_le_bytes(fixed(bytes)?).to_string(),
        23 => i32::from_le_bytes(fixed(bytes)?).to_string(),
        20 => i64::from_le_bytes(fixed(bytes)?).to_string(),
        // oid, xid, cid and the reg types, whose input functions take numbers.
        26 | 28 | 29 | 24 | 2202..=2206 | 3734 | 3769 | 4089 | 4096 | 4191 => {
            u32::from_le_bytes(fixed(bytes)?).to_string()
        }
        700 => float(f32::from_le_bytes(fixed(bytes)?)),
        701 => float(f64::from_le_bytes(fixed(bytes)?)),
        1700 => numeric::text(payload(bytes)?)?,
        // text, varchar, bpchar, json, xml: the text itself.
        25 | 1043 | 1042 | 114 | 142 => string(payload(bytes)?)?,
        UNKNOWN | 19 => string(bytes.split(|b| *b == 0).next()?)?,
        18 => match *bytes.first()? {
            0 => String::new(),
            byte if byte < 0x80 => char::from(byte).to_string(),
            _ => return None,
        },
        17 => payload(bytes)?.iter().fold("\\x".to_owned(), |hex, b| hex + &format!("{b:02x}")),
        2950 => fixed::<16>(bytes)?.iter().map(|b| format!("{b:02x}")).collect(),
        1082 => date(i32::from_le_bytes(fixed(bytes)?)),
        1083 => time(i64::from_le_bytes(fixed(bytes)?)),
        1266 => {
            let west = i32::from_le_bytes(fixed(bytes.get(8..)?)?);
            format!("{}{}", time(i64::from_le_bytes(fixed(bytes)?)), zone(-west))
        }
        1114 => timestamp(i64::from_le_bytes(fixed(bytes)?), ""),
        1184 => timestamp(i64::from_le_bytes(fixed(bytes)?), "+00"),
        1186 => interval(
            i64::from_le_bytes(fixed(bytes)?),
            i32::from_le_bytes(fixed(bytes.get(8..)?)?),
            i32::from_le_bytes(fixed(bytes.get(12..)?)?),
        ),
        _ => return None,
    };
    Some(text)
}

/// Shortest text that reads back to the same value.
fn float(value: impl Into<f64> + std::fmt::Display + Copy) -> String {
    let wide: f64 = value.into();
    match wide {
        w if w.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => value.to_string(),
    }
}

/// Days since 2000-01-01 as year, month, day of the proleptic Gregorian calendar.
fn civil(days: i64) -> (i64, i64, i64) {
    // Counted from 0000-03-01, so that the leap day is the last day of its year.
    let days = days + 730_425;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day = day_of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day - (153 * shifted + 2) / 5 + 1)
}

/// Year zero is 1 BC.
fn calendar(days: i64, rest: &str) -> String {
    let (year, month, day) = civil(days);
    match year > 0 {
        true => format!("{year:04}-{month:02}-{day:02}{rest}"),
        false => format!("{:04}-{month:02}-{day:02}{rest} BC", 1 - year),
    }
}

fn date(days: i32) -> String {
    match days {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        days => calendar(i64::from(days), ""),
    }
}

fn time(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:06}", seconds % 60, micros % 1_000_000)
}

fn zone(east: i32) -> String {
    let seconds = east.unsigned_abs();
    let sign = if east < 0 { '-' } else { '+' };
    format!("{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn timestamp(micros: i64, zone: &str) -> String {
    const DAY: i64 = 86_400_000_000;
    match micros {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        micros => calendar(micros.div_euclid(DAY), &format!(" {}{zone}", time(micros.rem_euclid(DAY)))),
    }
}

/// Every field has its own sign, so that `sql_standard` does not spread the first one.
fn interval(micros: i64, days: i32, months: i32) -> String {
    match (micros, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => return "infinity".to_owned(),
        (i64::MIN, i32::MIN, i32::MIN) => return "-infinity".to_owned(),
        _ => {}
    }
    let sign = if micros < 0 { '-' } else { '+' };
    let size = micros.unsigned_abs();
    format!("{months:+} mons {days:+} days {sign}{}.{:06} secs", size / 1_000_000, size % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_are_iso_text() {
        assert_eq!(date(0), "2000-01-01");
        assert_eq!(date(8825), "2024-02-29");
        assert_eq!(date(-730_119), "0001-01-01");
        assert_eq!(date(-730_120), "0001-12-31 BC");
        assert_eq!(timestamp(-1, "+00"), "1999-12-31 23:59:59.999999+00");
        assert_eq!(timestamp(i64::MAX, ""), "infinity");
        assert_eq!(zone(-12_600), "-03:30:00");
        assert_eq!(interval(-1_500_000, 2, -3), "-3 mons +2 days -1.500000 secs");
    }

    #[test]
    fn varlena_headers_are_taken_off() {
        assert_eq!(payload(&[24, 0, 0, 0, b'a', b'b']), Some(&b"ab"[..]));
        assert_eq!(payload(&[7, b'a', b'b']), Some(&b"ab"[..]));
        assert_eq!(payload(&[2, 0, 0, 0]), None);
        assert_eq!(payload(&[1, 18]), None);
    }

    #[test]
    fn floats_read_back_exactly() {
        for value in [0.1_f64, -0.0, 1e300, 5e-324, 123_456_789.125] {
            assert_eq!(float(value).parse::<f64>().map(f64::to_bits), Ok(value.to_bits()));
        }
        assert_eq!(float(f32::NEG_INFINITY), "-Infinity");
    }
}
