//! Finds the PostgreSQL server binaries of this machine.
//!
//! A private server needs `initdb`, `postgres` and `pg_ctl` side by side; a folder without all three is not an
//! installation. Invariant: what [`find`] returns has been run once (`postgres --version`) and is sorted newest first.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::store;
use crate::error::{Error, ErrorKind, Result};

/// Oldest and newest major version that pgtrickle supports.
pub const SUPPORTED: std::ops::RangeInclusive<u32> = 14..=18;

/// Programs a private server needs.
const NEEDED: [&str; 3] = ["initdb", "postgres", "pg_ctl"];

/// Programs that make an installation complete for tests and for looking around by hand.
const CLIENT_TOOLS: [&str; 5] = ["psql", "pg_dump", "pg_restore", "pg_basebackup", "pgbench"];

/// One installation of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgInstall {
    /// Folder of the programs, with symbolic links resolved.
    pub bin_dir: PathBuf,
    /// Major version, for example 16.
    pub major: u32,
    /// Version as the server names it, for example `16.14` or `18beta1`.
    pub version: String,
    /// psql, pg_dump, pg_restore, pg_basebackup and pgbench are there too.
    pub has_client_tools: bool,
}

impl PgInstall {
    /// Path of one of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }

    /// Looks at one folder: `None` unless it holds a complete server that runs.
    pub fn at(bin_dir: &Path) -> Option<PgInstall> {
        if !NEEDED.iter().all(|name| bin_dir.join(name).is_file()) {
            return None;
        }
        let bin_dir = resolved(bin_dir);
        let output = Command::new(bin_dir.join("postgres"))
            .arg("--version")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let (major, version) = parse_version(std::str::from_utf8(&output.stdout).ok()?)?;
        let has_client_tools = CLIENT_TOOLS.iter().all(|name| bin_dir.join(name).is_file());
        Some(PgInstall { bin_dir, major, version, has_client_tools })
    }
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct Search {
    /// The folder named by `--pg-bindir`: when given, nothing else is looked at.
    pub bin_dir: Option<PathBuf>,
    /// The folders of this list (in the form of `PATH`).
    pub path: Option<OsString>,
    /// The places packages and installers use.
    pub usual_places: bool,
    /// Servers that [`super::fetch::fetch`] has stored.
    pub cache: bool,
}

impl Default for Search {
    /// `PATH`, the usual places and the cache.
    fn default() -> Self {
        Search { bin_dir: None, path: std::env::var_os("PATH"), usual_places: true, cache: true }
    }
}

/// All installations, newest first; of two with the same version, in the order `PATH`, usual places, cache.
///
/// # Errors
/// `Config` when `bin_dir` is given and holds no server. An empty list is not an error.
pub fn find(search: &Search) -> Result<Vec<PgInstall>> {
    if let Some(bin_dir) = &search.bin_dir {
        let install = PgInstall::at(bin_dir).ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("there is no PostgreSQL server in {}", bin_dir.display()))
                .with_hint("name the folder that holds initdb, postgres and pg_ctl")
        })?;
        return Ok(vec![install]);
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    if let Some(path) = &search.path {
        folders.extend(std::env::split_paths(path).filter(|p| p.is_absolute()));
    }
    if search.usual_places {
        folders.extend(usual_places());
    }
    if search.cache {
        folders
            .extend(store::existing_folders()?.into_iter().flat_map(|f| inside(&f.join("postgres"), "bin")));
    }
    let mut found: Vec<PgInstall> = Vec::new();
    for folder in folders {
        // Asking a binary for its version costs a process: not twice for the same folder.
        if found.iter().any(|known| known.bin_dir == folder) {
            continue;
        }
        if let Some(install) = PgInstall::at(&folder)
            && !found.iter().any(|known| known.bin_dir == install.bin_dir)
        {
            found.push(install);
        }
    }
    found.sort_by_key(|install| std::cmp::Reverse((install.major, minor(&install.version))));
    Ok(found)
}

/// Folders where distributions and installers put server programs.
fn usual_places() -> Vec<PathBuf> {
    let mut folders = inside(Path::new("/usr/lib/postgresql"), "bin");
    for (parent, prefix) in [
        ("/usr", "pgsql-"),
        ("/usr/lib", "postgresql"),
        ("/usr/libexec", "postgresql"),
        ("/opt/homebrew/opt", "postgresql"),
        ("/usr/local/opt", "postgresql"),
        ("/home/linuxbrew/.linuxbrew/opt", "postgresql"),
        ("/usr/local", "pgsql"),
        ("/opt", "pgsql"),
        ("/opt", "postgresql"),
    ] {
        for folder in entries(Path::new(parent)) {
            if folder.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(prefix)) {
                folders.push(folder.join("bin"));
                // Alpine and Fedora keep the programs directly in the folder.
                folders.push(folder);
            }
        }
    }
    folders.extend(
        inside(Path::new("/Applications/Postgres.app/Contents/Versions"), "bin")
            .into_iter()
            .chain(inside(Path::new("/Library/PostgreSQL"), "bin"))
            .chain(inside(Path::new("/opt/local/lib"), "bin")),
    );
    folders
}

/// `parent/*/name`
fn inside(parent: &Path, name: &str) -> Vec<PathBuf> {
    entries(parent).into_iter().map(|entry| entry.join(name)).collect()
}

/// The entries of a folder by name; none where it can't be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(list) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = list.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The folder the programs really are in: a folder on `PATH` often holds links only.
fn resolved(bin_dir: &Path) -> PathBuf {
    let real = bin_dir.join("postgres").canonicalize().ok();
    match real.as_deref().and_then(Path::parent) {
        // Some packagers link each program separately: then the folder of links is the installation.
        Some(parent) if NEEDED.iter().all(|name| parent.join(name).is_file()) => parent.to_path_buf(),
        _ => bin_dir.to_path_buf(),
    }
}

/// `postgres (PostgreSQL) 15.20 (Debian 15.20-1)` gives `(15, "15.20")`.
fn parse_version(text: &str) -> Option<(u32, String)> {
    let version = text.split("(PostgreSQL)").nth(1)?.split_whitespace().next()?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, version.to_owned()))
}

/// Number after the dot; a beta comes before every release.
fn minor(version: &str) -> i64 {
    version.split_once('.').and_then(|(_, minor)| minor.parse().ok()).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake(folder: &Path, version: &str) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(folder).unwrap();
        for name in NEEDED {
            std::fs::write(folder.join(name), format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n"))
                .unwrap();
            std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn versions_of_packages_and_betas_are_understood() {
        assert_eq!(
            parse_version("postgres (PostgreSQL) 15.20 (Debian 15.20-1)"),
            Some((15, "15.20".to_owned()))
        );
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n"), Some((18, "18beta1".to_owned())));
        assert_eq!(parse_version("something else"), None);
        assert!(minor("16.10") > minor("16.9") && minor("18.0") > minor("18beta1"));
    }

    #[test]
    fn the_newest_comes_first_and_incomplete_folders_do_not_count() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = |name: &str| scratch.path().canonicalize().unwrap().join(name);
        fake(&folder("a"), "14.2");
        fake(&folder("b"), "17.10");
        fake(&folder("c"), "17.9");
        fake(&folder("d"), "18.1");
        std::fs::remove_file(folder("d").join("initdb")).unwrap();
        let path = std::env::join_paths(["a", "b", "c", "d", "b"].map(folder)).unwrap();
        let search = Search { path: Some(path), usual_places: false, cache: false, bin_dir: None };
        let versions: Vec<String> = find(&search).unwrap().into_iter().map(|i| i.version).collect();
        assert_eq!(versions, ["17.10", "17.9", "14.2"]);
    }

    #[test]
    fn an_explicit_folder_without_a_server_is_an_error_with_a_hint() {
        let scratch = tempfile::tempdir().unwrap();
        let search = Search { bin_dir: Some(scratch.path().to_path_buf()), ..Search::default() };
        let error = find(&search).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.hint().unwrap().contains("initdb"));
    }
}
