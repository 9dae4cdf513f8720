//! Key forms: a canonical representation under a type's own equality.
//!
//! Two values are one key exactly if their canonical forms are equal bytes: 1.0 and 1.00, -0 and 0, `char(n)` padding
//! (hazard A14). Types without a native form have no key form; a plan that needs one is refused.

use serde::{Deserialize, Serialize};

use super::{Datum, RowBuilder, TypeClass, TypeInfo};

/// How the image of a value becomes its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KeyForm {
    /// The image is the key: integers, text under deterministic collations, dates, uuid ...
    Image,
    /// Trailing zeros of the fraction do not count.
    Numeric,
    /// -0 is 0.
    Float,
    /// Trailing blanks do not count.
    Bpchar,
    /// A month is 30 days, a day 24 hours.
    Interval,
    /// The image is the key although the type's equality is coarser, or unknown.
    Exact,
}

impl KeyForm {
    /// The key form of a type, `None` where only PostgreSQL knows its equality.
    pub fn of(ty: &TypeInfo) -> Option<KeyForm> {
        use TypeClass::*;
        if ty.class.is_string() && !ty.deterministic {
            return None;
        }
        Some(match ty.class {
            Bool | Int2 | Int4 | Int8 | Oid | Text | Varchar | Name | Char | Bytea | Date | Time
            | Timestamp | Timestamptz | Uuid | Enum => KeyForm::Image,
            Numeric => KeyForm::Numeric,
            Float4 | Float8 => KeyForm::Float,
            Bpchar => KeyForm::Bpchar,
            Interval => KeyForm::Interval,
            Other => return None,
        })
    }

    /// Whether equal keys always have equal images.
    pub fn is_image(self) -> bool {
        matches!(self, KeyForm::Image | KeyForm::Exact)
    }

    /// The form that tells images apart.
    pub fn by_image(ty: &TypeInfo) -> KeyForm {
        match KeyForm::of(ty) {
            Some(KeyForm::Image) => KeyForm::Image,
            _ => KeyForm::Exact,
        }
    }

    /// Appends the canonical form of `datum`. NULL and errors are their own key.
    pub fn push(self, datum: Datum<'_>, out: &mut RowBuilder) {
        match (self, datum) {
            (KeyForm::Numeric, Datum::Text(t)) => out.push(Datum::Text(trim_fraction(t))),
            (KeyForm::Float, Datum::Text(b"-0")) => out.push(Datum::Text(b"0")),
            (KeyForm::Bpchar, Datum::Text(t)) => out.push(Datum::Text(trim_blanks(t))),
            (KeyForm::Interval, Datum::Text(t)) => match super::temporal::interval_micros(t) {
                Some(micros) => out.push(Datum::Text(&micros.to_le_bytes())),
                None => out.push(datum),
            },
            _ => out.push(datum),
        }
    }
}

fn trim_fraction(text: &[u8]) -> &[u8] {
    if !text.contains(&b'.') {
        return text;
    }
    let zeros = text.iter().rev().take_while(|&&b| b == b'0').count();
    let cut = &text[..text.len() - zeros];
    let cut = cut.strip_suffix(b".").unwrap_or(cut);
    if cut == b"-0" { b"0" } else { cut }
}

fn trim_blanks(text: &[u8]) -> &[u8] {
    let blanks = text.iter().rev().take_while(|&&b| b == b' ').count();
    &text[..text.len() - blanks]
}
