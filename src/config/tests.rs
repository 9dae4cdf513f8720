use super::*;
use crate::postgres::tls::Mode;

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
    said(options::DATABASE_URL, text, Flags::default())
}

fn said(choice: &Choice, value: &str, mut flags: Flags) -> Flags {
    flags.set(choice, Some(value.to_owned()));
    flags
}

fn settings(flags: Flags, pairs: &[(&str, &str)]) -> Result<Settings> {
    Sources::read(flags, environment(pairs))?.settings()
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let (_folder, path) = file("# ours\nworkers = 2\npipeline = \"of_file\"\nmemory_limit = \"64MB\"\n");
    let flags = Flags { config: Some(path.clone()), ..url("postgresql://u@h/d") };
    let flags = said(options::WORKERS, "4", flags);
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
    let flag = said(options::PIPELINE, "Main", url("postgresql://u@h/d"));
    assert!(settings(flag, &[]).unwrap_err().context().starts_with("flag --pipeline: "));
    let logs = Sources::read(said(options::LOG, "a=b=c", Flags::default()), environment(&[]));
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
        "postgresql://u:secret@h/d?sslmode=secret",
        "postgresql://u:secret@h/d?sslpassword=secret",
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

fn mode(text: &str, pairs: &[(&str, &str)]) -> Mode {
    settings(url(text), pairs).unwrap().target.tls().mode
}

#[test]
fn a_way_out_of_this_machine_is_verified_unless_less_is_asked_for_and_then_warned_about() {
    for (host, expected) in [
        ("h", Mode::VerifyFull),
        ("10.0.0.1", Mode::VerifyFull),
        ("localhost", Mode::Prefer),
        ("127.0.0.2", Mode::Prefer),
        ("[::1]", Mode::Prefer),
        ("%2Frun%2Fpostgresql", Mode::Disable),
        ("localhost,h", Mode::VerifyFull),
    ] {
        assert_eq!(mode(&format!("postgresql://u@{host}/d"), &[]), expected, "{host}");
    }
    assert_eq!(mode("host=localhost hostaddr=10.0.0.1 user=u", &[]), Mode::VerifyFull);
    let warned = |text: &str| settings(url(text), &[]).unwrap().warnings.join("\n");
    assert_eq!(warned("postgresql://u@h/d?sslmode=verify-full"), "");
    assert_eq!(warned("postgresql://u@localhost/d?sslmode=disable"), "");
    for weak in ["disable", "prefer", "require"] {
        let said = warned(&format!("postgresql://u@h/d?sslmode={weak}"));
        assert!(said.contains(&format!("sessions with h: sslmode is {weak}")), "{said}");
    }
    assert!(warned("postgresql://u:geheim@localhost/d").contains("command line"));
    assert!(!warned("postgresql://u:geheim@localhost/d").contains("geheim"));
}

#[test]
fn an_sslmode_is_read_from_url_variable_or_file_and_never_weakened() {
    assert_eq!(mode("postgresql://u@h/d", &[("PGSSLMODE", "require")]), Mode::Require);
    assert_eq!(mode("postgresql://u@h/d?sslmode=disable", &[("PGSSLMODE", "require")]), Mode::Disable);
    assert_eq!(mode("postgresql://u@h/d?sslmode=verify-ca", &[("PGSSLMODE", "disable")]), Mode::VerifyCa);
    let (_folder, path) = file("sslmode = \"verify-ca\"\n");
    let flags = Flags { config: Some(path), ..url("postgresql://u@h/d") };
    assert_eq!(settings(flags.clone(), &[]).unwrap().target.tls().mode, Mode::VerifyCa);
    assert_eq!(settings(flags, &[("PGSSLMODE", "require")]).unwrap().target.tls().mode, Mode::Require);
    for strange in ["allow", "verify", "VERIFY-FULL"] {
        let error = settings(url("postgresql://u@h/d"), &[("PGSSLMODE", strange)]).unwrap_err();
        assert!(error.context().starts_with("environment variable PGSSLMODE: "), "{error}");
    }
    let public = settings(url("postgresql://u@h/d?sslmode=require&sslrootcert=system"), &[]).unwrap_err();
    assert!(public.context().contains("sslrootcert=system"), "{public}");
    for pair in [
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGCHANNELBINDING", "require"),
        ("PGSSLCRL", "/x"),
        ("PGSSLCRLDIR", "/x"),
        ("PGGSSENCMODE", "require"),
    ] {
        let error = settings(url("postgresql://u@h/d"), &[pair]).unwrap_err();
        assert!(error.context().starts_with(&format!("environment variable {}: ", pair.0)), "{error}");
    }
    assert_eq!(mode("postgresql://u@localhost/d", &[("PGCHANNELBINDING", "prefer")]), Mode::Prefer);
    let binding = settings(url("postgresql://u@h/d?channel_binding=require"), &[]).unwrap_err();
    assert!(binding.context().contains("channel_binding"), "{binding}");
}

#[test]
fn files_of_certificates_are_checked_before_anything_connects() {
    let error = settings(url("postgresql://u@h/d?sslrootcert=/no/such.pem"), &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.context().contains("/no/such.pem"), "{error}");
    let (_folder, path) = file("no certificate");
    let error = settings(url(&format!("host=h user=u sslrootcert='{}'", path.display())), &[]).unwrap_err();
    assert!(error.context().contains("holds no certificate"), "{error}");
    let alone = settings(url("postgresql://u@localhost/d?sslcert=/a.pem"), &[]).unwrap_err();
    assert!(alone.context().contains("needs its key"), "{alone}");
    let alone = settings(url("postgresql://u@localhost/d"), &[("PGSSLKEY", "/a.key")]).unwrap_err();
    assert!(alone.context().starts_with("environment variable PGSSLKEY: "), "{alone}");
}

#[test]
fn a_password_file_of_ours_is_read_at_every_connect_and_goes_with_no_other_password() {
    let (_folder, path) = file("first\n");
    let flags = said(options::PASSWORD_FILE, path.to_str().unwrap(), url("postgresql://u@localhost/d"));
    let target = settings(flags.clone(), &[("PGPASSWORD", "of_variable")]).unwrap().target;
    let password = || String::from_utf8(target.login().unwrap().get_password().unwrap().to_vec()).unwrap();
    assert_eq!(password(), "first");
    std::fs::write(&path, "second").unwrap();
    assert_eq!(password(), "second");
    std::fs::write(&path, "\n").unwrap();
    assert_eq!(target.login().unwrap_err().kind(), ErrorKind::Authentication);
    let error = settings(flags, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.context().starts_with("flag --password-file: "), "{error}");
    let flags = said(options::PASSWORD_FILE, "/x", url("postgresql://u:geheim@localhost/d"));
    let two = settings(flags, &[]).unwrap_err();
    assert!(two.context().contains("too") && !format!("{two:?}").contains("geheim"), "{two:?}");
}

#[test]
fn a_password_file_that_others_may_read_is_not_believed() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, path) = file("h:5432:d:u:secret\n");
    let pairs = [("PGPASSFILE", path.to_str().unwrap())];
    let mode = |bits| std::fs::set_permissions(&path, PermissionsExt::from_mode(bits)).unwrap();
    mode(0o600);
    let found = settings(url("postgresql://u@h/d"), &pairs).unwrap();
    assert_eq!(found.target.login().unwrap().get_password(), Some("secret".as_bytes()));
    mode(0o644);
    let not_found = settings(url("postgresql://u@h/d"), &pairs).unwrap();
    assert_eq!(not_found.target.login().unwrap().get_password(), None);
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

#[test]
fn the_page_about_configuration_has_the_table_of_options() {
    let table: String = options::CHOICES
        .iter()
        .map(|choice| {
            let flag = choice.flag.map_or_else(|| "(none)".to_owned(), |flag| format!("`--{flag}`"));
            let Choice { key, variable, default, meaning, .. } = choice;
            format!("| {flag} | `{variable}` | `{key}` | {default} | {meaning} |\n")
        })
        .collect();
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).unwrap();
    assert!(page.contains(&table), "docs/configuration.md should contain:\n{table}");
}

#[test]
fn what_is_said_about_the_web_server_keeps_its_origin() {
    let (_folder, path) = file("http_token_file = \"/etc/secret\"\nhttp_queries = false\n");
    let mut flags = Flags::new(Some(path));
    flags.set(options::DATABASE_URL, Some("postgresql://u@localhost/d".to_owned()));
    flags.set(options::HTTP_HOSTS, Some("a.example".to_owned()));
    let web = settings(flags.clone(), &[("PGTRICKLE_HTTP_INSECURE", "yes")]).unwrap().web;
    assert_eq!(web.token_file.unwrap().value, PathBuf::from("/etc/secret"));
    assert_eq!(web.queries.map(|q| q.value), Some(false));
    assert_eq!(web.hosts.unwrap().origin, Origin::Flag("http-hosts"));
    assert_eq!(web.insecure, Some(Sourced::new(true, Origin::Environment("PGTRICKLE_HTTP_INSECURE"))));
    let wrong = settings(flags, &[("PGTRICKLE_HTTP_QUERIES", "maybe")]).unwrap_err();
    assert!(wrong.context().contains("PGTRICKLE_HTTP_QUERIES"), "{wrong}");
}
