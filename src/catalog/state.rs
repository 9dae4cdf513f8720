//! The figures of operators' state in the catalog, for SQL, the command line and pages.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::error::Result;
use crate::plan::ViewId;
use crate::postgres::sessions::error;

/// One row of `pgt_operator_state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The line of the plan.
    pub operator: String,
    /// Which part of the operator's state.
    pub part: String,
    pub rows: i64,
    pub bytes: i64,
    /// Others use it too.
    pub shared: bool,
}

/// Entries by stream table and position in its plan.
pub type Entries = BTreeMap<(ViewId, i32), Entry>;

/// Stores what differs between `before` and `now`; without `before` whatever an earlier life left is replaced.
pub async fn store(client: &Client, pipeline: &str, before: Option<&Entries>, now: &Entries) -> Result<()> {
    // Several arrays in one `unnest` are syntax, always the system's own; a qualified name would be a function of one.
    const SQL: &str = "with gone as (
            delete from pgtrickle.pgt_operator_state o using unnest($1::int8[], $2::int4[]) as g(id, position)
             where o.pgt_id = g.id and o.position = g.position),
        stale as (
            delete from pgtrickle.pgt_operator_state o where $10
               and not exists (select from pgtrickle.pgt_stream_tables s where s.pgt_id = o.pgt_id and s.pipeline <> $11)
               and not exists (select from unnest($3::int8[], $4::int4[]) as n(id, position)
                                where n.id = o.pgt_id and n.position = o.position))
        insert into pgtrickle.pgt_operator_state (pgt_id, position, operator, part, rows, bytes, shared)
        select * from unnest($3::int8[], $4::int4[], $5::text[], $6::text[], $7::int8[], $8::int8[], $9::bool[])
        on conflict (pgt_id, position) do update set operator = excluded.operator, part = excluded.part,
            rows = excluded.rows, bytes = excluded.bytes, shared = excluded.shared, updated_at = pg_catalog.clock_timestamp()";
    let none = Entries::new();
    let known = before.unwrap_or(&none);
    let gone = || known.keys().filter(|key| !now.contains_key(key));
    let changed = || now.iter().filter(|(key, entry)| known.get(key) != Some(entry));
    let (gone_ids, gone_positions): (Vec<i64>, Vec<i32>) = gone().copied().unzip();
    let (ids, positions): (Vec<i64>, Vec<i32>) = changed().map(|(key, _)| *key).unzip();
    let operators: Vec<&str> = changed().map(|(_, e)| e.operator.as_str()).collect();
    let parts: Vec<&str> = changed().map(|(_, e)| e.part.as_str()).collect();
    let (rows, bytes): (Vec<i64>, Vec<i64>) = changed().map(|(_, e)| (e.rows, e.bytes)).unzip();
    let shared: Vec<bool> = changed().map(|(_, e)| e.shared).collect();
    let first = before.is_none();
    client
        .execute(
            SQL,
            &[
                &gone_ids,
                &gone_positions,
                &ids,
                &positions,
                &operators,
                &parts,
                &rows,
                &bytes,
                &shared,
                &first,
                &pipeline,
            ],
        )
        .await
        .map_err(error)?;
    Ok(())
}
