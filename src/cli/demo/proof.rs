//! The running proof: a stream table must hold exactly the rows of its query, at a moment when nothing is written.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio_postgres::IsolationLevel;
use tokio_util::sync::CancellationToken;

use super::views::STREAM_TABLES;
use super::workload::Shared;
use crate::error::Result;
use crate::postgres::session::SqlSession;
use crate::postgres::sessions::{Purpose, Target, error};

/// Time between two checks.
const PACE: Duration = Duration::from_secs(2);

/// What the proof has found so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// Comparisons that were completed.
    pub(super) checks: u64,
    /// Comparisons that found a difference, each with what differed.
    pub(super) differences: Vec<String>,
    /// Times that the stream tables did not catch up within the patience of `wait_for`.
    pub(super) late: u64,
    /// The stream table compared last.
    pub(super) last: Option<&'static str>,
}

/// The shared tally.
#[derive(Default)]
pub(super) struct Record(Mutex<Tally>);

impl Record {
    pub(super) fn read(&self) -> Tally {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Compares one stream table after the other, until `stop`; then all once more when `last_round` says so.
pub(super) struct Prover {
    client: SqlSession,
    /// One statement per stream table, in their order.
    comparisons: Vec<String>,
}

impl Prover {
    pub(super) async fn connect(app: &Target) -> Result<Prover> {
        let client = app.connect(Purpose::Tool).await?;
        let mut comparisons = Vec::new();
        for (name, _) in STREAM_TABLES {
            let facts =
                "select i.query_view::text, string_agg(quote_ident(a.attname), ', ' order by a.attnum)
                  from pgtrickle.stream_tables_info i
                  join pg_attribute a on a.attrelid = i.query_view and a.attnum > 0 and not a.attisdropped
                 where i.pgt_schema = 'shop' and i.pgt_name = $1 group by 1";
            let row = client.query_one(facts, &[&name]).await.map_err(error)?;
            comparisons.push(comparison(row.get(0), row.get(1), name));
        }
        Ok(Prover { client, comparisons })
    }

    pub(super) async fn run(
        &mut self,
        shared: &Shared,
        record: &Record,
        stop: CancellationToken,
    ) -> Result<()> {
        let mut turns = (0..self.comparisons.len()).cycle();
        loop {
            tokio::select! {
                () = tokio::time::sleep(PACE) => {}
                () = stop.cancelled() => return Ok(()),
            }
            if let Some(turn) = turns.next() {
                self.check(turn, shared, record).await?;
            }
        }
    }

    /// Compares every stream table once.
    pub(super) async fn round(&mut self, shared: &Shared, record: &Record) -> Result<()> {
        for turn in 0..self.comparisons.len() {
            self.check(turn, shared, record).await?;
        }
        Ok(())
    }

    /// The writers only pause until the snapshot is taken: the comparison itself reads from it while they go on.
    async fn check(&mut self, turn: usize, shared: &Shared, record: &Record) -> Result<()> {
        let (Some(statement), Some((name, _))) = (self.comparisons.get(turn), STREAM_TABLES.get(turn)) else {
            return Ok(());
        };
        let pause = shared.gate.write().await;
        let caught_up: bool =
            self.client.query_one("select pgtrickle.wait_for()", &[]).await.map_err(error)?.get(0);
        if !caught_up {
            record.write(|tally| tally.late += 1);
            return Ok(());
        }
        let begin = self.client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
        let transaction = begin.read_only(true).start().await.map_err(error)?;
        // The first statement takes the snapshot.
        transaction.query_one("select 1", &[]).await.map_err(error)?;
        drop(pause);
        let row = transaction.query_one(statement, &[]).await.map_err(error)?;
        transaction.commit().await.map_err(error)?;
        let (missing, surplus): (i64, i64) = (row.get(0), row.get(1));
        record.write(|tally| {
            tally.checks += 1;
            tally.last = Some(name);
            if missing != 0 || surplus != 0 {
                tally.differences.push(format!(
                    "shop.{name}: {missing} rows of the query are missing, {surplus} rows are not in the query"
                ));
            }
        });
        Ok(())
    }
}

/// Counts rows that only the query has and rows that only the table has, as multisets.
fn comparison(view: &str, columns: &str, table: &str) -> String {
    format!(
        "with expected as materialized (select {columns} from {view}),
              stored as materialized (select {columns} from shop.{table})
         select (select count(*) from (select * from expected except all select * from stored) as missing),
                (select count(*) from (select * from stored except all select * from expected) as surplus)"
    )
}
