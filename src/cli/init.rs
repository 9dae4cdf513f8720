//! `pgtrickle init`: the schema in the database, or as a script for a DBA.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::Connection;
use crate::catalog::migrate;
use crate::config::Settings;
use crate::error::Result;
use crate::postgres::sessions::Purpose;

#[derive(Args)]
pub(super) struct InitArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Print the script for psql and change nothing
    #[arg(long)]
    pub(super) print: bool,
    /// Bring the schema of an older release to this one; a sidecar of this release serves both
    #[arg(long)]
    upgrade: bool,
    /// Role that `pgtrickle run` logs in as (LOGIN REPLICATION); it gets the rights it needs
    #[arg(long, value_name = "ROLE")]
    sidecar_role: Option<String>,
    /// Role that may create stream tables; may be given several times
    #[arg(long, value_name = "ROLE")]
    grant_to: Vec<String>,
    /// One JSON object
    #[arg(long, conflicts_with = "print")]
    json: bool,
}

impl InitArgs {
    fn options(&self) -> migrate::Options {
        migrate::Options {
            sidecar_role: self.sidecar_role.clone(),
            grant_to: self.grant_to.clone(),
            upgrade: self.upgrade,
        }
    }
}

pub(super) fn script(args: &InitArgs) -> String {
    migrate::script(&args.options())
}

pub(super) async fn run(args: InitArgs, settings: Settings) -> Result<ExitCode> {
    let mut client = settings.target.connect(Purpose::Tool).await?;
    let report = migrate::migrate(&mut client, &args.options()).await?;
    let place = settings.target.describe();
    if args.json {
        super::print_json(&json!({"database": place, "applied": report.applied,
                                  "sidecar_role": args.sidecar_role, "granted_to": args.grant_to}));
        return Ok(ExitCode::SUCCESS);
    }
    let mut said = match report.applied.len() {
        0 => format!("the schema in {place} is up to date\n"),
        files => format!("the schema in {place} was installed or upgraded ({files} files)\n"),
    };
    if let Some(role) = &args.sidecar_role {
        said.push_str(&format!("role {role} may run the sidecar\n"));
    }
    for role in &args.grant_to {
        said.push_str(&format!("role {role} may create stream tables\n"));
    }
    super::print(&said);
    Ok(ExitCode::SUCCESS)
}
