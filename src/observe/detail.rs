//! What is read only while somebody looks at it: one stream table in full, or the log of recoveries.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::redact;
use crate::analyzer::facts::StreamTable as Facts;
use crate::analyzer::{TreeSource, analyze};
use crate::error::{Error, Result};
use crate::plan::explain::explain;
use crate::postgres::sessions::error;

/// Something that a page wants to have read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// A stream table by its qualified name.
    Table(String),
    Recoveries,
}

/// What was read.
#[derive(Debug, Clone)]
pub enum Detail {
    Table(Box<TableDetail>),
    Recoveries(Box<Recoveries>),
}

/// A stream table in full. No row of it, and no value of a row.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TableDetail {
    /// The query as it was written; its constants with it.
    pub query: Option<String>,
    /// The plan as text, made from the catalog as it is now.
    #[serde(default)]
    pub plan: Option<String>,
    /// Why there is no plan.
    #[serde(default)]
    pub plan_error: Option<String>,
    pub key_columns: Vec<String>,
    pub created_at: Option<DateTime<Utc>>,
    pub user_writes: Option<String>,
    pub reads: Vec<ReadDetail>,
    /// Stream tables that read this one.
    pub read_by: Vec<String>,
    pub refreshes: Vec<Refresh>,
    #[serde(default)]
    pub state: Vec<OperatorState>,
}

/// Something that a stream table reads.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReadDetail {
    pub name: String,
    pub kind: String,
    pub columns: Vec<String>,
    pub capture: Option<String>,
}

/// A row of the refresh history.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Refresh {
    #[serde(default)]
    pub stream_table: String,
    pub action: String,
    pub status: String,
    pub start_time: Option<DateTime<Utc>>,
    pub duration_seconds: Option<f64>,
    pub rows_inserted: Option<i64>,
    pub rows_updated: Option<i64>,
    pub rows_deleted: Option<i64>,
    pub reason: Option<String>,
    pub initiated_by: Option<String>,
    pub sqlstate: Option<String>,
    /// Without values of rows.
    pub error: Option<String>,
}

/// What an operator of the dataflow holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct OperatorState {
    pub operator: String,
    /// Which of its parts: an operator may hold several things.
    #[serde(default)]
    pub part: Option<String>,
    pub rows: Option<i64>,
    pub bytes: Option<i64>,
    pub shared: bool,
}

/// The log of diagnoses and of what the reconciles after them wrote.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Recoveries {
    pub recoveries: Vec<Recovery>,
    pub reconciles: Vec<Refresh>,
}

/// A diagnosis for one source.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Recovery {
    pub source: String,
    pub diagnosis: String,
    pub cause: String,
    pub action: String,
    pub detected_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    pub acknowledged_at: Option<DateTime<Utc>>,
    pub rows_inserted: Option<i64>,
    pub rows_updated: Option<i64>,
    pub rows_deleted: Option<i64>,
}

const REFRESH: &str = "json_build_object('stream_table', format('%I.%I', t.pgt_schema, t.pgt_name), 'action', h.action,
    'status', h.status, 'start_time', h.start_time,
    'duration_seconds', extract(epoch from h.end_time - h.start_time)::float8, 'rows_inserted', h.rows_inserted,
    'rows_updated', h.rows_updated, 'rows_deleted', h.rows_deleted, 'reason', h.reason, 'initiated_by', h.initiated_by,
    'sqlstate', h.sqlstate, 'error', h.error_message)";

fn table_sql() -> String {
    format!(
        "select s.pgt_id, s.query_view::oid, json_build_object(
            'query', coalesce(s.original_query, s.defining_query), 'key_columns', coalesce(s.key_columns, '{{}}'),
            'created_at', s.created_at, 'user_writes', s.user_writes,
            'reads', (select coalesce(json_agg(json_build_object('name', d.source_name, 'kind', d.source_type,
                        'columns', coalesce(d.columns_used, '{{}}'), 'capture', c.capture) order by d.source_name), '[]')
                       from pgtrickle.pgt_dependencies d
                       left join pgtrickle.pgt_sources c on c.source_name = d.source_name and c.pipeline = s.pipeline
                      where d.pgt_id = s.pgt_id),
            'read_by', (select coalesce(json_agg(distinct format('%I.%I', o.pgt_schema, o.pgt_name)), '[]')
                       from pgtrickle.pgt_dependencies d join pgtrickle.pgt_stream_tables o on o.pgt_id = d.pgt_id
                      where d.source_name = format('%I.%I', s.pgt_schema, s.pgt_name)),
            'refreshes', (select coalesce(json_agg(r.j order by r.refresh_id desc), '[]') from (
                      select h.refresh_id, {REFRESH} as j from pgtrickle.pgt_history_columns h
                        join pgtrickle.pgt_stream_tables t on t.pgt_id = h.pgt_id
                       where h.pgt_id = s.pgt_id order by h.start_time desc limit 25) r))
         from pgtrickle.pgt_stream_tables s where format('%I.%I', s.pgt_schema, s.pgt_name) = $1 and s.pipeline = $2"
    )
}

fn recoveries_sql() -> String {
    format!(
        "select json_build_object(
            'recoveries', (select coalesce(json_agg(q order by q.recovery_id desc), '[]') from (
                select r.recovery_id, r.source_name as source, r.diagnosis, r.cause, r.action, r.detected_at,
                       r.completed_at, r.acknowledged_at, r.rows_inserted, r.rows_updated, r.rows_deleted
                  from pgtrickle.pgt_recoveries r where r.pipeline = $1 order by r.recovery_id desc limit 200) q),
            'reconciles', (select coalesce(json_agg(j), '[]') from (
                select {REFRESH} as j from pgtrickle.pgt_history_columns h
                  join pgtrickle.pgt_stream_tables t on t.pgt_id = h.pgt_id
                 where t.pipeline = $1 and h.action = 'REINITIALIZE' order by h.start_time desc limit 100) q))"
    )
}

const STREAM_TABLES: &str = "
    select i.pgt_relid::oid, i.pgt_id, i.refresh_mode = 'DIFFERENTIAL' and i.status in ('ACTIVE', 'OFFLINE')
      from pgtrickle.stream_tables_info i where i.pgt_relid is not null";

/// Reads what is wanted; `None`: there is no such stream table.
pub(super) async fn read(client: &mut Client, pipeline: &str, wanted: &Wanted) -> Result<Option<Detail>> {
    match wanted {
        Wanted::Recoveries => {
            let row = client.query_one(&recoveries_sql(), &[&pipeline]).await.map_err(error)?;
            let mut log: Recoveries = parse(row.get(0))?;
            log.recoveries.iter_mut().for_each(|recovery| {
                recovery.cause = redact::sentence(&recovery.cause);
                recovery.action = redact::sentence(&recovery.action);
            });
            log.reconciles.iter_mut().for_each(Refresh::redact);
            Ok(Some(Detail::Recoveries(Box::new(log))))
        }
        Wanted::Table(name) => {
            let row = client.query_opt(&table_sql(), &[name, &pipeline]).await.map_err(error)?;
            let Some(row) = row else { return Ok(None) };
            let (id, view): (i64, Option<u32>) = (row.get(0), row.get(1));
            let mut detail: TableDetail = parse(row.get(2))?;
            detail.refreshes.iter_mut().for_each(Refresh::redact);
            detail.state = state(client, id).await?;
            match plan(client, view).await {
                Ok(plan) => detail.plan = Some(plan),
                Err(e) => detail.plan_error = Some(redact::sentence(&e.to_string())),
            }
            Ok(Some(Detail::Table(Box::new(detail))))
        }
    }
}

impl Refresh {
    fn redact(&mut self) {
        self.error = redact::message(self.sqlstate.as_deref(), self.error.as_deref());
        self.reason = self.reason.as_deref().map(redact::sentence);
    }
}

fn parse<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| Error::internal(format!("a detail of the catalog is odd: {e}")))
}

/// What the operators hold, where this version of the schema stores it.
async fn state(client: &Client, id: i64) -> Result<Vec<OperatorState>> {
    const THERE: &str = "select to_regclass('pgtrickle.pgt_operator_state') is not null";
    if !client.query_one(THERE, &[]).await.map_err(error)?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    const SQL: &str = "select coalesce(json_agg(json_build_object('operator', o.operator, 'part', to_jsonb(o) ->> 'part', 'rows', o.rows, 'bytes', o.bytes,
            'shared', coalesce((to_jsonb(o) ->> 'shared')::bool, false)) order by o.bytes desc nulls last), '[]')
        from pgtrickle.pgt_operator_state o where o.pgt_id = $1";
    parse(client.query_one(SQL, &[&id]).await.map_err(error)?.get(0))
}

async fn plan(client: &mut Client, view: Option<u32>) -> Result<String> {
    let view = view.ok_or_else(|| Error::internal("the view of the defining query is gone"))?;
    let rows = client.query(STREAM_TABLES, &[]).await.map_err(error)?;
    let known: HashMap<u32, Facts> =
        rows.iter().map(|r| (r.get(0), Facts { view: r.get(1), incremental: r.get(2) })).collect();
    let analysis = analyze(client, TreeSource::View(view), &known).await?;
    match &analysis.plan {
        Ok(plan) => Ok(explain(plan, &analysis.names())),
        Err(refusal) => Err(Error::unsupported(refusal.reason.clone())),
    }
}
