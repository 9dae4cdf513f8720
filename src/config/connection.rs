//! The connection: a URL from a flag, `DATABASE_URL` or the file, or libpq's `PG*` variables.
//!
//! The connection is taken as a whole from one place; what it leaves open is filled from the `PG*` variables, as libpq
//! does; only a port is not (a URL that names a host and no port means 5432). What protects the sessions is read in
//! [`super::tls`].

use tokio_postgres::Config;
use tokio_postgres::config::ChannelBinding;

use super::{Origin, Sourced, Sources, given, options, tls, url};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::password::Passwords;
use crate::postgres::sessions::Target;

/// libpq's options that a URL may name although this client does not know them; only these are repeated in errors.
const LIBPQ_OPTIONS: &[&str] = &[
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

/// Where and how to connect.
pub(super) struct Connection {
    pub target: Target,
    pub origin: Origin,
    /// What an operator should know about it.
    pub warnings: Vec<String>,
}

/// The connection of a run of `pipeline`.
pub(super) fn resolve(sources: &Sources, pipeline: &str) -> Result<Connection> {
    let said = sources.text(options::DATABASE_URL);
    let libpq = ["PGHOST", "PGDATABASE"].into_iter().find(|name| given(&sources.environment, name).is_some());
    // The variables of libpq are nearer than the file.
    let url = said.filter(|url| libpq.is_none() || !matches!(url.origin, Origin::File { .. }));
    let names: Vec<&'static str> = tls::OPTIONS.iter().map(|option| option.key).collect();
    let (mut config, origin, asked) = match (url, libpq) {
        (Some(text), _) => {
            let taken = url::take(&text.value, &names);
            let rest = Sourced::new(taken.rest, text.origin);
            (parse(&rest)?, rest.origin, Some(taken.options))
        }
        (None, Some(name)) => (Config::new(), Origin::Environment(name), None),
        (None, None) => {
            return Err(Error::new(ErrorKind::Config, "no database is named").with_hint(
                "give --database-url postgresql://user@host/database, or set DATABASE_URL, or PGHOST and PGDATABASE",
            ));
        }
    };
    let mut warnings = Vec::new();
    if config.get_password().is_some() && origin == Origin::Flag("database-url") {
        warnings.push(
            "the password is on the command line, where every user of this machine can read it: use a password file, \
             PGPASSWORD or DATABASE_URL"
                .to_owned(),
        );
    }
    fill(&mut config, sources)?;
    let passwords = passwords(&mut config, sources)?;
    let (tls, warning) = tls::resolve(&config, asked.as_ref().map(|asked| (&origin, asked)), sources)?;
    warnings.extend(warning);
    let target = Target::new(config, pipeline).with_tls(tls).with_passwords(passwords);
    Ok(Connection { target, origin, warnings })
}

/// Where the password comes from: the connection string, our password file, `PGPASSWORD`, libpq's password file.
fn passwords(config: &mut Config, sources: &Sources) -> Result<Passwords> {
    let environment = &sources.environment;
    if let Some(file) = sources.text(options::PASSWORD_FILE) {
        if config.get_password().is_some() {
            return Err(file
                .refuse("a password file is named, and the connection holds a password too")
                .with_hint("take one of them out"));
        }
        let passwords = Passwords::File(file.value.clone().into());
        passwords.fill(&mut config.clone()).map_err(|e| {
            let error = file.refuse(e.context());
            e.hint().map(str::to_owned).into_iter().fold(error, Error::with_hint)
        })?;
        return Ok(passwords);
    }
    if config.get_password().is_some() {
        return Ok(Passwords::Own);
    }
    if let Some(password) = given(environment, "PGPASSWORD") {
        config.password(password);
        return Ok(Passwords::Own);
    }
    let home = || Some(std::path::Path::new(&given(environment, "HOME")?).join(".pgpass"));
    let file = given(environment, "PGPASSFILE").map(Into::into).or_else(home);
    Ok(file.map_or(Passwords::Own, Passwords::PassFile))
}

/// Parses a URL or a `key=value` string; its text, which may hold a password, is in no error.
fn parse(url: &Sourced<String>) -> Result<Config> {
    let hint = "the form is postgresql://user:password@host:port/database?sslmode=verify-full, \
                with special characters percent-encoded";
    let config = url.value.parse::<Config>().map_err(|e| {
        let said = std::error::Error::source(&e).map(ToString::to_string).unwrap_or_default();
        let unknown = LIBPQ_OPTIONS.iter().find(|option| said == format!("unknown option `{option}`"));
        let what = match unknown {
            Some(option) => format!("the option {option} is not supported"),
            None if said.starts_with("invalid value for option") => said,
            None => "this is no connection URL".to_owned(),
        };
        url.refuse(what).with_hint(hint)
    })?;
    if config.get_channel_binding() == ChannelBinding::Require {
        return Err(url
            .refuse("the replication session can't promise channel_binding=require")
            .with_hint("leave it out; sslmode=verify-full protects against impostors"));
    }
    Ok(config)
}

/// Fills what is still open from the `PG*` variables and libpq's defaults.
fn fill(config: &mut Config, sources: &Sources) -> Result<()> {
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
    Ok(())
}
