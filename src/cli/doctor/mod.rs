//! `pgtrickle doctor`: whether the server, the database and the roles are as a sidecar needs them, and what mends it.
//!
//! Invariant: nothing is changed; each finding has its evidence, and where SQL mends it, that SQL. A check that the role
//! may not make is skipped with the reason, never counted as fine.

mod checks;
mod connection;

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::Connection;
use super::text::one_line;
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
    /// Warnings count as failures: exit code 2
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

/// Version of the server, and whether the schema is there. Not by `to_regclass`, which fails without USAGE on a schema.
const FACTS: &str = "select current_setting('server_version_num')::int,
    exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where n.nspname = 'pgtrickle' and c.relname = 'schema_files')";

/// Exit code of a check that failed.
const BROKEN: u8 = 2;

/// Exit code 0: nothing to mend; 1: there are warnings; 2: a check failed (with `--strict`: or warns). Else the code of
/// the error that kept it from looking.
pub(super) async fn run(args: DoctorArgs, settings: Settings) -> Result<ExitCode> {
    let client = settings.target.connect(Purpose::Tool).await?;
    let mut findings = connection::look(&client, &settings).await?;
    let facts = client.query_one(FACTS, &[]).await.map_err(error)?;
    let (version, installed): (i32, bool) = (facts.get(0), facts.get(1));
    let role = role(&client, installed).await?;
    for check in CHECKS {
        findings.extend(make(&client, check, &role, version, installed).await?);
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
    Ok(match worst {
        Severity::Fail => ExitCode::from(BROKEN),
        Severity::Warn if args.strict => ExitCode::from(BROKEN),
        Severity::Warn => ExitCode::from(super::FAILED),
        Severity::Ok | Severity::Skip => ExitCode::SUCCESS,
    })
}

/// The sidecar's role as a literal: the one that was named, else whoever asks.
async fn role(client: &Client, installed: bool) -> Result<String> {
    const NAMED: &str = "select quote_literal(value) from pgtrickle.settings where key = 'sidecar_role'";
    let named = match installed {
        // A role without a right on it asks for itself; what it may not see is said by the checks.
        true => client.query_opt(NAMED, &[]).await.ok().flatten(),
        false => None,
    };
    match named {
        Some(row) => Ok(row.get(0)),
        None => Ok(client.query_one("select quote_literal(current_user)", &[]).await.map_err(error)?.get(0)),
    }
}

async fn make(
    client: &Client,
    check: &Check,
    role: &str,
    version: i32,
    installed: bool,
) -> Result<Vec<Finding>> {
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
    let sql = check.sql.replace("{role}", role);
    let rows = match client.query(&sql, &[]).await {
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
    let fix = finding.fix.as_ref().map_or_else(String::new, |fix| format!("      fix: {}\n", one_line(fix)));
    format!("{:<5} {:<26} {}\n{fix}", finding.severity.name(), finding.id, one_line(&finding.evidence))
}

/// Names of others are part of it, so nothing but a fix may ever stand outside of a comment. A fix with a name that is
/// not on one line is a comment, too: it has to be read before it is written.
fn fixes(findings: &[Finding]) -> String {
    let fix = |f: &Finding| {
        let fix = f.fix.as_ref()?;
        let mark =
            if fix.chars().any(char::is_control) { "-- a name holds control characters: " } else { "" };
        Some(format!("-- {}: {}\n{mark}{}\n", f.id, one_line(&f.evidence), one_line(fix)))
    };
    findings.iter().filter(|f| f.severity >= Severity::Warn).filter_map(fix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_never_a_statement() {
        let finding = |evidence: &str, fix: &str| Finding {
            id: "x",
            severity: Severity::Warn,
            evidence: evidence.to_owned(),
            fix: Some(fix.to_owned()),
        };
        let found = [
            finding("app.\"a\ndrop table t;\r--\"", "select 1;"),
            finding("fine", "alter table app.\"a\n\u{1b}[2Jb\" replica identity full;"),
        ];
        let sql = fixes(&found);
        let statements: Vec<&str> = sql.split(['\n', '\r']).filter(|l| !l.starts_with("--")).collect();
        assert_eq!(statements, ["select 1;", ""], "{sql}");
        let text: String = found.iter().map(line).collect();
        assert!(!text.chars().any(|c| c.is_control() && c != '\n') && text.lines().count() == 4, "{text}");
    }
}
