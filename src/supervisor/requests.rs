//! What SQL functions ask the live sidecar (D12), by logical messages with the prefix `pgtrickle`.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::obstacle::{self, Capturing};
use crate::analyzer::facts::StreamTable;
use crate::analyzer::verify::work_sql;
use crate::analyzer::{TreeSource, analyze};
use crate::catalog::store;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::error;

/// How long an analysis gives way to locks of the application. They may be the caller's own: then the decision falls
/// after its commit.
const PATIENCE: Duration = Duration::from_secs(2);

/// Prefix of the messages.
pub const PREFIX: &[u8] = b"pgtrickle";

/// A request, as the SQL side writes it.
#[derive(Debug, Clone, Deserialize)]
pub struct Request {
    pub request: i64,
    pub kind: String,
    /// Whom it is for: every sidecar of the database receives it.
    #[serde(default)]
    pub pipeline: Option<String>,
    #[serde(default)]
    pub role: Option<String>,
    #[serde(default)]
    pub pgt_id: Option<ViewId>,
    /// The query with all names qualified (`pg_get_viewdef` under an empty search_path).
    #[serde(default)]
    pub query: Option<String>,
    #[serde(default)]
    pub columns: Vec<String>,
    /// The owner of the query's view.
    #[serde(default)]
    pub owner: Option<u32>,
    #[serde(default)]
    pub mode: Option<String>,
}

/// Reads a message's content. Anybody may write such messages: what does not parse is ignored.
pub fn parse(content: &[u8]) -> Option<Request> {
    serde_json::from_slice(content).ok()
}

/// Plans the query of a stream table that is being created and stores the answer.
pub async fn answer_analysis(
    client: &mut Client,
    request: &Request,
    stream_tables: &HashMap<u32, StreamTable>,
    capturing: &Capturing,
) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut analysed = analysis(client, request, stream_tables, capturing).await;
    while analysed.as_ref().is_err_and(|e| e.kind() == ErrorKind::Contention)
        && tokio::time::Instant::now() < deadline
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
        analysed = analysis(client, request, stream_tables, capturing).await;
    }
    let answer = match analysed {
        Ok(answer) => answer,
        Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
        Err(e) if e.sqlstate() == Some("42501") => not_ours(client, request, &e).await?,
        Err(e) => refusal(&e),
    };
    store::answer(client, request.request, &answer, request.role.as_deref()).await
}

async fn analysis(
    client: &mut Client,
    request: &Request,
    stream_tables: &HashMap<u32, StreamTable>,
    capturing: &Capturing,
) -> Result<Value> {
    let query =
        request.query.as_deref().ok_or_else(|| Error::internal("an analysis request without a query"))?;
    // Only for the answer: after the commit the view itself tells whose it is.
    let source = TreeSource::Text { query, columns: &request.columns, owner: request.owner };
    let analysis = analyze(client, source, stream_tables).await?;
    let sources: Vec<Value> = analysis
        .sources
        .iter()
        .map(|s| {
            let name = |a: &i16| s.columns.iter().find(|c| c.attnum == *a).map(|c| c.name.clone());
            let columns: Vec<String> = s.attributes.iter().filter_map(name).collect();
            json!({"relation": format!("{}.{}", s.schema, s.name), "type": "TABLE", "columns": columns})
        })
        .collect();
    let full = |reason: &str, hint: Option<&str>| json!({"ok": true, "mode": "FULL", "reason": reason, "hint": hint, "key": null, "notices": [], "sources": sources});
    let obstacle = match (&analysis.plan, request.mode.as_deref()) {
        (Ok(_), Some("FULL")) | (Err(_), _) => None,
        (Ok(plan), _) => obstacle::specs(client, &analysis, plan, capturing).await?.err(),
    };
    if let Some(e) = obstacle {
        return Ok(match request.mode.as_deref() {
            Some("DIFFERENTIAL") => refusal(&e),
            _ => full(e.context(), e.hint()),
        });
    }
    Ok(match (&analysis.plan, request.mode.as_deref()) {
        (_, Some("FULL")) => full("asked for at creation", None),
        (Ok(plan), _) => {
            let name = |i: &usize| plan.columns.get(*i).map(|c| c.name.clone());
            let key: Option<Vec<String>> = plan.key.as_ref().and_then(|k| k.iter().map(name).collect());
            let evaluations: Vec<Value> = plan
                .rel
                .user_work()
                .into_iter()
                .map(|w| json!({"inputs": w.parameters(), "sql": work_sql(w), "result": "record"}))
                .collect();
            json!({"ok": true, "mode": "DIFFERENTIAL", "reason": null, "hint": null, "key": key,
                   "notices": plan.notices, "sources": sources, "evaluations": evaluations})
        }
        (Err(refused), Some("DIFFERENTIAL")) => refusal(&refused.clone().into()),
        (Err(refused), _) => full(&refused.reason, refused.hint.as_deref()),
    })
}

/// The caller may read the sources (its own session has planned the query), the sidecar's role may not even name them.
async fn not_ours(client: &Client, request: &Request, e: &Error) -> Result<Value> {
    let role: String = client.query_one("select current_user::text", &[]).await.map_err(error)?.get(0);
    let reason = format!("the sidecar's role {role} may not read the sources: {}", e.context());
    let hint = format!("grant usage on the schema and select on the tables to {role}");
    Ok(match request.mode.as_deref() {
        Some("DIFFERENTIAL") => {
            refusal(&Error::new(ErrorKind::Privilege, reason).with_sqlstate("42501").with_hint(hint))
        }
        _ => {
            json!({"ok": true, "mode": "FULL", "reason": reason, "hint": hint, "key": null, "notices": [], "sources": []})
        }
    })
}

/// An object that the caller's own transaction made or locks can't be seen from here: the decision falls after the commit.
fn refusal(e: &Error) -> Value {
    let unseen = matches!(e.sqlstate(), Some("42P01" | "42704" | "42883" | "3F000" | "55P03"));
    let state = if unseen { "P0T01" } else { e.sqlstate().unwrap_or("XX000") };
    json!({"ok": false, "sqlstate": state, "message": e.context(), "hint": e.hint()})
}
