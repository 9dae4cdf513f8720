//! Trigger capture (D8): installing it, its seal, and what its rows mean.
//!
//! Invariant: the rows recorded by all transactions that became visible between two looks add up to the difference of
//! the table, in whatever order they are read; only a TRUNCATE has a place in the order, and its lock orders it. So
//! rows are added up before anything is applied: a trigger of the user's that changes the same row again records its
//! change before the one that caused it.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::Client;

use super::source::{SourceSpec, Triggered};
use crate::dataflow::RowChange;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::sessions::{briefly, error};
use crate::row::record::parse_record;
use crate::row::{Row, RowBuilder, TypeClass};

/// Prefix of the messages of capture triggers, followed by the source's id.
pub const MESSAGES: &[u8] = b"pgtrickle:";

/// What a trigger recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Insert,
    Delete,
    Truncate,
    /// Nothing is recorded from here on: a bound was passed.
    Gap,
}

impl Op {
    pub fn parse(byte: u8) -> Result<Op> {
        match byte {
            b'I' => Ok(Op::Insert),
            b'D' => Ok(Op::Delete),
            b'T' => Ok(Op::Truncate),
            b'G' => Ok(Op::Gap),
            _ => Err(Error::new(ErrorKind::Protocol, "a captured change is of no known kind")),
        }
    }
}

/// One recorded row, not decoded yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// 64-bit id of the transaction.
    pub xid: u64,
    pub op: Op,
    /// Hash of the columns it was written with (`pgtrickle._shape_of`).
    pub shape: i64,
    /// The row's text, for inserts and deletes.
    pub record: String,
}

impl Captured {
    /// Memory it takes while it waits, in bytes.
    pub fn size(&self) -> usize {
        std::mem::size_of::<Captured>() + self.record.len()
    }
}

/// How triggers hand over what they record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Rows of the source's buffer.
    Buffer,
    /// Transactional logical messages.
    Message,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Buffer => "buffer",
            Mode::Message => "message",
        }
    }
}

/// The id of a message's source, from its prefix.
pub fn source_of(prefix: &[u8]) -> Option<i64> {
    std::str::from_utf8(prefix.strip_prefix(MESSAGES)?).ok()?.parse().ok()
}

/// Reads a message's content: `<token> <shape> <op><record>`. `None` if it does not prove that a trigger of ours wrote it
/// (anybody may emit messages).
pub fn parse_message(content: &[u8], token: &str, xid: u64) -> Option<Captured> {
    let text = std::str::from_utf8(content).ok()?;
    let rest = text.strip_prefix(token)?.strip_prefix(' ')?;
    let (shape, rest) = rest.split_once(' ')?;
    let op = Op::parse(*rest.as_bytes().first()?).ok()?;
    Some(Captured { xid, op, shape: shape.parse().ok()?, record: rest.get(1..)?.to_owned() })
}

/// Adds captured rows up: what is gone first, then what is new, in the columns of `spec`.
///
/// Errors: `Identity` if a row was written with other columns than `shape`, or recording was given up.
pub fn net(captured: &[Captured], spec: &SourceSpec, shape: i64) -> Result<Vec<RowChange>> {
    let Some(triggered) = spec.triggers() else {
        return Err(Error::internal("captured rows of a source without triggers"));
    };
    let mut changes = Vec::new();
    // A TRUNCATE waits for all writers before it, and keeps all later ones waiting.
    let start = match captured.iter().rposition(|c| c.op == Op::Truncate) {
        Some(position) => {
            changes.push(RowChange::Truncate);
            position + 1
        }
        None => 0,
    };
    let mut sums: HashMap<Row, i64> = HashMap::new();
    for row in captured.get(start..).unwrap_or_default() {
        let diff = match row.op {
            Op::Insert => 1,
            Op::Delete => -1,
            Op::Truncate => continue,
            Op::Gap => return Err(gap(spec)),
        };
        if row.shape != shape {
            let context = format!("{} changed its shape", spec.qualified());
            return Err(Error::new(ErrorKind::Identity, context));
        }
        *sums.entry(decode(&row.record, spec, triggered)?).or_insert(0) += diff;
    }
    let copies = |n: i64| 0..n.unsigned_abs();
    let (gone, new): (Vec<_>, Vec<_>) = sums.into_iter().filter(|(_, n)| *n != 0).partition(|(_, n)| *n < 0);
    changes
        .extend(gone.into_iter().flat_map(|(row, n)| copies(n).map(move |_| RowChange::Delete(row.clone()))));
    changes
        .extend(new.into_iter().flat_map(|(row, n)| copies(n).map(move |_| RowChange::Insert(row.clone()))));
    Ok(changes)
}

/// Recording of a source was given up.
pub fn gap(spec: &SourceSpec) -> Error {
    let context =
        format!("changes of {} were not recorded: its buffer had reached its bound", spec.qualified());
    Error::new(ErrorKind::Identity, context)
}

fn decode(record: &str, spec: &SourceSpec, triggered: &Triggered) -> Result<Row> {
    let classes: Vec<TypeClass> = triggered.fields.iter().map(|(_, class)| *class).collect();
    let whole = parse_record(record.as_bytes(), &classes)?;
    let fields: Vec<_> = whole.iter().collect();
    let mut builder = RowBuilder::default();
    for column in &spec.columns {
        let position = triggered.fields.iter().position(|(attnum, _)| *attnum == column.attnum);
        match position.and_then(|p| fields.get(p)) {
            Some(datum) => builder.push(*datum),
            None => return Err(Error::internal("a held column is no field of the captured row")),
        }
    }
    Ok(builder.finish())
}

/// Registers sources; returns their ids in order.
pub async fn source_ids(client: &Client, pipeline: &str, oids: &[u32]) -> Result<Vec<i64>> {
    const SQL: &str = "select pgtrickle._source_ids($1, array(select o::pg_catalog.regclass
        from pg_catalog.unnest($2::pg_catalog.oid[]) with ordinality u(o, n) order by n))";
    Ok(client.query_one(SQL, &[&pipeline, &oids]).await.map_err(error)?.get(0))
}

/// Why triggers can't be installed on a source; `None` if they can.
pub async fn obstacle(client: &Client, source_id: i64) -> Result<Option<String>> {
    const SQL: &str = "select pgtrickle._fallback_obstacle($1)";
    Ok(client.query_one(SQL, &[&source_id]).await.map_err(error)?.get(0))
}

/// What is wrong with a source's triggers; `None` if they record everything.
pub async fn broken_seal(client: &Client, source_id: i64, mode: Mode) -> Result<Option<String>> {
    const SQL: &str = "select pgtrickle._broken_seal($1, $2)";
    Ok(client.query_one(SQL, &[&source_id, &mode.name()]).await.map_err(error)?.get(0))
}

/// Whether a broken seal (see `pgtrickle._broken_seal`) is that of triggers that nobody touched: the table became part of a
/// hierarchy, or of a subscription, since they were set.
pub fn needs_other_triggers(broken: &str) -> bool {
    broken.contains(" does not fire for what arrives through ")
}

/// Installs the triggers where they are not intact. After a gap they are installed anew, under a lock that ends all who
/// may have seen the mark: afterwards everything is recorded again. Gives way to the application's locks.
pub async fn install(client: &Client, source_id: i64, mode: Mode, patience: Duration) -> Result<()> {
    let sound = broken_seal(client, source_id, mode).await?.is_none();
    let gap = sound && mode == Mode::Buffer && has_gap(client, source_id).await?;
    if sound && !gap {
        return Ok(());
    }
    set(client, source_id, mode.name(), gap, patience).await
}

/// Sets the triggers. New writers of the table queue behind a lock that waits, so each attempt is short.
async fn set(client: &Client, source_id: i64, mode: &str, fresh: bool, patience: Duration) -> Result<()> {
    const SQL: &str = "select pgtrickle._install_capture($1, $2, $3)";
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        client.batch_execute("set lock_timeout = '150ms'").await.map_err(error)?;
        let outcome = client.execute(SQL, &[&source_id, &mode, &fresh]).await.map_err(error);
        client.batch_execute("set lock_timeout = '5s'").await.map_err(error)?;
        match outcome {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Contention && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(e) => return Err(e.during("setting capture triggers")),
        }
    }
}

async fn has_gap(client: &Client, source_id: i64) -> Result<bool> {
    let sql = format!("select exists (select from pgtrickle_changes.changes_{source_id} where op = 'G')");
    Ok(client.query_one(&sql, &[]).await.map_err(error)?.get(0))
}

/// Drops the triggers, the function and the buffer of a source. A table that is gone has taken its triggers along.
pub async fn remove(client: &Client, source_id: i64, patience: Duration) -> Result<()> {
    set(client, source_id, "off", false, patience).await?;
    const FORGET: &str = "select pgtrickle._forget_capture($1)";
    briefly(client, async { client.execute(FORGET, &[&source_id]).await.map_err(error) }).await.map(drop)
}

/// Sources with triggers or buffers that are not in `needed`.
pub async fn left_over(client: &Client, pipeline: &str, needed: &[i64]) -> Result<Vec<i64>> {
    const SQL: &str = "select s.source_id from pgtrickle.pgt_sources s
        where s.pipeline = $1 and s.source_id <> all ($2)
          and (pg_catalog.to_regclass(pg_catalog.format('pgtrickle_changes.changes_%s', s.source_id)) is not null
            or exists (select from pg_catalog.pg_trigger t where t.tgrelid = s.source
                and t.tgname = pg_catalog.format('pgtrickle_capture_insert_%s', s.source_id)))";
    let rows = client.query(SQL, &[&pipeline, &needed]).await.map_err(error)?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// Forgets registered sources that no stream table reads, and of which nothing is left.
pub async fn forget_unused(client: &Client, pipeline: &str) -> Result<()> {
    const SQL: &str = "delete from pgtrickle.pgt_sources s where s.pipeline = $1
        and not exists (select from pgtrickle.pgt_dependencies d join pgtrickle.pgt_stream_tables t on t.pgt_id = d.pgt_id
            where t.pipeline = s.pipeline and (d.source_name = s.source_name or d.source::oid = s.source::oid))
        and pg_catalog.to_regclass(pg_catalog.format('pgtrickle_changes.changes_%s', s.source_id)) is null
        and not exists (select from pg_catalog.pg_proc p where p.proname = pg_catalog.format('attach_%s', s.source_id)
            and p.pronamespace = 'pgtrickle_queries'::pg_catalog.regnamespace)";
    client.execute(SQL, &[&pipeline]).await.map_err(error)?;
    Ok(())
}

/// The present shape of a relation, as triggers record it.
pub async fn shape(client: &Client, oid: u32) -> Result<i64> {
    const SQL: &str = "select coalesce(pgtrickle._shape_of($1), 0)";
    Ok(client.query_one(SQL, &[&oid]).await.map_err(error)?.get(0))
}

/// The secret that proves messages of a pipeline's triggers.
pub async fn token(client: &Client, pipeline: &str) -> Result<String> {
    const SQL: &str = "insert into pgtrickle.pgt_tokens (pipeline) values ($1)
        on conflict (pipeline) do update set token = pgt_tokens.token returning token";
    Ok(client.query_one(SQL, &[&pipeline]).await.map_err(error)?.get(0))
}

/// Where a source's capture stands, for `pgt_sources`.
pub async fn note_capture(
    client: &Client,
    source_id: i64,
    capture: &str,
    reason: Option<&str>,
) -> Result<()> {
    const SQL: &str = "update pgtrickle.pgt_sources s set capture = $2, capture_reason = $3,
            capture_since = case when s.capture = $2 then s.capture_since else pg_catalog.clock_timestamp() end,
            gap_since = null, fallback_reason = o.obstacle, fallback_ready = o.obstacle is null
        from (select pgtrickle._fallback_obstacle($1) as obstacle) o
        where s.source_id = $1 and (s.capture, s.capture_reason, s.fallback_ready, s.fallback_reason)
            is distinct from ($2, $3, o.obstacle is null, o.obstacle)";
    client.execute(SQL, &[&source_id, &capture, &reason]).await.map_err(error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::source::{CapturedBy, HeldColumn};
    use crate::row::Datum;
    use std::sync::Arc;

    fn spec() -> SourceSpec {
        let column =
            |attnum, name: &str, class| HeldColumn { attnum, name: name.into(), type_oid: 23, class };
        let fields = vec![(1, TypeClass::Text), (2, TypeClass::Int4), (4, TypeClass::Int4)];
        SourceSpec {
            oid: 7,
            schema: "s".into(),
            name: "t".into(),
            captured_by: CapturedBy::Triggers(Arc::new(Triggered { source_id: 3, from_wal: true, fields })),
            identity: 1,
            columns: vec![column(2, "id", TypeClass::Int4), column(4, "v", TypeClass::Int4)],
        }
    }

    fn captured(op: Op, record: &str) -> Captured {
        Captured { xid: 9, op, shape: 5, record: record.into() }
    }

    fn row(id: i64, v: i64) -> Row {
        Row::from_datums([Datum::Int(id), Datum::Int(v)])
    }

    #[test]
    fn a_change_that_was_recorded_before_its_cause_adds_up() {
        // update (1,0) -> (1,1), whose row trigger updates it to (1,2) first.
        let rows = [
            captured(Op::Delete, "(a,1,1)"),
            captured(Op::Insert, "(a,1,2)"),
            captured(Op::Delete, "(a,1,0)"),
            captured(Op::Insert, "(a,1,1)"),
        ];
        let changes = net(&rows, &spec(), 5).unwrap();
        assert_eq!(changes, [RowChange::Delete(row(1, 0)), RowChange::Insert(row(1, 2))]);
    }

    #[test]
    fn a_truncate_ends_what_was_before_it() {
        let rows =
            [captured(Op::Insert, "(a,1,1)"), captured(Op::Truncate, ""), captured(Op::Insert, "(,2,2)")];
        let changes = net(&rows, &spec(), 5).unwrap();
        assert_eq!(changes, [RowChange::Truncate, RowChange::Insert(row(2, 2))]);
    }

    #[test]
    fn another_shape_and_a_gap_mean_that_the_source_is_read_again() {
        let other = [captured(Op::Insert, "(a,1)")];
        assert_eq!(net(&other, &spec(), 6).unwrap_err().kind(), ErrorKind::Identity);
        let gap = [captured(Op::Gap, "")];
        assert_eq!(net(&gap, &spec(), 5).unwrap_err().kind(), ErrorKind::Identity);
    }

    #[test]
    fn a_message_without_the_token_is_not_ours() {
        let ours = parse_message(b"abc -12 I(1,\"x y\")", "abc", 4).unwrap();
        assert_eq!((ours.op, ours.shape, ours.record.as_str()), (Op::Insert, -12, "(1,\"x y\")"));
        for forged in ["abd 1 I(1)", "abc", "abc 1 ", "abc x I(1)", "", "abc 1 Z"] {
            assert_eq!(parse_message(forged.as_bytes(), "abc", 4), None, "{forged}");
        }
        assert_eq!(source_of(b"pgtrickle:17"), Some(17));
        assert_eq!(source_of(b"pgtrickle"), None);
    }
}
