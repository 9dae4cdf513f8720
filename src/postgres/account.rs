//! The operating system account a private server runs as.
//!
//! PostgreSQL refuses to run as root (`src/backend/main/main.c`, `check_root`). When this process is root, the server
//! gets the account `postgres`, or `nobody` where there is none; otherwise it runs as ourselves.
//! Invariant: a server is never started with more rights than this process has.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::error::{Error, ErrorKind, Result};

/// An unprivileged account, named by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

/// Our own effective user id, as `id -u` reports it (the standard library has no call for it).
pub fn own_uid() -> Result<u32> {
    static UID: OnceLock<u32> = OnceLock::new();
    if let Some(uid) = UID.get() {
        return Ok(*uid);
    }
    let uid = id_number(&["-u"]).ok_or_else(|| {
        Error::new(ErrorKind::ServerSetup, "can't find out the user id of this process: `id -u` failed")
    })?;
    Ok(*UID.get_or_init(|| uid))
}

/// The account private servers run as: `None` means "as ourselves".
pub fn server_account() -> Result<Option<Account>> {
    static ACCOUNT: OnceLock<Option<Account>> = OnceLock::new();
    if let Some(account) = ACCOUNT.get() {
        return Ok(*account);
    }
    let account = if own_uid()? != 0 {
        None
    } else {
        let found = ["postgres", "nobody"].iter().find_map(|name| {
            Some(Account { uid: id_number(&["-u", name])?, gid: id_number(&["-g", name])? })
        });
        match found {
            Some(account) if account.uid != 0 => Some(account),
            _ => {
                return Err(Error::new(
                    ErrorKind::ServerSetup,
                    "PostgreSQL can't run as root, and there is neither a user postgres nor a user nobody",
                )
                .with_hint("run this command as an ordinary user"));
            }
        }
    };
    Ok(*ACCOUNT.get_or_init(|| account))
}

/// A command that runs as `account`, without the variables that would lead a PostgreSQL program elsewhere.
pub fn command(program: &Path, account: Option<Account>) -> Command {
    let mut command = Command::new(program);
    if let Some(account) = account {
        // As root, the standard library also drops the supplementary groups when a uid is set.
        command.uid(account.uid).gid(account.gid);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("PG")) {
            command.env_remove(&name);
        }
    }
    // Messages are read by this program and shown to its user: one language.
    command.env("LC_ALL", "C").env_remove("LANGUAGE");
    command.stdin(Stdio::null());
    command
}

/// Whether `account` may enter the folder (or run the file) `path`.
pub fn may_enter(path: &Path, account: Option<Account>) -> bool {
    command(Path::new("sh"), account)
        .args(["-c", "test -x \"$1\"", "sh"])
        .arg(path)
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Gives one file or folder to `account`; does nothing when the server runs as ourselves.
pub fn give(path: &Path, account: Option<Account>) -> Result<()> {
    let Some(account) = account else { return Ok(()) };
    std::os::unix::fs::lchown(path, Some(account.uid), Some(account.gid)).map_err(|e| {
        Error::new(ErrorKind::ServerSetup, format!("can't give {} to the server's user", path.display()))
            .with_source(e)
    })
}

fn id_number(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).stderr(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_never_lends_its_rights_to_a_server() {
        let account = server_account().unwrap();
        assert_eq!(account.is_some(), own_uid().unwrap() == 0);
        assert!(account.is_none_or(|a| a.uid != 0));
        let output = command(Path::new("id"), account).arg("-u").current_dir("/").output().unwrap();
        assert_ne!(String::from_utf8(output.stdout).unwrap().trim(), "0");
    }

    #[test]
    fn everyone_may_enter_the_root_folder_and_nobody_a_missing_one() {
        let account = server_account().unwrap();
        assert!(may_enter(Path::new("/"), account));
        assert!(!may_enter(Path::new("/no/such/folder"), account));
    }
}
