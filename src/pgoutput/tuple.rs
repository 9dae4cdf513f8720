//! Tuples to rows: columns found by name, old images, unchanged TOAST values.
//!
//! Invariant: a row has exactly the wanted columns in the wanted order, whatever order the relation (each leaf of a
//! partitioned table has its own, hazard A16) sends them in; a value that was not sent is never shown as NULL: it is
//! listed in [`PartialRow::missing`] or not part of the row ([`KeyRow`]). Place in the data's way: between messages
//! and assembled transactions.

use std::sync::Arc;

use smallvec::SmallVec;

use super::messages::{OldTuple, Tuple, Value};
use super::relation::Relation;
use crate::error::{Error, ErrorKind, Result};
use crate::row::datum::datum_from_text;
use crate::row::{Datum, Row, RowBuilder, TypeClass};

/// An attribute that the pipeline needs, as the catalog describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedAttribute {
    pub name: String,
    /// `pg_attribute.atttypid` (of a domain: its own OID); a relation that sends another type does not fit.
    pub type_oid: u32,
    pub class: TypeClass,
}

/// Where a wanted column is in a tuple and how its text is packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedColumn {
    pub position: usize,
    pub class: TypeClass,
    /// Part of the replica identity; false for all columns under FULL and NOTHING.
    pub is_key: bool,
}

/// How to read the tuples of one relation, valid until its next relation message.
#[derive(Debug, Clone)]
pub struct ColumnMap {
    relation: Arc<Relation>,
    wanted: Vec<WantedColumn>,
    key: Arc<[usize]>,
    key_complete: bool,
}

/// Why a relation's tuples cannot be read into the wanted columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// The relation does not send a column of this name: dropped, renamed, generated or not published.
    Missing { column: String },
    /// The column has another type than the catalog said.
    Type { column: String, wanted: u32, sent: u32 },
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Misfit::Missing { column } => write!(f, "column {column} is not sent"),
            Misfit::Type { column, wanted, sent } => {
                write!(f, "column {column} is sent with type {sent} instead of {wanted}")
            }
        }
    }
}

/// The new image of an inserted or updated row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewTuple {
    Full(Row),
    /// Some values were not sent: take them from the old row.
    Partial(PartialRow),
}

/// A row without the values that an UPDATE left where they were (unchanged TOAST).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialRow {
    /// All wanted columns; those in `missing` hold NULL as a place holder and must not be read.
    pub row: Row,
    /// Indexes into the wanted columns, ascending, never empty.
    pub missing: Vec<usize>,
}

impl PartialRow {
    /// The complete new row; `old` is the row before the update with all wanted columns.
    pub fn fill(&self, old: &Row) -> Row {
        let mut missing = self.missing.iter().copied().peekable();
        let mut old = old.iter();
        Row::from_datums(self.row.iter().enumerate().map(|(i, new)| {
            let before = old.next().unwrap_or(Datum::Null);
            if missing.next_if_eq(&i).is_some() { before } else { new }
        }))
    }
}

/// The replica identity of the old image, without the other columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// The values of `columns`, in that order.
    pub row: Row,
    /// Indexes into the wanted columns, ascending.
    pub columns: Arc<[usize]>,
}

impl KeyRow {
    /// The given wanted columns, in the given order; `None` if one of them was not sent.
    pub fn project(&self, columns: &[usize]) -> Option<Row> {
        let places: Option<SmallVec<[usize; 8]>> =
            columns.iter().map(|c| self.columns.binary_search(c).ok()).collect();
        Some(self.row.project(&places?))
    }
}

/// The old image of an updated or deleted row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldRow {
    Key(KeyRow),
    /// All wanted columns (REPLICA IDENTITY FULL).
    Full(Row),
}

impl OldRow {
    /// Packed size in bytes.
    pub fn byte_len(&self) -> usize {
        match self {
            OldRow::Key(k) => k.row.byte_len(),
            OldRow::Full(row) => row.byte_len(),
        }
    }
}

type Values<'a> = SmallVec<[Value<'a>; 16]>;

impl ColumnMap {
    /// Finds the wanted attributes in `relation` by name.
    pub fn new(relation: &Arc<Relation>, attributes: &[WantedAttribute]) -> Result<ColumnMap, Misfit> {
        let has_key = matches!(relation.replica_identity, 'd' | 'i');
        let mut wanted = Vec::with_capacity(attributes.len());
        for a in attributes {
            let found = relation.columns.iter().enumerate().find(|(_, c)| c.name == a.name);
            let Some((position, column)) = found else {
                return Err(Misfit::Missing { column: a.name.clone() });
            };
            if column.type_oid != a.type_oid {
                return Err(Misfit::Type {
                    column: a.name.clone(),
                    wanted: a.type_oid,
                    sent: column.type_oid,
                });
            }
            wanted.push(WantedColumn { position, class: a.class, is_key: has_key && column.is_key });
        }
        let key: Arc<[usize]> =
            (0..wanted.len()).filter(|&i| wanted.get(i).is_some_and(|w| w.is_key)).collect();
        let in_identity = |(i, c): (usize, &super::relation::RelationColumn)| {
            c.is_key && !wanted.iter().any(|w: &WantedColumn| w.position == i)
        };
        let key_complete = !key.is_empty() && !relation.columns.iter().enumerate().any(in_identity);
        Ok(ColumnMap { relation: relation.clone(), wanted, key, key_complete })
    }

    /// The wanted columns, in row order.
    pub fn wanted(&self) -> &[WantedColumn] {
        &self.wanted
    }

    /// Wanted columns that belong to the replica identity, ascending. Empty under FULL and NOTHING.
    pub fn key(&self) -> &Arc<[usize]> {
        &self.key
    }

    /// Whether [`ColumnMap::key`] is the whole replica identity, so that it names one row.
    pub fn key_complete(&self) -> bool {
        self.key_complete
    }

    pub fn relation(&self) -> &Arc<Relation> {
        &self.relation
    }

    /// The new row of an INSERT or UPDATE; values that it left out are taken from `old` where that carries them.
    pub fn new_row(
        &self,
        old: Option<&OldTuple<'_>>,
        new: &Tuple<'_>,
        builder: &mut RowBuilder,
    ) -> Result<NewTuple> {
        let values = self.values(new)?;
        let mut missing = Vec::new();
        let mut before: Option<Values<'_>> = None;
        builder.clear();
        for (i, column) in self.wanted.iter().enumerate() {
            let mut value = value_at(&values, column);
            if value == Value::UnchangedToast {
                let sent = match old {
                    Some(OldTuple::Full(t)) => Some(t),
                    Some(OldTuple::Key(t)) if column.is_key => Some(t),
                    _ => None,
                };
                match sent {
                    Some(tuple) => {
                        let before = match &mut before {
                            Some(values) => values,
                            none => none.insert(self.values(tuple)?),
                        };
                        value = value_at(before, column);
                    }
                    None => {
                        missing.push(i);
                        value = Value::Null;
                    }
                }
            }
            builder.push(self.datum(column, value)?);
        }
        let row = builder.finish();
        Ok(if missing.is_empty() {
            NewTuple::Full(row)
        } else {
            NewTuple::Partial(PartialRow { row, missing })
        })
    }

    /// The old image of an UPDATE or DELETE.
    pub fn old_row(&self, old: &OldTuple<'_>, builder: &mut RowBuilder) -> Result<OldRow> {
        builder.clear();
        match old {
            OldTuple::Full(tuple) => {
                let values = self.values(tuple)?;
                for column in &self.wanted {
                    builder.push(self.datum(column, value_at(&values, column))?);
                }
                Ok(OldRow::Full(builder.finish()))
            }
            OldTuple::Key(tuple) => {
                let values = self.values(tuple)?;
                for column in self.wanted.iter().filter(|c| c.is_key) {
                    builder.push(self.datum(column, value_at(&values, column))?);
                }
                Ok(OldRow::Key(KeyRow { row: builder.finish(), columns: self.key.clone() }))
            }
        }
    }

    fn values<'a>(&self, tuple: &Tuple<'a>) -> Result<Values<'a>> {
        if tuple.len() != self.relation.columns.len() {
            return Err(Error::new(
                ErrorKind::Protocol,
                format!(
                    "a tuple of {} has {} columns, the relation was described with {}",
                    self.relation,
                    tuple.len(),
                    self.relation.columns.len()
                ),
            ));
        }
        Ok(tuple.values().collect())
    }

    fn datum<'a>(&self, column: &WantedColumn, value: Value<'a>) -> Result<Datum<'a>> {
        match value {
            Value::Null => Ok(Datum::Null),
            Value::Text(text) => {
                datum_from_text(column.class, text).map_err(|e| e.during(self.name_of(column)))
            }
            // The server flattens old images before it logs them (`ExtractReplicaIdentity`).
            Value::UnchangedToast => Err(Error::new(
                ErrorKind::Protocol,
                format!("{}: an old image lacks the value", self.name_of(column)),
            )),
        }
    }

    #[cold]
    fn name_of(&self, column: &WantedColumn) -> String {
        let name = self.relation.columns.get(column.position).map_or("?", |c| c.name.as_str());
        format!("{} column {name}", self.relation)
    }
}

fn value_at<'a>(values: &Values<'a>, column: &WantedColumn) -> Value<'a> {
    values.get(column.position).copied().unwrap_or(Value::Null)
}
