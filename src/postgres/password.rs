//! Where a session's password comes from; read at every connect, so that a changed password needs no restart.
//!
//! A password stands in the connection itself (URL or `PGPASSWORD`), in a file of its own, or in libpq's password file
//! (documentation of libpq, "The Password File"). Invariant: no error and no `Debug` holds one.

use std::path::{Path, PathBuf};

use tokio_postgres::Config;
use tokio_postgres::config::Host;

use crate::error::{Error, ErrorKind, Result};

/// Where the password of a target comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passwords {
    /// The connection's own, if it has one.
    Own,
    /// The first line of a file that holds nothing else.
    File(PathBuf),
    /// A line of libpq's password file; none that fits means no password.
    PassFile(PathBuf),
}

impl Passwords {
    /// Puts the present password into `config`.
    ///
    /// # Errors
    /// `Authentication` when the file of its own can't be read or is empty.
    pub fn fill(&self, config: &mut Config) -> Result<()> {
        match self {
            Passwords::Own => {}
            Passwords::File(path) => {
                config.password(of_file(path)?);
            }
            Passwords::PassFile(path) => {
                if let Some(password) = find(path, &wanted(config)) {
                    config.password(password);
                }
            }
        }
        Ok(())
    }
}

fn of_file(path: &Path) -> Result<String> {
    let shown = path.display();
    let refuse = |what: String| {
        Error::new(ErrorKind::Authentication, what)
            .with_hint("the password file holds the password alone and can be read by this user")
    };
    let text = std::fs::read_to_string(path)
        .map_err(|e| refuse(format!("can't read the password file {shown}: {e}")))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(refuse(format!("the password file {shown} is empty"))),
    }
}

fn wanted(config: &Config) -> Wanted<'_> {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host,
        // libpq matches its own socket folder as localhost.
        _ => "localhost",
    };
    Wanted {
        host,
        port: config.get_ports().first().copied().unwrap_or(5432),
        database: config.get_dbname().unwrap_or_default(),
        user: config.get_user().unwrap_or_default(),
    }
}

/// What a line of the file is matched against.
struct Wanted<'a> {
    host: &'a str,
    port: u16,
    database: &'a str,
    user: &'a str,
}

/// The password for a connection from a password file. As libpq does, a file that others may read is not believed.
fn find(path: &Path, wanted: &Wanted<'_>) -> Option<String> {
    if others_may_read(path) {
        return None;
    }
    lookup(&std::fs::read_to_string(path).ok()?, wanted)
}

fn others_may_read(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|facts| facts.permissions().mode() & 0o077 != 0)
}

/// The first line that matches decides.
fn lookup(text: &str, wanted: &Wanted<'_>) -> Option<String> {
    let port = wanted.port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line);
        let [host, line_port, database, user, password] = fields.as_slice() else { return None };
        let all = [(host, wanted.host), (line_port, &port), (database, wanted.database), (user, wanted.user)];
        all.iter().all(|(pattern, value)| *pattern == "*" || pattern == value).then(|| password.clone())
    })
}

/// Five fields separated by colons; a backslash takes the next character as it is.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        let last = fields.len() - 1;
        match character {
            // A colon in the password needs no backslash.
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields[last].extend(characters.next()),
            other => fields[last].push(other),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_matching_line_gives_the_password() {
        let wanted = Wanted { host: "db", port: 5433, database: "app", user: "me" };
        let text =
            "# comment\ndb:5432:*:*:wrong\nother:*:*:*:wrong\n*:5433:app:me:p\\:a\\\\ss:x\n*:*:*:*:late\n";
        assert_eq!(lookup(text, &wanted).as_deref(), Some("p:a\\ss:x"));
        assert_eq!(lookup("db:5432:*:*:x\n", &wanted), None);
    }
}
