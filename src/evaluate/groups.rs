//! Groups: several whole groups per statement, as many as make a message of moderate size.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio_postgres::types::ToSql;

use super::{Evaluator, Question, payload, push_texts};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{GroupBatch, GroupForm, RemoteWork, ViewId};
use crate::row::record::parse_record;
use crate::row::{Datum, Row, TypeClass};

/// A statement gets no further group once it has this many rows or bytes.
const ROWS: usize = 10_000;
const BYTES: usize = 8 << 20;
/// A group past this can't be sent: one parameter of the server is limited to 1 GB, and texts grow in quotes.
const LARGEST: usize = 512 << 20;

impl Evaluator {
    /// The answers of `groups`, in order. A group that fails has one row of errors.
    pub(super) async fn groups(
        &mut self,
        view: ViewId,
        batch: &Arc<GroupBatch>,
        groups: &[Vec<Row>],
    ) -> Result<Vec<Vec<Row>>> {
        let question = self.question(view, RemoteWork::Groups(batch)).await?;
        let mut classes: Vec<TypeClass> = batch.exprs.iter().map(|e| e.result.class).collect();
        if batch.form == GroupForm::Windows {
            classes.insert(0, TypeClass::Int8);
        }
        let failed =
            |payload: &str| vec![Row::from_datums(classes.iter().map(|_| Datum::Error(payload.as_bytes())))];
        let mut results: Vec<Vec<Row>> = vec![Vec::new(); groups.len()];
        let mut open = chunks(groups);
        open.reverse();
        while let Some(range) = open.pop() {
            let part = &groups[range.clone()];
            let bytes: usize = part.iter().flatten().map(Row::byte_len).sum();
            if bytes > LARGEST && part.len() == 1 {
                results[range.start] =
                    failed("54000:a group is too large for PostgreSQL to compute it in one statement");
                continue;
            }
            let begun = Instant::now();
            match self.ask_groups(&question, batch, part).await {
                Ok(answers) => {
                    for (number, record) in answers {
                        let row = parse_record(record.as_bytes(), &classes)?;
                        let place =
                            usize::try_from(number).ok().and_then(|i| results.get_mut(range.start + i));
                        place.ok_or_else(|| Error::internal("a computed group has no place"))?.push(row);
                    }
                }
                Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
                Err(e) => {
                    if let Some(payload) = self.timed_out(&e, begun, RemoteWork::Groups(batch)) {
                        results[range.start..].iter_mut().for_each(|r| *r = failed(&payload));
                        break;
                    }
                    if part.len() == 1 {
                        results[range.start] = failed(&payload(&e, RemoteWork::Groups(batch)));
                        continue;
                    }
                    let middle = range.start + part.len() / 2;
                    open.push(middle..range.end);
                    open.push(range.start..middle);
                }
            }
        }
        Ok(results)
    }

    /// Answers as (number of the group in `groups`, record text).
    async fn ask_groups(
        &self,
        question: &Question,
        batch: &GroupBatch,
        groups: &[Vec<Row>],
    ) -> Result<Vec<(i64, String)>> {
        let rows: usize = groups.iter().map(Vec::len).sum();
        let mut columns: Vec<Vec<Option<String>>> = vec![Vec::with_capacity(rows); batch.inputs.len()];
        let (mut numbers, mut positions) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        for (number, group) in groups.iter().enumerate() {
            for (position, row) in group.iter().enumerate() {
                numbers.push(Some(number.to_string()));
                positions.push(Some(position.to_string()));
                push_texts(row, &mut columns);
            }
        }
        let mut arrays: Vec<&(dyn ToSql + Sync)> = vec![&numbers, &positions];
        arrays.extend(columns.iter().map(|c| c as &(dyn ToSql + Sync)));
        self.answers(question, &arrays).await
    }
}

/// Ranges of groups that go into one statement each.
fn chunks(groups: &[Vec<Row>]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut rows, mut bytes) = (0, 0, 0);
    for (i, group) in groups.iter().enumerate() {
        let size: usize = group.iter().map(Row::byte_len).sum();
        if i > start && (rows + group.len() > ROWS || bytes + size > BYTES) {
            ranges.push(start..i);
            (start, rows, bytes) = (i, 0, 0);
        }
        rows += group.len();
        bytes += size;
    }
    if start < groups.len() {
        ranges.push(start..groups.len());
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_never_split_and_statements_stay_of_moderate_size() {
        let group = |rows: usize| vec![Row::empty(); rows];
        let groups: Vec<_> = [1, 9_000, 1_000, 1, 25_000, 3].into_iter().map(group).collect();
        assert_eq!(chunks(&groups), [0..2, 2..4, 4..5, 5..6]);
        assert!(chunks(&[]).is_empty());
        assert_eq!(chunks(&[Vec::new()]), vec![0..1]);
    }
}
