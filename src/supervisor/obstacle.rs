//! What keeps a query that has a plan from being maintained through the dataflow: a source whose changes can't be
//! followed, a missing right of the sidecar's role, too little memory.
//!
//! Asked at creation, so that DIFFERENTIAL is refused in the call, and again at each preparation.

use tokio_postgres::Client;

use super::rights;
use crate::analyzer::Analysis;
use crate::analyzer::facts::Relation;
use crate::capture::{SourceSpec, trigger};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::Plan;
use crate::postgres::sessions::error;

/// How the pipeline can capture at present.
#[derive(Clone)]
pub struct Capturing {
    pub pipeline: String,
    /// Changes come from buffers: every source is captured by triggers.
    pub polled: bool,
    pub memory_limit: u64,
}

/// What to capture for a plan; the inner error is the obstacle, with a hint for people who want DIFFERENTIAL.
pub async fn specs(
    client: &Client,
    analysis: &Analysis,
    plan: &Plan,
    capturing: &Capturing,
) -> Result<Result<Vec<SourceSpec>>> {
    let specs = match captured(client, analysis, plan, capturing).await {
        Ok(specs) => specs,
        Err(e) if e.kind() == ErrorKind::Unsupported => return Ok(Err(e)),
        Err(e) => return Err(e),
    };
    let memory_limit = capturing.memory_limit;
    let oids: Vec<u32> = specs.iter().map(|s| s.oid).collect();
    if let Some((reason, hint)) = rights::unreadable(client, &oids).await? {
        return Ok(Err(Error::new(ErrorKind::Privilege, reason).with_sqlstate("42501").with_hint(hint)));
    }
    if let Some(reason) = too_big(client, &specs, memory_limit).await? {
        let e = Error::new(ErrorKind::Memory, reason).with_sqlstate("53200");
        return Ok(Err(e.with_hint("raise --memory-limit, or use refresh_mode => 'FULL'")));
    }
    Ok(Ok(specs))
}

async fn captured(
    client: &Client,
    analysis: &Analysis,
    plan: &Plan,
    capturing: &Capturing,
) -> Result<Vec<SourceSpec>> {
    let mut specs = Vec::new();
    for used in &plan.sources {
        let relation = analysis.relations.iter().find(|r| r.oid == used.source);
        let relation = relation.ok_or_else(|| Error::internal("a source of the plan was not analysed"))?;
        let mut from_wal = SourceSpec::new(relation, &used.attributes);
        let requested = requested(client, &capturing.pipeline, relation.oid).await?;
        let wanted = capturing.polled || requested.iter().any(|m| m == "trigger");
        if from_wal.is_ok()
            && !wanted
            && let Some(reason) = unpublishable(client, &capturing.pipeline, relation.oid).await?
        {
            let name = format!("{}.{}", relation.schema, relation.name);
            let hint = "make that role a member of its owner, or let a superuser install pgtrickle";
            from_wal =
                Err(Error::unsupported(format!("{name} can't be published: {reason}")).with_hint(hint));
        }
        let spec = match from_wal {
            Ok(spec) if !wanted => spec,
            Err(e) if e.kind() != ErrorKind::Unsupported => return Err(e),
            Err(e) if !capturing.polled && requested.iter().any(|m| m == "wal") => return Err(e),
            from_wal => {
                let ids = trigger::source_ids(client, &capturing.pipeline, &[relation.oid]).await?;
                let id = *ids.first().ok_or_else(|| Error::internal("a source was not registered"))?;
                if let Some(obstacle) = trigger::obstacle(client, id).await? {
                    return Err(blocked(relation, from_wal.err(), &obstacle));
                }
                SourceSpec::triggered(relation, &used.attributes, id)?
            }
        };
        specs.push(spec);
    }
    Ok(specs)
}

/// Why the WAL can't be had for a source although its rows could be told apart; `None`: it may be published.
pub async fn unpublishable(client: &Client, pipeline: &str, source: u32) -> Result<Option<String>> {
    const SQL: &str = "select pgtrickle._publish_obstacle($1::pg_catalog.oid::pg_catalog.regclass, $2)";
    Ok(client.query_one(SQL, &[&source, &pipeline]).await.map_err(error)?.get(0))
}

/// Why a source is captured by triggers although changes come from the WAL.
pub async fn triggered_because(client: &Client, pipeline: &str, source: u32) -> Result<String> {
    if requested(client, pipeline, source).await?.iter().any(|m| m == "trigger") {
        return Ok("triggers were asked for".to_owned());
    }
    let reason = unpublishable(client, pipeline, source).await?;
    Ok(reason.unwrap_or_else(|| "it has no usable replica identity".to_owned()))
}

/// Capture modes that a pipeline's stream tables over a source ask for.
pub async fn requested(client: &Client, pipeline: &str, source: u32) -> Result<Vec<String>> {
    const SQL: &str = "select distinct s.requested_cdc_mode from pgtrickle.pgt_dependencies d
        join pgtrickle.pgt_stream_tables s on s.pgt_id = d.pgt_id
        where d.source::pg_catalog.oid = $1 and s.pipeline = $2 and s.requested_cdc_mode is not null";
    Ok(client.query(SQL, &[&source, &pipeline]).await.map_err(error)?.iter().map(|r| r.get(0)).collect())
}

/// Neither the WAL nor triggers.
fn blocked(relation: &Relation, from_wal: Option<Error>, obstacle: &str) -> Error {
    let name = format!("{}.{}", relation.schema, relation.name);
    let attach = format!("let its owner run: select pgtrickle.attach_source('{name}')");
    let (context, hint) = match from_wal {
        Some(e) => (
            format!("{}, and {obstacle}", e.context()),
            format!("{}; or {attach}", e.hint().unwrap_or("give it a primary key")),
        ),
        None => (format!("changes of {name} can't be captured by triggers: {obstacle}"), attach),
    };
    Error::new(ErrorKind::Unsupported, context).with_sqlstate("0A000").with_hint(hint)
}

/// Whether loading would not fit: an estimate from the planner's statistics.
async fn too_big(client: &Client, specs: &[SourceSpec], limit: u64) -> Result<Option<String>> {
    /// Held row, its slot, and its share of arrangements and operator state.
    const OVERHEAD: f64 = 160.0;
    const SQL: &str = "select greatest(c.reltuples, 0)::float8,
            (select coalesce(sum(coalesce(s.avg_width, 16)), 0)::float8 from pg_catalog.unnest($2::text[]) n
             left join pg_catalog.pg_stats s on s.schemaname = $3 and s.tablename = $4 and s.attname = n)
        from pg_catalog.pg_class c where c.oid = $1";
    let mut bytes = 0.0;
    for spec in specs {
        let names: Vec<&str> = spec.columns.iter().map(|c| c.name.as_str()).collect();
        let row =
            client.query_opt(SQL, &[&spec.oid, &names, &spec.schema, &spec.name]).await.map_err(error)?;
        if let Some(row) = row {
            bytes += row.get::<_, f64>(0) * (OVERHEAD + 2.0 * row.get::<_, f64>(1));
        }
    }
    let mb = |b: f64| b / 1_048_576.0;
    Ok((bytes > limit as f64).then(|| {
        format!(
            "its sources need about {:.0} MB of memory, the limit is {:.0} MB",
            mb(bytes),
            mb(limit as f64)
        )
    }))
}
