//! Waiting until the stream tables of the copy are live, and comparing each with its query.
//!
//! The comparison is the owner's own recomputation, which writes only differences and tells their number: so the query's
//! functions run with the owner's rights, not with those of whoever rehearses.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::apply::owned::{Function, counts, statement};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::{Purpose, Target, error};

/// A stream table of the copy before the comparison.
pub(super) struct Live {
    view: ViewId,
    name: String,
    mode: String,
    status: String,
    /// Rows that the reconcile inserted, updated, deleted, and after how many seconds it was through.
    repaired: Option<([i64; 3], f64)>,
    error: Option<String>,
    /// A FULL one that its schedule did not recompute on the copy shows an older answer.
    as_of: Option<String>,
}

/// What came out.
pub(super) struct Checked {
    live: Live,
    /// Rows missing, different, and surplus; `None` where nothing was compared.
    difference: Option<[i64; 3]>,
}

/// When the reconcile of this life was through.
const LIVE: &str = "
    select s.pgt_id, pg_catalog.format('%I.%I', s.pgt_schema, s.pgt_name), s.refresh_mode, s.status,
           h.rows_inserted, h.rows_updated, h.rows_deleted,
           extract(epoch from h.end_time - p.started_at)::float8, s.last_error_message,
           case when s.refresh_mode = 'FULL' and h.end_time is null then s.data_timestamp::text end
      from pgtrickle.pgt_stream_tables s
      join pgtrickle.pgt_pipelines p on p.pipeline = s.pipeline
      left join lateral (select * from pgtrickle.pgt_refresh_history h
                          where h.pgt_id = s.pgt_id and h.status = 'COMPLETED' and h.start_time >= $2
                            and h.action in ('INITIAL', 'REINITIALIZE', 'FULL') order by h.refresh_id desc limit 1) h on true
     where s.pipeline = $1 order by s.pgt_id";

/// Waits until every stream table that is not suspended has been reconciled by the sidecar of the copy.
///
/// # Errors
/// `Apply` when `patience` is over. Ends early when the sidecar does: then its own error counts.
pub(super) async fn wait_live(
    target: &Target,
    pipeline: &str,
    sidecar: &JoinHandle<Result<()>>,
    patience: Duration,
) -> Result<Vec<Live>> {
    let client = target.connect(Purpose::Tool).await?;
    let began: std::time::SystemTime =
        client.query_one("select pg_catalog.pg_postmaster_start_time()", &[]).await.map_err(error)?.get(0);
    let deadline = Instant::now() + patience;
    loop {
        let rows = client.query(LIVE, &[&pipeline, &began]).await.map_err(error)?;
        let tables: Vec<Live> = rows.iter().map(Live::read).collect();
        if tables.iter().all(Live::settled) && served(&client, pipeline).await? {
            return Ok(tables);
        }
        if sidecar.is_finished() || Instant::now() > deadline {
            let open: Vec<String> = tables.iter().filter(|t| !t.settled()).map(Live::describe).collect();
            let what = format!("not live after {} s: {}", patience.as_secs(), open.join("; "));
            return Err(
                Error::new(ErrorKind::Apply, what).with_hint("see the log above; --patience waits longer")
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The frontier of the copy has passed its present position: the sidecar has taken over and has settled.
async fn served(client: &Client, pipeline: &str) -> Result<bool> {
    const SQL: &str =
        "select started_at >= pg_catalog.pg_postmaster_start_time() and pgtrickle.sidecar_alive(pipeline)
        from pgtrickle.pgt_pipelines where pipeline = $1";
    let row = client.query_one(SQL, &[&pipeline]).await.map_err(error)?;
    if !row.get::<_, Option<bool>>(0).unwrap_or(false) {
        return Ok(false);
    }
    const WAIT: &str = "select pgtrickle.wait_for(timeout => '10 s', pipeline => $1)";
    Ok(client.query_one(WAIT, &[&pipeline]).await.map_err(error)?.get(0))
}

/// Compares every stream table that is maintained with its query.
pub(super) async fn compare(target: &Target, tables: Vec<Live>) -> Result<Vec<Checked>> {
    let client = target.connect(Purpose::Tool).await?;
    let mut checked = Vec::new();
    for mut live in tables {
        let difference = match live.is_maintained() {
            false => None,
            true => match differences(&client, live.view).await {
                Ok(found) => Some(found),
                Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
                Err(e) => {
                    live.error = Some(e.to_string());
                    None
                }
            },
        };
        checked.push(Checked { live, difference });
    }
    Ok(checked)
}

async fn differences(client: &Client, view: ViewId) -> Result<[i64; 3]> {
    let sql = statement(client, Function::Recompute, view).await?;
    let row = client.query_one(&sql, &[]).await.map_err(error)?;
    counts::<3>(Function::Recompute, view, row.get(0))
}

impl Live {
    fn read(row: &tokio_postgres::Row) -> Live {
        let repaired = row.get::<_, Option<f64>>(7).map(|seconds| {
            let count = |i| row.get::<_, Option<i64>>(i).unwrap_or(0);
            ([count(4), count(5), count(6)], seconds)
        });
        Live {
            view: row.get(0),
            name: row.get(1),
            mode: row.get(2),
            status: row.get(3),
            repaired,
            error: row.get(8),
            as_of: row.get(9),
        }
    }

    fn is_maintained(&self) -> bool {
        self.status == "ACTIVE"
    }

    /// Nothing more is to be waited for.
    fn settled(&self) -> bool {
        match self.status.as_str() {
            "SUSPENDED" => true,
            "ACTIVE" => self.mode == "FULL" || self.repaired.is_some(),
            _ => false,
        }
    }

    fn describe(&self) -> String {
        let why = self.error.as_deref().map(|e| format!(" ({e})")).unwrap_or_default();
        format!("{} is {}{why}", self.name, self.status)
    }
}

impl Checked {
    /// What was suspended before is no failure of the restore.
    pub(super) fn passed(&self) -> bool {
        match self.difference {
            Some(difference) => difference == [0; 3] || self.live.as_of.is_some(),
            None => self.live.status == "SUSPENDED",
        }
    }

    fn verdict(&self) -> String {
        match (self.difference, &self.live.as_of, &self.live.error) {
            (Some([0, 0, 0]), ..) => "equal".to_owned(),
            (Some(_), Some(moment), _) => format!("not recomputed here: as of {moment}"),
            (Some([missing, wrong, surplus]), ..) => {
                format!("DIFFERS: {missing} rows missing, {wrong} wrong, {surplus} surplus")
            }
            (None, _, why) => {
                let why = why.as_deref().map(|w| format!(": {w}")).unwrap_or_default();
                format!("{}{why}", self.live.status.to_lowercase())
            }
        }
    }

    pub(super) fn cells(&self) -> [String; 5] {
        let (repaired, after) = match self.live.repaired {
            Some(([0, 0, 0], seconds)) => ("nothing".to_owned(), format!("{seconds:.1} s")),
            Some(([i, u, d], seconds)) => {
                (format!("{i} inserted, {u} updated, {d} deleted"), format!("{seconds:.1} s"))
            }
            None => (String::new(), String::new()),
        };
        [self.live.name.clone(), self.live.mode.clone(), repaired, after, self.verdict()]
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "stream_table": self.live.name,
            "mode": self.live.mode,
            "status": self.live.status,
            "passed": self.passed(),
            "verdict": self.verdict(),
            "repaired": self.live.repaired.map(|([i, u, d], _)| json!({"inserted": i, "updated": u, "deleted": d})),
            "live_after_seconds": self.live.repaired.map(|(_, seconds)| seconds),
            "difference": self.difference.map(|[m, w, s]| json!({"missing": m, "wrong": w, "surplus": s})),
        })
    }
}
