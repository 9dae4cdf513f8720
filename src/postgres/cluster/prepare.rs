//! The folders of a cluster: chosen, made by initdb or copied from a prepared one, and handed to the server's user.
//!
//! initdb takes about a second, a copy of its result a tenth of that. The copy is kept in the cache under a name made of
//! all that decides its content. Invariant: a prepared folder appears complete, by a rename, or not at all.

use std::io;

use sha2::{Digest, Sha256};

use super::*;

/// Locales to try: the first that this machine's C library knows. Both compare by bytes.
const LOCALES: [&str; 2] = ["C.UTF-8", "C"];

/// A fresh folder in the first temporary folder that the server's user can enter.
pub(super) fn scratch_folder(account: Option<Account>) -> Result<PathBuf> {
    let parents = [std::env::temp_dir(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")];
    let parent = parents.iter().find(|parent| account::may_enter(parent, account)).ok_or_else(|| {
        Error::new(ErrorKind::ServerSetup, "the server's user can enter no temporary folder")
            .with_hint("set TMPDIR to a folder that other users can enter")
    })?;
    // The real path: the server reports it, and on some systems the temporary folder is a link.
    let parent = parent.canonicalize().map_err(|e| failure("resolve", parent, e))?;
    store::unique_folder(&parent, "pgtrickle-pg-")
}

/// The folder the caller named, and whether it already holds a cluster of ours.
pub(super) fn given_folder(dir: &Path, account: Option<Account>) -> Result<(PathBuf, bool)> {
    let absolute = std::path::absolute(dir).map_err(|e| failure("resolve", dir, e))?;
    // Folders that are missing are created and can be entered; the first that exists decides. The folder itself is
    // given to the server's user, so it does not count.
    let above = absolute.ancestors().skip(1).find(|ancestor| ancestor.exists());
    if !above.is_some_and(|above| account::may_enter(above, account)) {
        return Err(Error::new(
            ErrorKind::Config,
            format!("the server's user can't enter the folder above {}", absolute.display()),
        )
        .with_hint("as root the server runs as another user; name a folder that this user can reach"));
    }
    fs::create_dir_all(dir).map_err(|e| failure("create", dir, e))?;
    let dir = dir.canonicalize().map_err(|e| failure("resolve", dir, e))?;
    if dir.join("data/PG_VERSION").is_file() && dir.join("data/pgtrickle.conf").is_file() {
        return Ok((dir, true));
    }
    let mut entries = fs::read_dir(&dir).map_err(|e| failure("read", &dir, e))?;
    if entries.next().is_some() {
        return Err(Error::new(
            ErrorKind::Config,
            format!("{} is neither empty nor a cluster made by pgtrickle", dir.display()),
        )
        .with_hint("name an empty folder"));
    }
    Ok((dir, false))
}

/// Fills the data folder of a new cluster.
pub(super) fn data_folder(cluster: &Cluster) -> Result<()> {
    let account = cluster.account;
    hand_over(&cluster.folder, 0o700, account)?;
    let data = cluster.data_dir();
    let prepared = if cluster.options.prepared { prepared_folder(cluster) } else { None };
    match prepared {
        Some(prepared) if prepared.is_dir() => copy(&prepared, &data, account)?,
        Some(prepared) => {
            initdb(cluster, &data)?;
            // Whether the copy for the next time succeeds does not matter now.
            let _ = keep(&data, &prepared);
        }
        None => initdb(cluster, &data)?,
    }
    if cluster.options.fsync && cluster.options.keep {
        // Neither a copy nor initdb as we run it flushes the files; the server only flushes what it changes.
        run_initdb(cluster, &data, &["--sync-only"])?;
    }
    let main = data.join("postgresql.conf");
    let mut file = OpenOptions::new().append(true).open(&main).map_err(|e| failure("open", &main, e))?;
    io::Write::write_all(&mut file, b"\ninclude_if_exists 'pgtrickle.conf'\n")
        .map_err(|e| failure("write", &main, e))
}

/// Removes all prepared data folders; the next cluster runs initdb again.
///
/// # Errors
/// `ServerSetup` when a folder can't be removed.
pub fn forget_prepared() -> Result<()> {
    for folder in store::existing_folders()? {
        let prepared = folder.join("prepared");
        match fs::remove_dir_all(&prepared) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failure("remove", &prepared, e)),
            _ => {}
        }
    }
    Ok(())
}

/// Where the prepared data folder of this installation is or would be.
fn prepared_folder(cluster: &Cluster) -> Option<PathBuf> {
    let install = &cluster.install;
    // Two builds of one version may differ in block size or catalogs: the binary itself is part of the name.
    let facts = fs::metadata(install.program("postgres")).ok()?;
    let mut digest = Sha256::new();
    for part in [
        install.version.as_bytes(),
        install.bin_dir.as_os_str().as_encoded_bytes(),
        cluster.options.superuser.as_bytes(),
        format!("{:?} {}", facts.modified().ok()?, facts.len()).as_bytes(),
        std::env::var("TZ").unwrap_or_default().as_bytes(),
    ] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let name: String = digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Some(store::folder().ok()?.join("prepared").join(format!("{}-{name}", install.version)))
}

/// Copies a fresh data folder to the cache under `target`.
fn keep(data: &Path, target: &Path) -> Result<()> {
    let Some(parent) = target.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(|e| failure("create", parent, e))?;
    let beside = store::unique_folder(parent, ".new-")?;
    let result = copy(data, &beside, None).and_then(|()| {
        // Another process may have been faster: the rename onto a filled folder fails, and its copy is as good.
        fs::rename(&beside, target).map_err(|e| failure("rename", &beside, e))
    });
    if result.is_err() {
        let _ = fs::remove_dir_all(&beside);
    }
    result
}

/// Copies a tree of files and folders, giving each to `account`.
fn copy(from: &Path, to: &Path, account: Option<Account>) -> Result<()> {
    if !to.is_dir() {
        fs::create_dir(to).map_err(|e| failure("create", to, e))?;
    }
    hand_over(to, 0o700, account)?;
    for entry in fs::read_dir(from).map_err(|e| failure("read", from, e))? {
        let entry = entry.map_err(|e| failure("read", from, e))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(|e| failure("look at", &source, e))?;
        if kind.is_dir() {
            copy(&source, &target, account)?;
        } else {
            // Mode 0600 comes along with the content.
            fs::copy(&source, &target).map_err(|e| failure("copy", &source, e))?;
            account::give(&target, account)?;
        }
    }
    Ok(())
}

/// Makes a cluster with the first locale that works.
fn initdb(cluster: &Cluster, data: &Path) -> Result<()> {
    let superuser = cluster.options.superuser.as_str();
    let common = ["-U", superuser, "-A", "trust", "-E", "UTF8", "--no-sync", "--no-instructions", "--locale"];
    let mut result = Ok(());
    for locale in LOCALES {
        result = run_initdb(cluster, data, &[&common[..], &[locale]].concat());
        match &result {
            Err(error) if error.context().contains("locale") => {}
            _ => break,
        }
        // It removes what it made, but not always a folder it found.
        let _ = fs::remove_dir_all(data);
    }
    result
}

/// Runs initdb as the server's user; what it complains about becomes the error.
fn run_initdb(cluster: &Cluster, data: &Path, arguments: &[&str]) -> Result<()> {
    let program = cluster.install.program("initdb");
    let output = account::command(&program, cluster.account)
        .arg("-D")
        .arg(data)
        .args(arguments)
        .current_dir(&cluster.folder)
        .output()
        .map_err(|e| failure("run", &program, e))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(ErrorKind::ServerSetup, format!("initdb failed: {}", complaint.trim())))
}
