//! Brings the schema of a database to the state of this binary.
//!
//! The files under `schema/` are embedded, ordered by name and idempotent. `pgtrickle.schema_files` holds the SHA-256
//! of each file as it was applied; a file whose checksum differs is applied again, `999_grants.sql` after any other.
//! Invariant: one transaction under one advisory lock, so a database has the old state or the new one, and a schema
//! that a newer binary made is never touched. A schema of an older release is served as it is until somebody says
//! `init --upgrade`. [`script`] is the same thing as text for psql.

use sha2::{Digest, Sha256};
use tokio_postgres::Client;

use crate::error::{Error, ErrorKind, Result};

/// Grows with every release that changes a file; a database with a larger number belongs to a newer binary.
pub const SCHEMA_VERSION: i32 = 2;

/// The oldest version that this binary can serve: that of the release before. Version 1 was there before the first release
/// and is served by none; it is upgraded.
pub const OLDEST_SCHEMA: i32 = 2;

/// Key of the advisory lock that keeps two migrations apart (the lease of a pipeline has another second half).
const LOCK: &str =
    "pg_catalog.pg_advisory_xact_lock(1346852939, pg_catalog.hashtext('pgtrickle schema files'))";

/// Settings of the transaction: nothing of the session may decide what a name in the files means.
const PREPARE: &str = "set local search_path = pg_catalog, pg_temp; set local client_min_messages = warning; \
                       set local lock_timeout = '30s'; set local check_function_bodies = on";

/// Applied again after any other file: it gives what is new to the roles granted before.
const LAST_FILE: &str = "999_grants.sql";

/// One embedded file of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaFile {
    /// Name under `schema/`; the order of names is the order of application.
    pub name: &'static str,
    pub sql: &'static str,
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(SchemaFile { name: $name, sql: include_str!(concat!("../../schema/", $name)) }),*]
    };
}

/// All files in order.
pub const FILES: &[SchemaFile] = files![
    "001_catalog.sql",
    "002_rights.sql",
    "003_names.sql",
    "004_generate.sql",
    "005_create.sql",
    "006_refresh.sql",
    "007_alter.sql",
    "008_status.sql",
    "009_capture.sql",
    "010_recovery.sql",
    "011_snapshots.sql",
    "011_snapshots_restore.sql",
    "012_maintenance.sql",
    "012_maintenance_restore.sql",
    "013_health.sql",
    "013_health_check.sql",
    "014_ddl.sql",
    "016_state.sql",
    "017_alerts.sql",
    "017_pause.sql",
    "018_pipelines.sql",
    "020_comments.sql",
    "999_grants.sql",
];

impl SchemaFile {
    /// SHA-256 of the text in lower-case hexadecimal.
    pub fn checksum(&self) -> String {
        Sha256::digest(self.sql.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What to set up besides the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Role the sidecar logs in as; gets `pgtrickle.set_sidecar_role`. None: the installing role runs the sidecar.
    pub sidecar_role: Option<String>,
    /// Roles that may create stream tables; each gets `pgtrickle.grant_usage`.
    pub grant_to: Vec<String>,
    /// Brings a schema of an older release to this one. Without it such a schema is left alone.
    pub upgrade: bool,
}

/// What a migration did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Files that were applied, in order; empty when the schema was up to date.
    pub applied: Vec<&'static str>,
}

/// Applies what is missing or changed, then the rights of `options`, in one transaction.
///
/// # Errors
/// [`ErrorKind::SchemaVersion`] when the schema belongs to a newer binary or to the extension `pg_trickle`;
/// [`ErrorKind::Privilege`] when the role may not create schemas or grant; [`ErrorKind::ServerSetup`] on a server
/// older than 14 or a standby; [`ErrorKind::Contention`] when another migration holds the lock for 30 seconds.
/// Nothing is changed then.
pub async fn migrate(client: &mut Client, options: &Options) -> Result<Report> {
    let transaction = client.transaction().await.map_err(failed("begin the migration"))?;
    transaction.batch_execute(PREPARE).await.map_err(failed("prepare the migration"))?;
    let server = transaction
        .query_one(
            "select current_setting('server_version_num')::int, pg_is_in_recovery(),
                    exists (select from pg_extension where extname = 'pg_trickle')",
            &[],
        )
        .await
        .map_err(failed("look at the server"))?;
    check_server(server.get(0), server.get(1), server.get(2))?;
    transaction.batch_execute(&format!("select {LOCK}")).await.map_err(failed("lock the schema"))?;
    let has_files: bool = transaction
        .query_one("select to_regclass('pgtrickle.schema_files') is not null", &[])
        .await
        .map_err(failed("look for the schema"))?
        .get(0);
    let mut known = Vec::new();
    if has_files {
        let rows = transaction
            .query("select file, checksum from pgtrickle.schema_files", &[])
            .await
            .map_err(failed("read pgtrickle.schema_files"))?;
        known.extend(rows.iter().map(|row| (row.get::<_, String>(0), row.get::<_, String>(1))));
        let version: Option<i32> = transaction
            .query_one("select (select value::int from pgtrickle.settings where key = 'schema_version')", &[])
            .await
            .map_err(failed("read the schema's version"))?
            .get(0);
        check_age(&known, version)?;
        if !options.upgrade && version.is_some_and(|version| version < SCHEMA_VERSION) {
            return Err(Error::new(ErrorKind::NotInstalled, older(version))
                .with_hint("run `pgtrickle init --upgrade`; with --print it shows what it would do"));
        }
    } else if options.upgrade {
        return Err(Error::new(ErrorKind::NotInstalled, "there is no schema to upgrade in this database")
            .with_hint("run `pgtrickle init`"));
    }
    let mut report = Report::default();
    for file in FILES {
        let checksum = file.checksum();
        let current = known.iter().any(|(name, sum)| name == file.name && *sum == checksum);
        if current && (file.name != LAST_FILE || report.applied.is_empty()) {
            continue;
        }
        transaction.batch_execute(file.sql).await.map_err(failed(&format!("apply {}", file.name)))?;
        transaction.execute(RECORD, &[&file.name, &checksum]).await.map_err(failed("record a file"))?;
        report.applied.push(file.name);
    }
    transaction.batch_execute(&record_version()).await.map_err(failed("record the version"))?;
    for statement in rights(options) {
        transaction.batch_execute(&statement).await.map_err(failed("grant the rights"))?;
    }
    transaction.commit().await.map_err(failed("commit the migration"))?;
    Ok(report)
}

const RECORD: &str = "insert into pgtrickle.schema_files (file, checksum) values ($1, $2)
    on conflict (file) do update set checksum = excluded.checksum, applied_at = now()";

fn record_version() -> String {
    format!(
        "insert into pgtrickle.settings (key, value) values ('schema_version', '{SCHEMA_VERSION}') \
         on conflict (key, pipeline) do update set value = excluded.value where settings.value <> excluded.value"
    )
}

/// Calls for the roles in `options`, in order.
fn rights(options: &Options) -> Vec<String> {
    let sidecar = options.sidecar_role.iter().map(|role| ("set_sidecar_role", role));
    let users = options.grant_to.iter().map(|role| ("grant_usage", role));
    // The sidecar's role loses CREATE on pgtrickle_queries; a role that is both keeps what grant_usage gives.
    sidecar
        .chain(users)
        .map(|(function, role)| format!("select pgtrickle.{function}({})", literal(role)))
        .collect()
}

/// An SQL string literal, whatever standard_conforming_strings says.
fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

fn check_server(version: i32, standby: bool, extension: bool) -> Result<()> {
    if version < 140_000 {
        return Err(Error::new(
            ErrorKind::ServerSetup,
            format!("PostgreSQL {} is not supported", version / 10_000),
        )
        .with_hint("use PostgreSQL 14 or newer"));
    }
    if standby {
        return Err(Error::new(ErrorKind::ServerSetup, "the server is a standby")
            .with_hint("run init against the primary; standbys receive the schema by replication"));
    }
    if extension {
        return Err(extension_found());
    }
    Ok(())
}

const EXTENSION: &str =
    "the extension pg_trickle is installed in this database and owns the schema pgtrickle";
const EXTENSION_HINT: &str =
    "note its stream tables, then DROP EXTENSION pg_trickle CASCADE, or use another database";

fn extension_found() -> Error {
    Error::new(ErrorKind::SchemaVersion, EXTENSION).with_hint(EXTENSION_HINT)
}

fn check_age(known: &[(String, String)], version: Option<i32>) -> Result<()> {
    let strange = known.iter().map(|(name, _)| name).find(|name| FILES.iter().all(|file| file.name != *name));
    let newer = match strange {
        Some(name) => Some(format!("the schema holds {name}, which this binary does not know")),
        None => version
            .filter(|version| *version > SCHEMA_VERSION)
            .map(|version| format!("the schema has version {version}, this binary knows {SCHEMA_VERSION}")),
    };
    match newer {
        None => Ok(()),
        Some(what) => Err(Error::new(ErrorKind::SchemaVersion, what)
            .with_hint("a newer pgtrickle has been here: upgrade this binary; nothing was changed")),
    }
}

/// Checks that a sidecar of this version can work with the schema in the database. Reads only.
///
/// # Errors
/// [`ErrorKind::NotInstalled`] when there is no schema or an older one, [`ErrorKind::SchemaVersion`] when it is newer or
/// that of the extension `pg_trickle`; [`ErrorKind::Privilege`] when the role was not given the rights of a sidecar.
pub async fn check_installed(client: &Client) -> Result<()> {
    const LOOK: &str = "select exists (select from pg_catalog.pg_extension where extname = 'pg_trickle'),
            exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                     where n.nspname = 'pgtrickle' and c.relname = 'schema_files'),
            coalesce((select pg_catalog.has_schema_privilege(n.oid, 'USAGE') from pg_catalog.pg_namespace n
                       where n.nspname = 'pgtrickle'), true),
            current_user::text";
    let row = client.query_one(LOOK, &[]).await.map_err(failed("look for the schema"))?;
    if row.get(0) {
        return Err(extension_found());
    }
    if !row.get::<_, bool>(1) {
        return Err(Error::new(
            ErrorKind::NotInstalled,
            "the pgtrickle schema is not installed in this database",
        )
        .with_hint("run `pgtrickle init` once, as a superuser or the owner of the database"));
    }
    let role: String = row.get(3);
    let no_rights = || {
        Error::new(ErrorKind::Privilege, format!("the role {role} has no rights on the pgtrickle schema"))
            .with_sqlstate("42501")
            .with_hint(format!("run `pgtrickle init --sidecar-role {role}` once, as a superuser"))
    };
    if !row.get::<_, bool>(2) {
        return Err(no_rights());
    }
    const RIGHTS: &str = "select pg_catalog.has_table_privilege('pgtrickle.pgt_pipelines', 'UPDATE')
        and pg_catalog.has_function_privilege('pgtrickle.publication_sync(text, pg_catalog.regclass[])', 'EXECUTE')";
    const STATE: &str = "select (select value::int from pgtrickle.settings where key = 'schema_version'),
            array(select file from pgtrickle.schema_files), array(select checksum from pgtrickle.schema_files)";
    let state =
        client.query_one(STATE, &[]).await.map_err(|e| match failed("read the schema's version")(e) {
            e if e.kind() == ErrorKind::Privilege => no_rights(),
            e => e,
        })?;
    let (files, sums): (Vec<String>, Vec<String>) = (state.get(1), state.get(2));
    let known: Vec<(String, String)> = files.into_iter().zip(sums).collect();
    let version: Option<i32> = state.get(0);
    check_age(&known, version)?;
    let stale =
        FILES.iter().find(|f| !known.iter().any(|(name, sum)| name == f.name && *sum == f.checksum()));
    match served(version) {
        // An older release: its files are others, and that is all right.
        Served::Older => {
            tracing::warn!("{}; it is served as it is until `pgtrickle init --upgrade`", older(version))
        }
        Served::TooOld => {
            return Err(Error::new(ErrorKind::NotInstalled, older(version)).with_hint(format!(
                "run `pgtrickle init --upgrade` with this binary, which serves schemas from version {OLDEST_SCHEMA} on"
            )));
        }
        Served::Own => {
            if let Some(file) = stale {
                return Err(Error::new(
                    ErrorKind::NotInstalled,
                    format!("the schema in the database is not that of this binary: {} differs", file.name),
                )
                .with_hint("run `pgtrickle init` with this binary: it upgrades the schema"));
            }
        }
    }
    match client.query_one(RIGHTS, &[]).await.map_err(failed("look at the role's rights"))?.get(0) {
        true => Ok(()),
        false => Err(no_rights()),
    }
}

/// How a schema that is not newer than this binary is treated.
#[derive(Debug, PartialEq, Eq)]
enum Served {
    /// Of this release: its files must be ours.
    Own,
    /// Of an older release that this binary can serve.
    Older,
    TooOld,
}

fn served(version: Option<i32>) -> Served {
    by_version(version, OLDEST_SCHEMA, SCHEMA_VERSION)
}

/// A schema without a version is half restored: it must be ours.
fn by_version(version: Option<i32>, oldest: i32, own: i32) -> Served {
    match version {
        Some(version) if version < oldest => Served::TooOld,
        Some(version) if version < own => Served::Older,
        _ => Served::Own,
    }
}

fn older(version: Option<i32>) -> String {
    let version = version.unwrap_or_default();
    format!("the schema in the database has version {version}, this binary brings version {SCHEMA_VERSION}")
}

/// Maps the server's error: the kind from its SQLSTATE, the context from its message.
fn failed(what: &str) -> impl Fn(tokio_postgres::Error) -> Error + use<> {
    let what = format!("can't {what}");
    move |error| {
        let Some(db) = error.as_db_error() else {
            return Error::new(ErrorKind::Connection, what.clone()).with_source(error);
        };
        let state = db.code().code().to_owned();
        let (kind, hint) = match state.as_str() {
            "42501" => (
                ErrorKind::Privilege,
                Some(
                    "run init as a superuser or the database's owner, or give a DBA the output of init --print",
                ),
            ),
            "25006" => (ErrorKind::ServerSetup, Some("the server accepts no writes: connect to the primary")),
            "55P03" | "40P01" | "40001" => {
                (ErrorKind::Contention, Some("another migration or a long transaction is running; try again"))
            }
            "42704" => (ErrorKind::Config, None),
            s if s.starts_with("57P") || s.starts_with("08") => (ErrorKind::Connection, None),
            _ => (ErrorKind::Internal, None),
        };
        let mapped = Error::new(kind, format!("{what}: {}", db.message())).with_sqlstate(state);
        match db.hint().or(hint) {
            Some(hint) => mapped.with_hint(hint),
            None => mapped,
        }
    }
}

/// The whole migration as one script for psql, for DBAs who don't let a program create objects.
///
/// Run by psql it does the same as [`migrate`], except that it applies every file whether it has changed or not.
/// To upgrade is what it does anyway; with `upgrade` it refuses a database without a schema.
pub fn script(options: &Options) -> String {
    let names: Vec<String> = FILES.iter().map(|file| literal(file.name)).collect();
    let mut out = format!(
        "-- Schema of pgtrickle {version}. Run with: psql -X -d <database> -f <this file>\n\
         \\set ON_ERROR_STOP on\nbegin;\n{PREPARE};\nselect {LOCK};\n\
         do $check$\ndeclare\n    strange text;\nbegin\n    \
         if current_setting('server_version_num')::int < 140000 then\n        \
         raise exception 'PostgreSQL 14 or newer is needed';\n    end if;\n    \
         if exists (select from pg_extension where extname = 'pg_trickle') then\n        \
         raise exception '{EXTENSION}' using hint = '{EXTENSION_HINT}';\n    end if;\n    \
         if to_regclass('pgtrickle.schema_files') is not null then\n        \
         select file into strange from pgtrickle.schema_files where file not in ({names}) limit 1;\n        \
         if strange is null then\n            select 'version ' || value into strange from pgtrickle.settings\n             \
         where key = 'schema_version' and value::int > {SCHEMA_VERSION};\n        end if;\n        \
         if strange is not null then\n            \
         raise exception 'the schema is newer than this script: it holds %', strange;\n        \
         end if;\n    end if;\nend $check$;\n",
        version = env!("CARGO_PKG_VERSION"),
        names = names.join(", "),
    );
    if options.upgrade {
        out.push_str(
            "do $check$\nbegin\n    if to_regclass('pgtrickle.schema_files') is null then\n        \
             raise exception 'there is no schema to upgrade in this database' using hint = 'Use init --print.';\n    \
             end if;\nend $check$;\n",
        );
    }
    for file in FILES {
        out.push_str(&format!("\n-- {}\n{}", file.name, file.sql));
        let record = RECORD.replace("$1", &literal(file.name)).replace("$2", &literal(&file.checksum()));
        out.push_str(&format!("\n{record};\n"));
    }
    out.push_str(&format!("\n{};\n", record_version()));
    for statement in rights(options) {
        out.push_str(&format!("{statement};\n"));
    }
    out.push_str("commit;\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_ordered_short_and_complete() {
        assert!(FILES.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(FILES.iter().all(|file| file.sql.lines().count() < 500));
        let mut on_disk: Vec<String> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/schema"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        on_disk.sort();
        assert_eq!(on_disk, FILES.iter().map(|file| file.name).collect::<Vec<_>>());
    }

    #[test]
    fn a_schema_of_a_newer_binary_is_refused() {
        let ours: Vec<_> = FILES.iter().map(|file| (file.name.to_owned(), "old".to_owned())).collect();
        assert!(check_age(&ours, Some(SCHEMA_VERSION)).is_ok());
        assert!(check_age(&ours, None).is_ok());
        let newer = check_age(&ours, Some(SCHEMA_VERSION + 1)).unwrap_err();
        assert_eq!(newer.kind(), ErrorKind::SchemaVersion);
        let strange = check_age(&[("020_future.sql".to_owned(), String::new())], None).unwrap_err();
        assert_eq!(strange.kind(), ErrorKind::SchemaVersion);
        assert!(strange.context().contains("020_future.sql"));
    }

    #[test]
    fn a_schema_of_the_release_before_is_served_and_an_older_one_is_not() {
        assert_eq!(by_version(Some(7), 6, 7), Served::Own);
        assert_eq!(by_version(Some(6), 6, 7), Served::Older);
        assert_eq!(by_version(Some(5), 6, 7), Served::TooOld);
        assert_eq!(by_version(None, 6, 7), Served::Own);
        const { assert!(OLDEST_SCHEMA == SCHEMA_VERSION || OLDEST_SCHEMA == SCHEMA_VERSION - 1) }
    }

    #[test]
    fn role_names_are_quoted_in_the_script() {
        let options = Options {
            sidecar_role: Some("si'de".to_owned()),
            grant_to: vec!["a\\b".to_owned()],
            upgrade: false,
        };
        let text = script(&options);
        assert!(text.contains("select pgtrickle.set_sidecar_role('si''de');"));
        assert!(text.contains("select pgtrickle.grant_usage(E'a\\\\b');"));
        assert!(text.ends_with("commit;\n"));
    }
}
