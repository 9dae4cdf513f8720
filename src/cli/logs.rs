//! Log lines on standard error: short text for people, or one JSON object per line.

use std::io::IsTerminal;

use tracing::field::Field;
use tracing_subscriber::Layer;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::text::one_line;
use crate::config::{LogFormat, Logs};
use crate::error::{Error, Result};

/// The replication client logs each lost connection as an error of its own; we report those with what we do about them.
const QUIET: &str = "pgwire_replication";

/// Starts logging for the whole process. `exports`: spans are sent where the environment names a collector; it is that of
/// `run`, and must not keep other commands from working.
///
/// # Errors
/// `Internal` when logging was started before; with the feature `otel` also `Config`.
pub(super) fn start(logs: &Logs, exports: bool) -> Result<()> {
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(color).with_target(false);
    let lines = match logs.format.value {
        LogFormat::Text => lines.fmt_fields(debug_fn(field).delimited(" ")).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let filter = EnvFilter::new(directives(&logs.filter.value));
    let registry = tracing_subscriber::registry().with(lines.with_filter(filter));
    #[cfg(feature = "otel")]
    let registry = registry.with(if exports { super::otel::layer()? } else { None });
    #[cfg(not(feature = "otel"))]
    let _ = exports;
    registry.try_init().map_err(|e| Error::internal(format!("logging can't be started: {e}")))
}

/// `message` or `name=value`, on one line whatever a name of somebody's table holds.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug) -> std::fmt::Result {
    let value = format!("{value:?}");
    let text = one_line(&value);
    match field.name() {
        "message" => write!(writer, "{text}"),
        name => write!(writer, "{}={text}", name.strip_prefix("r#").unwrap_or(name)),
    }
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
