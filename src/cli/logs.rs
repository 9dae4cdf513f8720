//! Log lines on standard error: short text for people, or one JSON object per line.

use std::io::IsTerminal;

use tracing_subscriber::filter::{EnvFilter, Targets};

use crate::config::{LogFormat, Logs};
use crate::error::{Error, Result};

/// The replication client logs each lost connection as an error of its own; we report those with what we do about them.
const QUIET: &str = "pgwire_replication";

/// Starts logging for the whole process.
///
/// # Errors
/// `Internal` when logging was started before.
pub(super) fn start(logs: &Logs) -> Result<()> {
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives(&logs.filter.value)))
        .with_writer(std::io::stderr)
        .with_ansi(color)
        .with_target(false);
    let started = match logs.format.value {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|e| Error::internal(format!("logging can't be started: {e}")))
}

/// A bare level is ours alone, other crates only warn; a list is taken as it is.
fn directives(filter: &str) -> String {
    if filter.contains(QUIET) {
        return filter.to_owned();
    }
    let is_level =
        filter.parse::<Targets>().is_ok_and(|t| t.default_level().is_some()) && !filter.contains([',', '=']);
    match filter {
        "off" => "off".to_owned(),
        level if is_level => format!("warn,pgtrickle={level},{QUIET}=off"),
        list => format!("{list},{QUIET}=off"),
    }
}

#[cfg(test)]
mod tests {
    use super::directives;

    #[test]
    fn a_bare_level_is_for_us_and_the_replication_client_stays_quiet() {
        assert_eq!(directives("debug"), "warn,pgtrickle=debug,pgwire_replication=off");
        assert_eq!(directives("info,pgtrickle=debug"), "info,pgtrickle=debug,pgwire_replication=off");
        assert_eq!(directives("pgwire_replication=trace"), "pgwire_replication=trace");
        assert_eq!(directives("off"), "off");
    }
}
