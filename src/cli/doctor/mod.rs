//! `pgtrickle doctor`: whether the server, the database and the roles are as a sidecar needs them, and what mends it.
//!
//! Invariant: nothing is changed; each finding has its evidence, and where SQL mends it, that SQL. A check that the role
//! may not make is skipped with the reason, never counted as fine.

mod checks;

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::Connection;
use crate::config::Settings;
use crate::error::Result;
use crate::postgres::sessions::{Purpose, error};
use checks::{CHECKS, Check, Needs};

#[derive(Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// One JSON object
    #[arg(long, conflicts_with = "fix_sql")]
    json: bool,
    /// Only the statements that mend what was found, to be read before they are run
    #[arg(long)]
    fix_sql: bool,
    /// Warnings count as failures for the exit code
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Ok,
    Skip,
    Warn,
    Fail,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Skip => "skip",
            Severity::Warn => "warn",
            Severity::Fail => "FAIL",
        }
    }
}

struct Finding {
    id: &'static str,
    severity: Severity,
    evidence: String,
    fix: Option<String>,
}

/// Exit code 0: nothing failed; 1: something did (with `--strict`: or warns). Else the code of the error.
pub(super) async fn run(args: DoctorArgs, settings: Settings) -> Result<ExitCode> {
    let client = settings.target.connect(Purpose::Tool).await?;
    let mut findings = vec![reached(&client, &settings).await?];
    let facts = client
        .query_one(
            "select current_setting('server_version_num')::int, to_regclass('pgtrickle.schema_files') is not null",
            &[],
        )
        .await
        .map_err(error)?;
    let (version, installed): (i32, bool) = (facts.get(0), facts.get(1));
    for check in CHECKS {
        findings.extend(make(&client, check, version, installed).await?);
    }
    let text = if args.json {
        let list: Vec<Value> = findings
            .iter()
            .map(|f| json!({ "id": f.id, "severity": f.severity.name().to_lowercase(), "evidence": f.evidence, "fix": f.fix }))
            .collect();
        format!("{:#}\n", json!({ "database": settings.target.describe(), "findings": list }))
    } else if args.fix_sql {
        fixes(&findings)
    } else {
        findings.iter().map(line).collect()
    };
    super::print(&text);
    let worst = findings.iter().map(|f| f.severity).max().unwrap_or(Severity::Ok);
    let limit = if args.strict { Severity::Warn } else { Severity::Fail };
    Ok(if worst >= limit { ExitCode::from(super::FAILED) } else { ExitCode::SUCCESS })
}

/// The connection stands; a pooler in between would be seen by sessions that change.
async fn reached(client: &Client, settings: &Settings) -> Result<Finding> {
    const PID: &str = "select pg_backend_pid()";
    let first: i32 = client.query_one(PID, &[]).await.map_err(error)?.get(0);
    let second: i32 = client.query_one(PID, &[]).await.map_err(error)?.get(0);
    let at = settings.target.describe();
    Ok(match first == second {
        true => Finding { id: "pg.reach", severity: Severity::Ok, evidence: at, fix: None },
        false => Finding {
            id: "pg.reach",
            severity: Severity::Fail,
            evidence: format!("{at}: two statements met two sessions: a transaction pooler is in between"),
            fix: Some("-- use the server's direct address, or the pooler's session mode".to_owned()),
        },
    })
}

async fn make(client: &Client, check: &Check, version: i32, installed: bool) -> Result<Vec<Finding>> {
    let one = |severity, evidence: String| vec![Finding { id: check.id, severity, evidence, fix: None }];
    match check.needs {
        Needs::Schema if !installed => {
            return Ok(one(Severity::Skip, "the schema is not installed".to_owned()));
        }
        Needs::Major(major) if version < major * 10_000 => {
            return Ok(one(Severity::Skip, format!("only servers from {major} on have it")));
        }
        _ => {}
    }
    let rows = match client.query(check.sql, &[]).await {
        Ok(rows) => rows,
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let why = e.as_db_error().map_or_else(|| e.to_string(), |d| d.message().to_owned());
            return Ok(one(Severity::Skip, format!("this role may not look: {why}")));
        }
        Err(e) => return Err(error(e).during(format!("the check {}", check.id))),
    };
    if rows.is_empty() {
        return Ok(one(Severity::Ok, check.fine.to_owned()));
    }
    let finding = |row: &tokio_postgres::Row| Finding {
        id: check.id,
        severity: match row.get::<_, &str>(0) {
            "fail" => Severity::Fail,
            "warn" => Severity::Warn,
            _ => Severity::Ok,
        },
        evidence: row.get(1),
        fix: row.get(2),
    };
    Ok(rows.iter().map(finding).collect())
}

fn line(finding: &Finding) -> String {
    let fix = finding.fix.as_ref().map_or_else(String::new, |fix| format!("      fix: {fix}\n"));
    format!("{:<5} {:<26} {}\n{fix}", finding.severity.name(), finding.id, finding.evidence)
}

fn fixes(findings: &[Finding]) -> String {
    let wanted = findings.iter().filter(|f| f.severity >= Severity::Warn);
    wanted.filter_map(|f| Some(format!("-- {}: {}\n{}\n", f.id, f.evidence, f.fix.as_ref()?))).collect()
}
