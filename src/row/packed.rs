//! Rows packed into one shared allocation.
//!
//! Layout, per column: one tag byte, then the payload. Integers take 0, 1, 2, 4 or 8 bytes (little endian, sign
//! extended), text a LEB128 length and its bytes. The encoding of a value is unique, so byte equality is image equality.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Datum;

const NULL: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INT0: u8 = 3;
const INT1: u8 = 4;
const INT2: u8 = 5;
const INT4: u8 = 6;
const INT8: u8 = 7;
const TEXT: u8 = 8;
const ERROR: u8 = 9;
/// Tags from here on are short text: the length is `tag - SHORT_TEXT`.
const SHORT_TEXT: u8 = 16;
const SHORT_MAX: usize = (u8::MAX - SHORT_TEXT) as usize;

/// An immutable row; cloning shares the bytes. Ordering is by bytes: total, but not the server's order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Row(Arc<[u8]>);

/// As one piece of bytes: rows travel between processes by the million.
impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Row, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Row;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a packed row")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Row, E> {
                Ok(Row(Arc::from(bytes)))
            }

            // Formats without a form for bytes write a list of numbers.
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Row, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = list.next_element::<u8>()? {
                    bytes.push(byte);
                }
                Ok(Row(Arc::from(bytes)))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

impl Row {
    /// The row without columns.
    pub fn empty() -> Row {
        Row(Arc::from(&[][..]))
    }

    pub fn from_datums<'a>(datums: impl IntoIterator<Item = Datum<'a>>) -> Row {
        let mut b = RowBuilder::default();
        for d in datums {
            b.push(d);
        }
        b.finish()
    }

    /// The columns, in order.
    pub fn iter(&self) -> Datums<'_> {
        Datums { rest: &self.0 }
    }

    /// Column `index`, `Null` past the end. Costs a scan: use [`Row::iter`] or [`Row::unpack`] for several columns.
    pub fn get(&self, index: usize) -> Datum<'_> {
        self.iter().nth(index).unwrap_or(Datum::Null)
    }

    /// All columns in a vector that lives on the stack for narrow rows.
    pub fn unpack(&self) -> smallvec::SmallVec<[Datum<'_>; 16]> {
        self.iter().collect()
    }

    /// A row of the given columns, in the given order.
    pub fn project(&self, columns: &[usize]) -> Row {
        // Copies the columns' packed bytes; nothing is decoded and encoded again.
        let mut spans: smallvec::SmallVec<[&[u8]; 16]> = smallvec::SmallVec::new();
        let mut datums = self.iter();
        loop {
            let before = datums.rest;
            if datums.next().is_none() {
                break;
            }
            spans.push(&before[..before.len() - datums.rest.len()]);
        }
        if spans.len() == columns.len() && columns.iter().copied().eq(0..spans.len()) {
            return self.clone();
        }
        let mut builder = RowBuilder::default();
        for &column in columns {
            builder.bytes.extend_from_slice(spans.get(column).copied().unwrap_or(&[NULL]));
        }
        builder.finish()
    }

    /// The columns of `self`, then those of `other`.
    pub fn concat(&self, other: &Row) -> Row {
        let mut builder = RowBuilder::default();
        builder.extend(self);
        builder.extend(other);
        builder.finish()
    }

    /// Packed size in bytes, without the shared header.
    pub fn byte_len(&self) -> usize {
        self.0.len()
    }

    /// The packed bytes of the first `columns` columns.
    pub fn prefix(&self, columns: usize) -> &[u8] {
        let mut datums = self.iter();
        for _ in 0..columns {
            if datums.next().is_none() {
                break;
            }
        }
        &self.0[..self.0.len() - datums.rest.len()]
    }

    /// The packed bytes (for hashing and spreading over workers).
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn has_error(&self) -> bool {
        self.iter().any(|d| d.is_error())
    }
}

impl AsRef<Row> for Row {
    fn as_ref(&self) -> &Row {
        self
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for d in self.iter() {
            match d {
                Datum::Text(t) => list.entry(&String::from_utf8_lossy(t)),
                other => list.entry(&other),
            };
        }
        list.finish()
    }
}

/// Iterator over the columns of a row.
pub struct Datums<'a> {
    rest: &'a [u8],
}

impl<'a> Datums<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        // The encoder is the only source of these bytes; a short slice ends the row instead of panicking.
        let (head, tail) = self.rest.split_at(n.min(self.rest.len()));
        self.rest = tail;
        head
    }

    fn length(&mut self) -> usize {
        let (mut value, mut shift) = (0usize, 0u32);
        while let [byte, rest @ ..] = self.rest {
            self.rest = rest;
            value |= ((byte & 0x7f) as usize) << shift;
            shift += 7;
            if byte & 0x80 == 0 || shift > 56 {
                break;
            }
        }
        value
    }
}

fn int_from<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

impl<'a> Iterator for Datums<'a> {
    type Item = Datum<'a>;

    fn next(&mut self) -> Option<Datum<'a>> {
        let [tag, rest @ ..] = self.rest else { return None };
        self.rest = rest;
        Some(match *tag {
            NULL => Datum::Null,
            FALSE => Datum::Bool(false),
            TRUE => Datum::Bool(true),
            INT0 => Datum::Int(0),
            INT1 => Datum::Int(i8::from_le_bytes(int_from(self.take(1))?).into()),
            INT2 => Datum::Int(i16::from_le_bytes(int_from(self.take(2))?).into()),
            INT4 => Datum::Int(i32::from_le_bytes(int_from(self.take(4))?).into()),
            INT8 => Datum::Int(i64::from_le_bytes(int_from(self.take(8))?)),
            TEXT => {
                let n = self.length();
                Datum::Text(self.take(n))
            }
            ERROR => {
                let n = self.length();
                Datum::Error(self.take(n))
            }
            short if short >= SHORT_TEXT => Datum::Text(self.take((short - SHORT_TEXT) as usize)),
            _ => return None,
        })
    }
}

/// Builds rows; reusable, it keeps its buffer. Usual rows fit in place, so that the row itself is the only allocation.
#[derive(Default)]
pub struct RowBuilder {
    bytes: smallvec::SmallVec<[u8; 256]>,
}

impl RowBuilder {
    pub fn push(&mut self, datum: Datum<'_>) {
        match datum {
            Datum::Null => self.bytes.push(NULL),
            Datum::Bool(false) => self.bytes.push(FALSE),
            Datum::Bool(true) => self.bytes.push(TRUE),
            Datum::Int(i) => self.push_int(i),
            Datum::Text(t) if t.len() <= SHORT_MAX => {
                self.bytes.push(SHORT_TEXT + t.len() as u8);
                self.bytes.extend_from_slice(t);
            }
            Datum::Text(t) => self.push_long(TEXT, t),
            Datum::Error(t) => self.push_long(ERROR, t),
        }
    }

    fn push_int(&mut self, i: i64) {
        if i == 0 {
            self.bytes.push(INT0);
        } else if let Ok(v) = i8::try_from(i) {
            self.bytes.push(INT1);
            self.bytes.extend_from_slice(&v.to_le_bytes());
        } else if let Ok(v) = i16::try_from(i) {
            self.bytes.push(INT2);
            self.bytes.extend_from_slice(&v.to_le_bytes());
        } else if let Ok(v) = i32::try_from(i) {
            self.bytes.push(INT4);
            self.bytes.extend_from_slice(&v.to_le_bytes());
        } else {
            self.bytes.push(INT8);
            self.bytes.extend_from_slice(&i.to_le_bytes());
        }
    }

    fn push_long(&mut self, tag: u8, payload: &[u8]) {
        self.bytes.push(tag);
        let mut n = payload.len();
        while n >= 0x80 {
            self.bytes.push((n as u8 & 0x7f) | 0x80);
            n >>= 7;
        }
        self.bytes.push(n as u8);
        self.bytes.extend_from_slice(payload);
    }

    /// Copies all columns of `row`.
    pub fn extend(&mut self, row: &Row) {
        self.bytes.extend_from_slice(&row.0);
    }

    /// Drops the columns pushed so far (after an error in the middle of a row).
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// The row built so far; the builder is empty afterwards.
    pub fn finish(&mut self) -> Row {
        let row = Row(Arc::from(self.bytes.as_slice()));
        self.bytes.clear();
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Value {
        Null,
        Bool(bool),
        Int(i64),
        Text(Vec<u8>),
        Error(Vec<u8>),
    }

    impl Value {
        fn datum(&self) -> Datum<'_> {
            match self {
                Value::Null => Datum::Null,
                Value::Bool(b) => Datum::Bool(*b),
                Value::Int(i) => Datum::Int(*i),
                Value::Text(t) => Datum::Text(t),
                Value::Error(t) => Datum::Error(t),
            }
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-300i64..300).prop_map(Value::Int),
            proptest::collection::vec(any::<u8>(), 0..600).prop_map(Value::Text),
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(Value::Error),
        ]
    }

    proptest! {
        #[test]
        fn projecting_takes_the_columns_asked_for_and_null_past_the_end(
            values in proptest::collection::vec(value(), 0..20), columns in proptest::collection::vec(0usize..22, 0..20)
        ) {
            let row = Row::from_datums(values.iter().map(Value::datum));
            let want = columns.iter().map(|&c| values.get(c).map_or(Datum::Null, Value::datum));
            prop_assert_eq!(row.project(&columns), Row::from_datums(want));
            let all: Vec<usize> = (0..values.len()).collect();
            prop_assert_eq!(row.project(&all), row);
        }

        #[test]
        fn packing_and_unpacking_give_the_same_values(values in proptest::collection::vec(value(), 0..20)) {
            let row = Row::from_datums(values.iter().map(Value::datum));
            let back: Vec<_> = row.iter().collect();
            let want: Vec<_> = values.iter().map(Value::datum).collect();
            prop_assert_eq!(back, want);
        }

        #[test]
        fn a_row_comes_back_from_every_form_it_is_written_in(values in proptest::collection::vec(value(), 0..9)) {
            let row = Row::from_datums(values.iter().map(Value::datum));
            let bytes = bincode::serialize(&row).unwrap();
            prop_assert_eq!(bytes.len(), 8 + row.byte_len());
            prop_assert_eq!(&bincode::deserialize::<Row>(&bytes).unwrap(), &row);
            let text = serde_json::to_string(&row).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Row>(&text).unwrap(), &row);
        }

        #[test]
        fn concat_is_the_columns_of_both(a in proptest::collection::vec(value(), 0..9), b in proptest::collection::vec(value(), 0..9)) {
            let both = Row::from_datums(a.iter().map(Value::datum)).concat(&Row::from_datums(b.iter().map(Value::datum)));
            let want = Row::from_datums(a.iter().chain(b.iter()).map(Value::datum));
            prop_assert_eq!(both, want);
        }
    }
}
