//! A delta as the two arrays that an apply function takes: rows to delete, rows to insert, as composite literals.

use std::collections::HashMap;

use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::kind_of;
use crate::row::datum::error_parts;
use crate::row::record::write_record;
use crate::row::{Datum, Row};

/// How a stream table stores its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableForm {
    pub view: ViewId,
    /// Positions of the primary key's columns; `None`: row-id form, rows by image with multiplicity.
    pub key: Option<Vec<usize>>,
}

/// What one call of an apply function gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Literals of rows to delete, one per stored row.
    pub deleted: Vec<String>,
    /// Literals of rows to insert, or to replace those of the same key.
    pub inserted: Vec<String>,
    /// How many of `inserted` replace a row.
    pub replaced: usize,
    /// All stream tables that it was computed through.
    pub upstreams: Vec<ViewId>,
}

impl Batch {
    /// Splits a consolidated delta. In the keyed form a key that has an insert is not deleted: it is replaced.
    ///
    /// Errors: an error value in the output (with its SQLSTATE), a key that is not unique (the plan's proof failed), a
    /// negative multiplicity.
    pub fn new(form: &TableForm, delta: &[(Row, i64)]) -> Result<Batch> {
        for (row, diff) in delta {
            if *diff > 0 {
                check(row)?;
            }
        }
        match &form.key {
            None => Ok(Batch::bag(delta)),
            Some(key) => Batch::keyed(key, delta),
        }
    }

    fn bag(delta: &[(Row, i64)]) -> Batch {
        let mut batch = Batch::default();
        for (row, diff) in delta {
            let list = if *diff > 0 { &mut batch.inserted } else { &mut batch.deleted };
            let text = literal(row);
            list.extend(std::iter::repeat_n(text, diff.unsigned_abs() as usize));
        }
        batch
    }

    fn keyed(key: &[usize], delta: &[(Row, i64)]) -> Result<Batch> {
        let mut batch = Batch::default();
        let mut inserts: HashMap<Row, bool> = HashMap::new();
        for (row, diff) in delta.iter().filter(|(_, diff)| *diff > 0) {
            if *diff != 1 || inserts.insert(row.project(key), false).is_some() {
                return Err(not_unique());
            }
            batch.inserted.push(literal(row));
        }
        for (row, diff) in delta.iter().filter(|(_, diff)| *diff < 0) {
            if *diff != -1 {
                return Err(not_unique());
            }
            match inserts.get_mut(&row.project(key)) {
                None => batch.deleted.push(literal(row)),
                Some(true) => return Err(not_unique()),
                Some(replaces) => {
                    *replaces = true;
                    batch.replaced += 1;
                }
            }
        }
        Ok(batch)
    }

    pub fn is_empty(&self) -> bool {
        self.deleted.is_empty() && self.inserted.is_empty()
    }
}

fn not_unique() -> Error {
    Error::new(ErrorKind::Apply, "the key that was proven for this query is not unique")
        .with_sqlstate("21000")
        .with_hint("this is a bug of pgtrickle: please report the query")
}

fn check(row: &Row) -> Result<()> {
    match row.iter().find(Datum::is_error) {
        Some(Datum::Error(payload)) => {
            let (state, message, statement) = error_parts(payload);
            let kind = match kind_of(&state) {
                ErrorKind::Contention => ErrorKind::Contention,
                _ => ErrorKind::Apply,
            };
            let hint = match state.as_str() {
                _ if kind == ErrorKind::Contention => {
                    "a function of the query waits for a lock that another session holds; it is tried again"
                }
                "57014" => {
                    "make its functions faster or raise evaluation_timeout, then run pgtrickle.resume_stream_table"
                }
                _ => "mend the source row, then run pgtrickle.resume_stream_table",
            };
            let error = Error::new(kind, format!("the query fails for a row: {message}"));
            let error = error.with_sqlstate(state).with_hint(hint);
            Err(match statement {
                Some(statement) => error.with_statement(statement),
                None => error,
            })
        }
        _ => Ok(()),
    }
}

fn literal(row: &Row) -> String {
    let mut text = Vec::new();
    write_record(row.iter(), &mut text);
    // Rows come from UTF-8 text; anything else was refused by the decoder.
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: i64, value: &str) -> Row {
        Row::from_datums([Datum::Int(key), Datum::Text(value.as_bytes())])
    }

    #[test]
    fn a_changed_row_of_a_keyed_table_is_replaced_not_deleted() {
        let form = TableForm { view: 1, key: Some(vec![0]) };
        let delta = [(row(1, "a"), -1), (row(1, "b"), 1), (row(2, "c"), -1), (row(3, "d"), 1)];
        let batch = Batch::new(&form, &delta).unwrap();
        assert_eq!(batch.deleted, ["(2,c)"]);
        assert_eq!(batch.inserted, ["(1,b)", "(3,d)"]);
        assert_eq!(batch.replaced, 1);
    }

    #[test]
    fn two_rows_of_one_key_are_an_error_instead_of_an_overwrite() {
        let form = TableForm { view: 1, key: Some(vec![0]) };
        let error = Batch::new(&form, &[(row(1, "a"), 1), (row(1, "b"), 1)]).unwrap_err();
        assert_eq!(error.sqlstate(), Some("21000"));
    }

    #[test]
    fn a_lock_that_an_evaluation_did_not_get_is_contention_and_other_errors_are_the_rows() {
        let form = TableForm { view: 1, key: None };
        let kind = |payload: &str| {
            let row = Row::from_datums([Datum::Error(payload.as_bytes())]);
            Batch::new(&form, &[(row, 1)]).unwrap_err().kind()
        };
        assert_eq!(kind("55P03:canceling statement due to lock timeout"), ErrorKind::Contention);
        assert_eq!(kind("22012:division by zero"), ErrorKind::Apply);
    }

    #[test]
    fn a_bag_repeats_rows_by_multiplicity() {
        let form = TableForm { view: 1, key: None };
        let batch = Batch::new(&form, &[(row(1, "a"), 2), (row(1, "b"), -3)]).unwrap();
        assert_eq!((batch.inserted.len(), batch.deleted.len()), (2, 3));
    }

    #[test]
    fn an_error_in_the_output_carries_its_sqlstate() {
        let form = TableForm { view: 1, key: None };
        let bad = Row::from_datums([Datum::Error(b"22012:division by zero")]);
        let error = Batch::new(&form, &[(bad, 1)]).unwrap_err();
        assert_eq!((error.sqlstate(), error.kind()), (Some("22012"), ErrorKind::Apply));
    }
}
