//! The connection: a URL from a flag, `DATABASE_URL` or the file, or libpq's `PG*` variables.
//!
//! The connection is taken as a whole from one place; what it leaves open is filled from the `PG*` variables, as libpq
//! does; only a port is not (a URL that names a host and no port means 5432). An unknown or weaker reading of `sslmode` is refused: never less protection than was asked for.

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::{Origin, Sourced, Sources, given, passfile};
use crate::error::{Error, ErrorKind, Result};

/// libpq's options that a URL may name although this client does not know them; only these are repeated in errors.
const LIBPQ_OPTIONS: &[&str] = &[
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslcrl",
    "sslcompression",
    "sslsni",
    "sslnegotiation",
    "gssencmode",
    "krbsrvname",
    "passfile",
    "service",
    "requirepeer",
    "client_encoding",
    "fallback_application_name",
    "replication",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "require_auth",
    "gsslib",
];

const SSLMODE_HINT: &str = "use disable, prefer or require; certificates are not verified yet";

/// The client's configuration and where the connection came from.
pub(super) fn resolve(sources: &Sources) -> Result<(Config, Origin)> {
    let flag = sources.flags.database_url.clone().map(|url| Sourced::new(url, Origin::Flag("database-url")));
    let variable = || {
        Some(Sourced::new(given(&sources.environment, "DATABASE_URL")?, Origin::Environment("DATABASE_URL")))
    };
    let libpq = ["PGHOST", "PGDATABASE"].into_iter().find(|name| given(&sources.environment, name).is_some());
    let file = || sources.file.get("database_url").cloned();
    let url = match flag.or_else(variable) {
        Some(url) => Some(url),
        None if libpq.is_some() => None,
        None => file(),
    };
    let (mut config, origin, has_sslmode) = match (url, libpq) {
        (Some(url), _) => (parse(&url)?, url.origin, url.value.contains("sslmode")),
        (None, Some(name)) => (Config::new(), Origin::Environment(name), false),
        (None, None) => {
            return Err(Error::new(ErrorKind::Config, "no database is named").with_hint(
                "give --database-url postgresql://user@host/database, or set DATABASE_URL, or PGHOST and PGDATABASE",
            ));
        }
    };
    fill(&mut config, sources, has_sslmode)?;
    Ok((config, origin))
}

/// Parses a URL or a `key=value` string; its text, which may hold a password, is in no error.
fn parse(url: &Sourced<String>) -> Result<Config> {
    let hint = "the form is postgresql://user:password@host:port/database?sslmode=prefer, \
                with special characters percent-encoded";
    url.value.parse::<Config>().map_err(|e| {
        let said = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
        if said.contains("`sslmode`") {
            return url.refuse("the value of sslmode can't be used").with_hint(SSLMODE_HINT);
        }
        let unknown = LIBPQ_OPTIONS.iter().find(|option| said == format!("unknown option `{option}`"));
        let what = match unknown {
            Some(option) => format!("the option {option} is not supported"),
            None if said.starts_with("invalid value for option") => said,
            None => "this is no connection URL".to_owned(),
        };
        url.refuse(what).with_hint(hint)
    })
}

/// Fills what is still open from the `PG*` variables, the password file and libpq's defaults.
fn fill(config: &mut Config, sources: &Sources, has_sslmode: bool) -> Result<()> {
    let environment = &sources.environment;
    let variable = |name: &'static str| {
        given(environment, name).map(|value| Sourced::new(value, Origin::Environment(name)))
    };
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        config.host(variable("PGHOST").map_or_else(|| "localhost".to_owned(), |host| host.value));
    }
    if config.get_ports().is_empty()
        && let Some(port) = variable("PGPORT")
    {
        let number: u16 = port.value.parse().map_err(|_| {
            port.refuse(format!("{:?} is no port", port.value)).with_hint("use a number from 1 to 65535")
        })?;
        config.port(number);
    }
    if config.get_user().is_none() {
        let user = variable("PGUSER").or_else(|| variable("USER")).or_else(|| variable("LOGNAME"));
        let user = user.ok_or_else(|| {
            Error::new(ErrorKind::Config, "no user is named").with_hint("name one in the URL or with PGUSER")
        })?;
        config.user(user.value);
    }
    let user = config.get_user().unwrap_or_default().to_owned();
    if config.get_dbname().is_none() {
        config.dbname(variable("PGDATABASE").map_or_else(|| user.clone(), |name| name.value));
    }
    if !has_sslmode && let Some(mode) = variable("PGSSLMODE") {
        config.ssl_mode(match mode.value.as_str() {
            "disable" => SslMode::Disable,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            other => {
                return Err(mode.refuse(format!("sslmode {other:?} can't be used")).with_hint(SSLMODE_HINT));
            }
        });
    }
    if config.get_password().is_none() {
        let password = match variable("PGPASSWORD") {
            Some(password) => Some(password.value),
            None => passfile::find(environment, &wanted(config)),
        };
        if let Some(password) = password {
            config.password(password);
        }
    }
    Ok(())
}

fn wanted(config: &Config) -> passfile::Wanted<'_> {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host,
        // libpq matches its own socket folder as localhost.
        _ => "localhost",
    };
    passfile::Wanted {
        host,
        port: config.get_ports().first().copied().unwrap_or(5432),
        database: config.get_dbname().unwrap_or_default(),
        user: config.get_user().unwrap_or_default(),
    }
}
