//! The cache folder: fetched servers and prepared data folders.
//!
//! It is `$XDG_CACHE_HOME/pgtrickle` or `~/.cache/pgtrickle`. As root the server runs as another user, who must be able
//! to enter the folder; where that fails, it is `pgtrickle-<uid>` in the system's temporary folder.
//! Invariant: programs are only run from a cache folder that belongs to us and that nobody else can write, because
//! anybody may create a folder of a known name in a shared temporary folder.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::account;
use crate::error::{Error, ErrorKind, Result};

/// A lock older than this belongs to a process that hangs or to another machine.
const STALE: Duration = Duration::from_secs(600);

/// The cache folder, created when it is missing.
///
/// # Errors
/// `ServerSetup` when no folder can be made that belongs to us alone and that the server's user can enter.
pub fn folder() -> Result<PathBuf> {
    let server = account::server_account()?;
    let mut refusal = None;
    for candidate in candidates()? {
        // Not even an empty folder is left where it could not be used.
        let existing = candidate.ancestors().find(|ancestor| ancestor.exists());
        if !existing.is_some_and(|ancestor| account::may_enter(ancestor, server)) {
            continue;
        }
        match prepare(&candidate) {
            Ok(()) if account::may_enter(&candidate, server) => return Ok(candidate),
            Ok(()) => {}
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal
        .unwrap_or_else(|| Error::new(ErrorKind::ServerSetup, "there is no usable cache folder"))
        .with_hint("set XDG_CACHE_HOME to a folder of your own that other users can enter"))
}

/// The cache folders that exist and can be trusted.
pub fn existing_folders() -> Result<Vec<PathBuf>> {
    Ok(candidates()?.into_iter().filter(|folder| belongs_to_us(folder).is_ok()).collect())
}

fn candidates() -> Result<Vec<PathBuf>> {
    let uid = account::own_uid()?;
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    let shared = std::env::temp_dir().join(format!("pgtrickle-{uid}"));
    Ok(cache.map(|c| c.join("pgtrickle")).into_iter().chain([shared]).collect())
}

fn prepare(folder: &Path) -> Result<()> {
    let mode = if account::server_account()?.is_some() { 0o755 } else { 0o700 };
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(folder)
        .map_err(|e| failure("create the cache folder", folder, e))?;
    belongs_to_us(folder)
}

/// Refuses a folder that somebody else made or may change.
fn belongs_to_us(folder: &Path) -> Result<()> {
    let facts = fs::symlink_metadata(folder).map_err(|e| failure("look at the cache folder", folder, e))?;
    if !facts.is_dir() || facts.uid() != account::own_uid()? || facts.permissions().mode() & 0o022 != 0 {
        return Err(Error::new(
            ErrorKind::ServerSetup,
            format!("the cache folder {} is not a folder that only this user can change", folder.display()),
        ));
    }
    Ok(())
}

/// `can't <action> <path>` with its cause.
pub fn failure(action: &str, path: &Path, cause: io::Error) -> Error {
    Error::new(ErrorKind::ServerSetup, format!("can't {action} {}: {cause}", path.display()))
        .with_source(cause)
}

/// A fresh folder with a name that nobody can guess, readable by us alone.
///
/// # Errors
/// `ServerSetup` when `parent` can't be written.
pub fn unique_folder(parent: &Path, prefix: &str) -> Result<PathBuf> {
    for _ in 0..100 {
        let folder = parent.join(format!("{prefix}{:012x}", random() & 0xffff_ffff_ffff));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failure("create", &folder, e)),
        }
    }
    Err(Error::new(ErrorKind::ServerSetup, format!("can't find a free name in {}", parent.display())))
}

/// A number that differs between processes and calls (the keys of the standard hasher come from the system).
pub fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Keeps other processes from doing the same expensive work; removed when dropped.
///
/// It only saves work: correctness comes from renaming complete folders into place. So a lock whose process is gone is
/// simply taken over.
pub struct Lock {
    path: PathBuf,
}

impl Lock {
    /// Waits until the lock file `path` is ours.
    ///
    /// # Errors
    /// `ServerSetup` when the file can't be created or another live process holds it longer than `patience`.
    pub fn take(path: PathBuf, patience: Duration) -> Result<Lock> {
        let deadline = Instant::now() + patience;
        loop {
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    let lock = Lock { path };
                    write!(file, "{}", std::process::id()).map_err(|e| failure("write", &lock.path, e))?;
                    return Ok(lock);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(failure("create the lock file", &path, e)),
            }
            if is_stale(&path) && fs::remove_file(&path).is_ok() {
                continue;
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    ErrorKind::ServerSetup,
                    format!("another process has held {} for too long", path.display()),
                )
                .with_hint("remove the file if no other pgtrickle is at work"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn is_stale(path: &Path) -> bool {
    let Ok(facts) = fs::metadata(path) else { return false };
    let age =
        facts.modified().ok().and_then(|t| SystemTime::now().duration_since(t).ok()).unwrap_or_default();
    let holder = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let gone = match holder {
        Some(pid) if Path::new("/proc/self").exists() => !Path::new(&format!("/proc/{pid}")).exists(),
        Some(_) => false,
        // Created but not yet written: its process is between two system calls, or died there.
        None => age > Duration::from_secs(5),
    };
    gone || age > STALE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_exclusive_and_a_dead_process_does_not_hold_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lock");
        let held = Lock::take(path.clone(), Duration::ZERO).unwrap();
        assert!(Lock::take(path.clone(), Duration::ZERO).is_err());
        drop(held);
        // Larger than any process number Linux gives out.
        fs::write(&path, "4194305").unwrap();
        Lock::take(path, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_folder_that_others_can_write_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        belongs_to_us(scratch.path()).unwrap();
        fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(belongs_to_us(scratch.path()).is_err());
    }
}
