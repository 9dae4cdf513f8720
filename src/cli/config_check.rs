//! `pgtrickle config check`: the configuration as `run` would read it, and everything that is wrong with it.
//!
//! Exit code 0: it can be used; 2: it can't.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Connection, RunOnly, table, web};
use crate::config::{Setting, Sources};
use crate::error::{ErrorKind, Result};

#[derive(Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    pub(super) command: ConfigCommand,
}

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Show each setting with its value and where it came from, and all errors at once
    Check(CheckArgs),
}

#[derive(Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub(super) connection: Connection,
    #[command(flatten)]
    pub(super) run: RunOnly,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CheckArgs, sources: impl Fn() -> Result<Sources>) -> Result<ExitCode> {
    let (settings, mut error) = sources()?.check();
    if error.is_none() && settings.iter().all(|s| s.error.is_none()) {
        error = of_the_whole(&sources()?).err();
    }
    let good = error.is_none() && settings.iter().all(|s| s.error.is_none());
    let text = match args.json {
        true => {
            let list: Vec<Value> = settings.iter().map(as_json).collect();
            let error = error.as_ref().map(|e| json!({"error": e.to_string(), "hint": e.hint()}));
            format!("{:#}\n", json!({"valid": good, "settings": list, "error": error}))
        }
        false => {
            let mut text = table::render(&["setting", "value", "from"], settings.iter().map(row));
            for setting in settings.iter().filter(|s| s.error.is_some()) {
                text.push_str(&format!(
                    "error: {}: {}\n",
                    setting.origin,
                    setting.error.as_deref().unwrap_or_default()
                ));
                if let Some(hint) = &setting.hint {
                    text.push_str(&format!("hint: {hint}\n"));
                }
            }
            if let Some(error) = &error {
                text.push_str(&format!("error: {error}\n"));
                if let Some(hint) = error.hint() {
                    text.push_str(&format!("hint: {hint}\n"));
                }
            }
            text
        }
    };
    super::print(&text);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(ErrorKind::Config.exit_code()) })
}

/// What `run` finds wrong with values that are right one by one: files that can't be read, an address without a secret.
fn of_the_whole(sources: &Sources) -> Result<()> {
    // A process that holds shards serves no HTTP.
    if sources.member()?.is_some() {
        return Ok(());
    }
    let settings = sources.settings()?;
    match settings.http.value {
        Some(at) => web::check(at, &settings.web),
        None => Ok(()),
    }
}

fn as_json(setting: &Setting) -> Value {
    json!({"key": setting.key, "value": setting.value, "from": setting.origin.to_string(),
           "error": setting.error, "hint": setting.hint})
}

fn row(setting: &Setting) -> Vec<String> {
    let value = setting.value.clone().unwrap_or_else(|| "-".to_owned());
    let mark = if setting.error.is_some() { " (wrong)" } else { "" };
    vec![setting.key.clone(), format!("{value}{mark}"), setting.origin.to_string()]
}
