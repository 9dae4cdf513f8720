use super::*;

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pgtrickle.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn url(text: &str) -> Flags {
    Flags { database_url: Some(text.to_owned()), ..Flags::default() }
}

fn settings(flags: Flags, pairs: &[(&str, &str)]) -> Result<Settings> {
    Sources::read(flags, environment(pairs))?.settings()
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let (_folder, path) = file("# ours\nworkers = 2\npipeline = \"of_file\"\nmemory_limit = \"64MB\"\n");
    let flags =
        Flags { config: Some(path.clone()), workers: Some("4".to_owned()), ..url("postgresql://u@h/d") };
    let all = settings(flags, &[("PGTRICKLE_WORKERS", "3"), ("PGTRICKLE_PIPELINE", "of_variable")]).unwrap();
    assert_eq!(all.workers, Sourced::new(4, Origin::Flag("workers")));
    assert_eq!(all.pipeline.origin, Origin::Environment("PGTRICKLE_PIPELINE"));
    let origin = Origin::File { path, line: 4, key: "memory_limit".to_owned() };
    assert_eq!(all.memory_limit, Sourced::new(64_000_000, origin));
    let none = settings(url("postgresql://u@h/d"), &[("PGTRICKLE_WORKERS", "")]).unwrap();
    assert_eq!(none.workers, Sourced::new(1, Origin::Default));
    assert_eq!(none.pipeline.value, "main");
}

#[test]
fn an_error_names_the_place_of_its_value() {
    let (_folder, path) = file("\n\nworkers = 0\n");
    let from_file =
        settings(Flags { config: Some(path.clone()), ..url("postgresql://u@h/d") }, &[]).unwrap_err();
    assert_eq!(from_file.kind(), ErrorKind::Config);
    assert!(from_file.context().starts_with(&format!("{}:3 workers: ", path.display())), "{from_file}");
    let variable = settings(url("postgresql://u@h/d"), &[("PGTRICKLE_MEMORY_LIMIT", "much")]).unwrap_err();
    assert!(variable.context().starts_with("environment variable PGTRICKLE_MEMORY_LIMIT: "), "{variable}");
    let flag = Flags { pipeline: Some("Main".to_owned()), ..url("postgresql://u@h/d") };
    assert!(settings(flag, &[]).unwrap_err().context().starts_with("flag --pipeline: "));
    let logs = Sources::read(Flags { log: Some("a=b=c".to_owned()), ..Flags::default() }, environment(&[]));
    assert!(logs.unwrap().logs().unwrap_err().context().starts_with("flag --log: "));
}

#[test]
fn a_file_with_a_strange_key_or_no_toml_is_refused_with_its_line() {
    let (_folder, path) = file("workers = 1\nworkres = 2\n");
    let error =
        Sources::read(Flags { config: Some(path), ..Flags::default() }, environment(&[])).err().unwrap();
    assert!(error.context().contains(":2 workres: unknown key"), "{error}");
    let (_folder, path) = file("workers = 1\ndatabase_url = \"postgresql://u:secret@h/d\n");
    let error = Sources::read(Flags::default(), environment(&[("PGTRICKLE_CONFIG", path.to_str().unwrap())]))
        .err()
        .unwrap();
    assert!(error.context().contains("pgtrickle.toml:2 is no valid TOML"), "{error}");
    assert!(error.context().starts_with("environment variable PGTRICKLE_CONFIG: "), "{error}");
    assert!(!format!("{error:?}").contains("secret"));
}

#[test]
fn a_url_wins_over_pg_variables_and_they_fill_what_it_leaves_open() {
    let pairs = [("PGHOST", "elsewhere"), ("PGPORT", "5433"), ("PGUSER", "me"), ("PGPASSWORD", "secret")];
    let all = settings(url("postgresql://h/d"), &pairs).unwrap();
    // A URL without a port means 5432: PGPORT belongs to PGHOST.
    assert_eq!(all.target.describe(), "h:5432/d");
    assert_eq!(all.connection, Origin::Flag("database-url"));
    assert_eq!(all.target.config().get_user(), Some("me"));
    assert_eq!(all.target.config().get_password(), Some("secret".as_bytes()));
    let variable =
        settings(Flags::default(), &[("DATABASE_URL", "postgresql://u@h/d"), ("PGHOST", "x")]).unwrap();
    assert_eq!(variable.connection, Origin::Environment("DATABASE_URL"));
    let libpq = settings(Flags::default(), &pairs).unwrap();
    assert_eq!(
        (libpq.target.describe().as_str(), libpq.connection),
        ("elsewhere:5433/me", Origin::Environment("PGHOST"))
    );
}

#[test]
fn pg_variables_name_another_server_than_the_file() {
    let (_folder, path) = file("database_url = \"postgresql://u@of_file/d\"\n");
    let flags = Flags { config: Some(path), ..Flags::default() };
    let of_file = settings(flags.clone(), &[("PGPASSWORD", "secret")]).unwrap();
    assert_eq!(of_file.target.describe(), "of_file:5432/d");
    assert_eq!(of_file.connection.to_string().split(':').next_back(), Some("1 database_url"));
    let of_variable = settings(flags, &[("PGHOST", "h"), ("PGUSER", "u")]).unwrap();
    assert_eq!(of_variable.target.describe(), "h:5432/u");
}

#[test]
fn a_password_is_in_no_error_and_not_in_debug() {
    for bad in [
        "postgresql://u:secret@h:port/d",
        "postgresql://u:secret@h/d?sslmode=verify-full",
        "password=a secret=b",
    ] {
        let error = settings(url(bad), &[("USER", "u")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.context().starts_with("flag --database-url: "), "{error}");
        assert!(!format!("{error:?} {error}").contains("secret"), "{error:?}");
    }
    let all = settings(url("postgresql://u:secret@h/d"), &[]).unwrap();
    assert!(!format!("{all:?}").contains("secret"));
}

#[test]
fn a_stronger_sslmode_than_we_have_is_refused_and_never_weakened() {
    let error = settings(url("postgresql://u@h/d"), &[("PGSSLMODE", "verify-full")]).unwrap_err();
    assert!(error.context().starts_with("environment variable PGSSLMODE: "), "{error}");
    let required = settings(url("postgresql://u@h/d"), &[("PGSSLMODE", "require")]).unwrap();
    assert_eq!(required.target.config().get_ssl_mode(), tokio_postgres::config::SslMode::Require);
    let own = settings(url("postgresql://u@h/d?sslmode=disable"), &[("PGSSLMODE", "require")]).unwrap();
    assert_eq!(own.target.config().get_ssl_mode(), tokio_postgres::config::SslMode::Disable);
}

#[test]
fn a_password_file_that_others_may_read_is_not_believed() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, path) = file("h:5432:d:u:secret\n");
    let pairs = [("PGPASSFILE", path.to_str().unwrap())];
    let mode = |bits| std::fs::set_permissions(&path, PermissionsExt::from_mode(bits)).unwrap();
    mode(0o600);
    let found = settings(url("postgresql://u@h/d"), &pairs).unwrap();
    assert_eq!(found.target.config().get_password(), Some("secret".as_bytes()));
    mode(0o644);
    let not_found = settings(url("postgresql://u@h/d"), &pairs).unwrap();
    assert_eq!(not_found.target.config().get_password(), None);
}

#[test]
fn without_any_name_of_a_database_the_way_to_name_one_is_told() {
    let error = settings(Flags::default(), &[("PGPASSWORD", "x")]).unwrap_err();
    assert_eq!(error.context(), "no database is named");
    assert!(error.hint().unwrap().contains("--database-url"));
}

#[test]
fn our_own_log_variable_beats_rust_log_which_beats_the_file() {
    let (_folder, path) = file("log = \"debug\"\nlog_format = \"json\"\n");
    let flags = Flags { config: Some(path), ..Flags::default() };
    let logs =
        |pairs: &[(&str, &str)]| Sources::read(flags.clone(), environment(pairs)).unwrap().logs().unwrap();
    assert_eq!(logs(&[("PGTRICKLE_LOG", "warn"), ("RUST_LOG", "trace")]).filter.value, "warn");
    assert_eq!(logs(&[("RUST_LOG", "trace")]).filter.value, "trace");
    let file_only = logs(&[]);
    assert_eq!((file_only.filter.value.as_str(), file_only.format.value), ("debug", LogFormat::Json));
}

#[test]
fn all_databases_is_a_flag_a_variable_or_a_boolean_of_the_file() {
    let (_folder, path) = file("all_databases = true\n");
    let of_file = Flags { config: Some(path), ..url("postgresql://u@h/d") };
    assert!(settings(of_file.clone(), &[]).unwrap().all_databases.value);
    assert!(!settings(of_file, &[("PGTRICKLE_ALL_DATABASES", "off")]).unwrap().all_databases.value);
    assert!(!settings(url("postgresql://u@h/d"), &[]).unwrap().all_databases.value);
    let odd = settings(url("postgresql://u@h/d"), &[("PGTRICKLE_ALL_DATABASES", "maybe")]).unwrap_err();
    assert!(odd.context().starts_with("environment variable PGTRICKLE_ALL_DATABASES: "), "{odd}");
}
