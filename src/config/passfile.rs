//! Passwords from libpq's password file (documentation of libpq, "The Password File").

use std::path::{Path, PathBuf};

use super::{Environment, given};

/// What a line of the file is matched against.
pub(super) struct Wanted<'a> {
    pub host: &'a str,
    pub port: u16,
    pub database: &'a str,
    pub user: &'a str,
}

/// The password for a connection from `PGPASSFILE` or `~/.pgpass`. As libpq does, a file that others may read is not
/// believed.
pub(super) fn find(environment: &Environment, wanted: &Wanted<'_>) -> Option<String> {
    let path = given(environment, "PGPASSFILE")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&given(environment, "HOME")?).join(".pgpass")))?;
    if others_may_read(&path) {
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
