//! How sessions are protected: `sslmode`, `sslrootcert`, `sslcert` and `sslkey` of the URL, the `PGSSL*` variables, the
//! file, and libpq's folder `~/.postgresql`.
//!
//! Invariant: a weaker protection than verify-full on a way out of this machine is only taken when it was asked for, and
//! is warned about; what this program can't promise is refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

use super::options::Choice;
use super::{Environment, Origin, Sourced, Sources, given, options};
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::tls::{Identity, Mode, Roots, Tls};

/// Options that a connection string may hold too.
pub(super) const OPTIONS: &[&Choice] =
    &[options::SSLMODE, options::SSLROOTCERT, options::SSLCERT, options::SSLKEY];

const MODE_HINT: &str = "use disable, prefer, require, verify-ca or verify-full";

/// Variables of libpq that ask for a protection which this program can't promise for all its sessions; with a value, only
/// that value.
const TOO_MUCH: &[(&str, Option<&str>)] = &[
    ("PGREQUIREAUTH", None),
    ("PGSSLCRL", None),
    ("PGSSLCRLDIR", None),
    ("PGCHANNELBINDING", Some("require")),
    ("PGGSSENCMODE", Some("require")),
    ("PGSSLMINPROTOCOLVERSION", Some("TLSv1.3")),
];

/// The options by name, from wherever each was given.
struct Asked<'a> {
    url: Option<(&'a Origin, &'a BTreeMap<&'static str, String>)>,
    sources: &'a Sources,
}

impl Asked<'_> {
    fn get(&self, option: &Choice) -> Option<Sourced<String>> {
        if let Some((origin, options)) = self.url
            && let Some(value) = options.get(option.key)
        {
            return Some(Sourced::new(value.clone(), origin.clone()));
        }
        self.sources.text(option)
    }
}

/// The protection of sessions with the server of `config`, and a warning where it is weak.
///
/// # Errors
/// `Config` with the origin of a value that can't be used or promised.
pub(super) fn resolve(
    config: &Config,
    url: Option<(&Origin, &BTreeMap<&'static str, String>)>,
    sources: &Sources,
) -> Result<(Tls, Option<String>)> {
    for (variable, value) in TOO_MUCH {
        let asked = given(&sources.environment, variable);
        if asked.is_some() && value.is_none_or(|value| asked.as_deref() == Some(value)) {
            let what = Sourced::new((), Origin::Environment(variable));
            return Err(what
                .refuse("the replication session can't promise this")
                .with_hint("unset it; sslmode=verify-full protects against impostors"));
        }
    }
    let asked = Asked { url, sources };
    let mode = match asked.get(options::SSLMODE) {
        None => None,
        Some(text) => match text.value.parse::<Mode>() {
            Ok(mode) => Some(Sourced::new(mode, text.origin)),
            // The value may be a password that slipped: it is not repeated.
            Err(()) => return Err(text.refuse("the value of sslmode can't be used").with_hint(MODE_HINT)),
        },
    };
    let Some(way) = Way::of(config) else { return Ok((Tls::new(Mode::Disable), None)) };
    let root = asked.get(options::SSLROOTCERT);
    let roots = match &root {
        Some(root) if root.value == "system" => Roots::System,
        Some(root) => Roots::File(PathBuf::from(&root.value)),
        None => at_home(&sources.environment, "root.crt").map_or(Roots::System, Roots::File),
    };
    let public = root.as_ref().filter(|root| root.value == "system");
    let tls = Tls {
        mode: match &mode {
            Some(mode) => effective(mode, &roots, public)?,
            None if way.leaves || public.is_some() => Mode::VerifyFull,
            None => Mode::Prefer,
        },
        roots,
        identity: identity(&asked)?,
    };
    tls.check().map_err(|e| {
        let error = Error::new(ErrorKind::Config, e.context().to_owned());
        e.hint().map(str::to_owned).into_iter().fold(error, Error::with_hint)
    })?;
    let warning = (way.leaves && tls.mode < Mode::VerifyFull).then(|| warning(&way.host, tls.mode));
    Ok((tls, warning))
}

/// As libpq does: an authority's file makes `require` mean verify-ca, and the machine's own authorities, of which
/// anybody can get a certificate, are only good for verify-full.
fn effective(mode: &Sourced<Mode>, roots: &Roots, public: Option<&Sourced<String>>) -> Result<Mode> {
    match (mode.value, roots, public) {
        (Mode::VerifyFull, _, _) | (_, _, None) => {}
        (weak, _, Some(_)) => {
            return Err(mode
                .refuse(format!("sslmode {weak} can't be used with sslrootcert=system"))
                .with_hint("use verify-full: anybody can have a certificate of a public authority"));
        }
    }
    Ok(match (mode.value, roots) {
        (Mode::Require, Roots::File(_)) => Mode::VerifyCa,
        (mode, _) => mode,
    })
}

fn identity(asked: &Asked<'_>) -> Result<Option<Identity>> {
    let environment = &asked.sources.environment;
    let (certificate, key) = (asked.get(options::SSLCERT), asked.get(options::SSLKEY));
    let path = |named: &Option<Sourced<String>>, file: &str| {
        named.as_ref().map(|named| PathBuf::from(&named.value)).or_else(|| at_home(environment, file))
    };
    match (path(&certificate, "postgresql.crt"), path(&key, "postgresql.key")) {
        (Some(certificate), Some(key)) => Ok(Some(Identity { certificate, key })),
        _ => match (certificate, key) {
            (Some(alone), _) => {
                Err(alone.refuse("a client certificate needs its key").with_hint("set sslkey"))
            }
            (_, Some(alone)) => {
                Err(alone.refuse("a client key needs its certificate").with_hint("set sslcert"))
            }
            (None, None) => Ok(None),
        },
    }
}

/// A file of libpq's folder, if it exists.
fn at_home(environment: &Environment, file: &str) -> Option<PathBuf> {
    let path = PathBuf::from(given(environment, "HOME")?).join(".postgresql").join(file);
    path.is_file().then_some(path)
}

/// The way to the server.
struct Way {
    host: String,
    /// Whether it leaves this machine.
    leaves: bool,
}

impl Way {
    /// `None` when it is a socket of this machine: TLS has nothing to protect there.
    fn of(config: &Config) -> Option<Way> {
        let names = config.get_hosts().iter().filter_map(|host| match host {
            Host::Tcp(name) => Some(name.clone()),
            #[cfg(unix)]
            Host::Unix(_) => None,
        });
        // A numeric address decides where packets go; the name is then only for the certificate.
        let addresses: Vec<String> = config.get_hostaddrs().iter().map(ToString::to_string).collect();
        let hosts: Vec<String> = if addresses.is_empty() { names.collect() } else { addresses };
        let away = hosts.iter().find(|host| !is_loopback(host));
        let host = away.or(hosts.first())?.clone();
        Some(Way { leaves: away.is_some(), host })
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn warning(host: &str, mode: Mode) -> String {
    let danger = match mode {
        Mode::Disable => "nothing is encrypted",
        Mode::Prefer => {
            "nothing is encrypted unless the server offers it, and its certificate is not checked"
        }
        Mode::Require => "the server's certificate is not checked",
        Mode::VerifyCa | Mode::VerifyFull => "the server's name is not checked",
    };
    format!(
        "weak protection of the sessions with {host}: sslmode is {mode}, {danger}; use sslmode=verify-full"
    )
}
