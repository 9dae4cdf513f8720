//! The program as its users meet it: exit codes, messages, and what it leaves behind.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::harness::database::{APP, SIDECAR, printed};
use crate::harness::servers::{SUPERUSER, each, install, own_cluster};
use crate::harness::wait::{SOON, wait_until};
use crate::harness::{Sidecar, TestDatabase, for_each_major};

/// Runs the program with nothing in its environment that could configure it but `variables`.
fn program(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgtrickle"));
    for (name, _) in std::env::vars() {
        if name.starts_with("PG") || name == "DATABASE_URL" || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    let home = std::env::temp_dir();
    command.args(arguments).env("HOME", home).envs(variables.iter().copied()).output().expect("it starts")
}

/// Fails unless the program ended with `code` and wrote all of `words`.
#[track_caller]
fn expect(output: &Output, code: i32, words: &[&str]) {
    let said = printed(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
}

#[test]
fn the_version_is_told_without_a_database() {
    let version = format!("pgtrickle {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&program(&["version"], &[]).stdout), version);
    assert_eq!(String::from_utf8_lossy(&program(&["--version"], &[]).stdout), version);
}

#[test]
fn a_value_that_cannot_be_used_ends_with_2_and_names_its_place() {
    let url = ["--database-url", "postgresql://me@127.0.0.1:1/db"];
    let run =
        |more: &[&str], variables: &[(&str, &str)]| program(&[&["run"], &url[..], more].concat(), variables);
    expect(&run(&["--workers", "0"], &[]), 2, &["error: flag --workers: \"0\"", "hint: "]);
    expect(
        &run(&[], &[("PGTRICKLE_MEMORY_LIMIT", "lots")]),
        2,
        &["environment variable PGTRICKLE_MEMORY_LIMIT"],
    );
    expect(&run(&["--pipeline", "Main Line"], &[]), 2, &["flag --pipeline"]);
    expect(&run(&["--log-format", "xml"], &[]), 2, &["flag --log-format", "text or json"]);
    expect(&run(&["--workres", "1"], &[]), 2, &["--workres", "--workers"]);
    expect(&program(&["demo", "--seconds", "0"], &[]), 2, &["--seconds"]);
    expect(&program(&["status"], &[]), 2, &["no database is named", "--database-url"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    std::fs::write(&file, "workers = 1\nspeed = 11\n").unwrap();
    expect(&run(&["--config", file.to_str().unwrap()], &[]), 2, &["a.toml:2 speed: unknown key"]);
    expect(&run(&["--config", "/absent.toml"], &[]), 2, &["flag --config: can't read /absent.toml"]);
}

#[test]
fn a_server_that_cannot_be_reached_ends_with_3_and_no_password_is_shown() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("postgresql://me:secret@127.0.0.1:{port}/db");
    for command in ["status", "init", "run"] {
        let output = program(&[command, "--database-url", &url], &[]);
        expect(&output, 3, &[&format!("127.0.0.1:{port}/db"), "hint: check host, port"]);
        assert!(!printed(&output).contains("secret"));
    }
    let output = program(&["status", "--database-url", "postgresql://me:secret@127.0.0.1:x/db"], &[]);
    expect(&output, 2, &["flag --database-url: "]);
    assert!(!printed(&output).contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_tls_and_unknown_names_are_told_apart() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let database = TestDatabase::create(&server).await;
        let dba = database.as_dba().await;
        let role = "set password_encryption = 'scram-sha-256'; create role locked login password 'right'";
        dba.batch_execute(role).await.unwrap();
        let rules = server.cluster.data_dir().join("pg_hba.conf");
        let rest = std::fs::read_to_string(&rules).unwrap();
        std::fs::write(&rules, format!("host all locked all scram-sha-256\n{rest}")).unwrap();
        dba.batch_execute("select pg_reload_conf()").await.unwrap();
        let url = |password: &str| {
            format!("postgresql://locked{password}@127.0.0.1:{}/{}", server.cluster.port(), database.name)
        };
        wait_until("the new rule to count", SOON, || async {
            match tokio_postgres::connect(&url(""), tokio_postgres::NoTls).await {
                Ok(_) => Err("no password is asked for".to_owned()),
                Err(_) => Ok(()),
            }
        })
        .await;
        let status =
            |url: &str, variables: &[(&str, &str)]| program(&["status", "--database-url", url], variables);
        expect(&status(&url(":wrong"), &[]), 4, &["28P01", "password", "hint: "]);
        expect(&status(&url(""), &[]), 4, &["password", "PGPASSWORD"]);
        // With the right one it gets as far as the missing schema.
        expect(&status(&url(""), &[("PGPASSWORD", "right")]), 8, &["schema is not in this database"]);
        let tls = format!("{}?sslmode=require", database.url(APP));
        expect(&status(&tls, &[]), 4, &["TLS", "sslmode"]);
        let nowhere = format!("postgresql://{APP}@127.0.0.1:{}/nowhere", database.port());
        expect(&status(&nowhere, &[]), 2, &["\"nowhere\" does not exist", "hint: name an existing database"]);
        expect(&status(&database.url("nobody_here"), &[]), 4, &["\"nobody_here\" does not exist"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_can_be_repeated_and_needs_rights() {
    for_each_major(|server| async move {
        let database = TestDatabase::create(server).await;
        let init = |role: &str, more: &[&str]| {
            program(&[&["init", "--database-url", &database.url(role)], more].concat(), &[])
        };
        expect(&init(APP, &[]), 5, &["permission denied", "hint: run init as a superuser"]);
        expect(
            &init(SUPERUSER, &["--sidecar-role", "nobody_here"]),
            2,
            &["nobody_here", "hint: Create the role"],
        );
        let dba = database.as_dba().await;
        let schemas = "select count(*) from pg_namespace where nspname like 'pgtrickle%'";
        let left: i64 = dba.query_one(schemas, &[]).await.unwrap().get(0);
        assert_eq!(left, 0, "a refused init leaves nothing behind");
        let roles = ["--sidecar-role", SIDECAR, "--grant-to", APP];
        expect(&init(SUPERUSER, &roles), 0, &["was installed", "role pgtrickle may run the sidecar"]);
        expect(&init(SUPERUSER, &roles), 0, &["is up to date"]);
        let newer = "update pgtrickle.settings set value = '999' where key = 'schema_version'";
        dba.batch_execute(newer).await.unwrap();
        expect(&init(SUPERUSER, &[]), 12, &["version 999", "upgrade this binary"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_script_does_what_init_does() {
    for_each_major(|server| async move {
        let install = install(server.major);
        if !install.has_client_tools {
            crate::harness::left_out(&format!(
                "PostgreSQL {} has no psql here: the printed script",
                server.major
            ));
            return;
        }
        let script = program(&["init", "--print", "--sidecar-role", SIDECAR, "--grant-to", APP], &[]);
        expect(&script, 0, &["begin", "commit;"]);
        let database = TestDatabase::create(server).await;
        let mut psql = Command::new(install.program("psql"))
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &database.url(SUPERUSER), "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        psql.stdin.take().unwrap().write_all(&script.stdout).unwrap();
        let output = psql.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", printed(&output));
        let again = program(&["init", "--database-url", &database.url(SUPERUSER)], &[]);
        expect(&again, 0, &["is up to date"]);
        expect(&program(&["status", "--database-url", &database.url(APP)], &[]), 0, &["OFFLINE"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_explain_work_without_a_sidecar() {
    for_each_major(|server| async move {
        let database = TestDatabase::create(server).await;
        let ask = |role: &str, arguments: &[&str]| {
            let url = database.url(role);
            program(&[arguments, &["--database-url", &url]].concat(), &[])
        };
        expect(&ask(APP, &["status"]), 8, &["schema is not in this database", "pgtrickle init"]);
        database.install();
        expect(&ask(APP, &["status"]), 0, &["OFFLINE (no sidecar is running)", "no stream tables yet"]);
        let app = database.as_app().await;
        app.batch_execute(
            "create table app.t (id int primary key, v int not null); insert into app.t values (1, 10), (2, 20);
             select pgtrickle.create_stream_table('app.sums', 'select v % 2 as odd, sum(v) from app.t group by 1');
             select pgtrickle.create_stream_table('app.ranked', 'select id, now() > ''2000-01-01'' as late from app.t',
                                                  refresh_mode => 'FULL')",
        )
        .await
        .unwrap();
        expect(&ask(APP, &["status"]), 0, &["app.sums", "app.ranked", "FULL", "DIFFERENTIAL"]);
        let json = ask(APP, &["status", "--json"]);
        let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(value["pipeline"]["sidecar_alive"], false);
        assert_eq!(value["stream_tables"][1]["name"], "app.sums");
        assert!(value["stream_tables"][0]["staleness_seconds"].is_number(), "{value:#}");
        let plan = ask(APP, &["explain", "app.sums"]);
        expect(&plan, 0, &["mode: DIFFERENTIAL (requested: AUTO)", "app.t (", "replica identity: id", "Aggregate"]);
        expect(&ask(APP, &["explain", "sums"]), 0, &["stream table: app.sums"]);
        expect(&ask(APP, &["explain", "ranked"]), 0, &["mode: FULL", "reason: requested", "not incremental: "]);
        expect(&ask(APP, &["explain", "app.absent"]), 9, &["there is no stream table app.absent", "42P01"]);
        let stranger = "create role stranger_to_pgtrickle login";
        let dba = database.as_dba().await;
        dba.batch_execute(stranger).await.unwrap();
        let denied = ask("stranger_to_pgtrickle", &["status"]);
        dba.batch_execute("drop role stranger_to_pgtrickle").await.unwrap();
        expect(&denied, 5, &["permission denied", "grant_usage"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn run_refuses_a_database_that_is_not_prepared_and_a_second_sidecar() {
    for_each_major(|server| async move {
        let database = TestDatabase::create(server).await;
        let run = |role: &str| program(&["run", "--database-url", &database.url(role)], &[]);
        expect(&run(SIDECAR), 8, &["hint: ", "pgtrickle init"]);
        database.install();
        expect(&run(APP), 5, &["hint: "]);
        let mut first = Sidecar::start(&database, &[]);
        first.wait_ready(SOON).await;
        expect(&run(SIDECAR), 7, &["hint: "]);
        assert_eq!(first.terminate(SOON).await, Some(0));
    })
    .await;
}

/// A machine without PostgreSQL: a mount namespace in which the usual places are empty.
#[test]
fn a_demo_without_any_server_says_so_when_it_may_fetch_none() {
    let scratch = tempfile::tempdir().unwrap();
    let (empty, programs) = (scratch.path().join("empty"), scratch.path().join("bin"));
    std::fs::create_dir(&empty).unwrap();
    std::fs::create_dir(&programs).unwrap();
    for program in ["sh", "id"] {
        let found = ["/usr/bin", "/bin"].map(|f| std::path::Path::new(f).join(program));
        let found = found.iter().find(|p| p.exists()).expect("sh and id are there");
        std::os::unix::fs::symlink(found, programs.join(program)).unwrap();
    }
    let hide =
        "for place in /usr/lib/postgresql /usr/lib/postgresql[0-9]* /usr/libexec/postgresql* /usr/pgsql-* \
                    /usr/local/pgsql* /opt/pgsql* /opt/postgresql* /home/linuxbrew/.linuxbrew/opt; do
                    if [ -d \"$place\" ]; then mount --bind \"$1\" \"$place\" || exit 99; fi
                done
                export PATH=\"$2\" TMPDIR=\"$1\" HOME=\"$1\" XDG_CACHE_HOME=
                exec \"$3\" demo --offline --seconds 1";
    let output = Command::new("unshare")
        .args(["--mount", "--user", "--map-root-user", "sh", "-c", hide, "sh"])
        .args([empty.as_os_str(), programs.as_os_str()])
        .arg(env!("CARGO_BIN_EXE_pgtrickle"))
        .output();
    match output {
        Ok(output) if output.status.code() != Some(99) && !printed(&output).contains("unshare:") => {
            expect(&output, 2, &["is not on this machine", "--offline", "hint: install PostgreSQL"]);
        }
        _ => crate::harness::left_out("this process may not make a mount namespace of its own"),
    }
}

/// What `docs/upgrading.md` promises of `--log-format json`, line by line of a real run.
#[tokio::test(flavor = "multi_thread")]
async fn each_line_of_the_log_is_one_json_object_where_that_was_asked_for() {
    for_each_major(|server| async move {
        let database = TestDatabase::create(server).await;
        database.install();
        let app = database.as_app().await;
        let table = "create table app.\"two\nlines \"\"q\"\"\" (id int primary key)";
        app.batch_execute(table).await.unwrap();
        let mut sidecar = Sidecar::start(&database, &["--log-format", "json", "--log", "debug"]);
        sidecar.wait_ready(SOON).await;
        let create =
            "select pgtrickle.create_stream_table('app.st', 'select id from app.\"two\nlines \"\"q\"\"\"')";
        app.batch_execute(create).await.unwrap();
        let refresh = "select pgtrickle.refresh_stream_table('app.st')";
        app.batch_execute(refresh).await.unwrap();
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        let log = sidecar.logs();
        let mut with_fields = 0;
        for line in log.lines() {
            let object: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            let text = |key: &str| object[key].as_str().unwrap_or_else(|| panic!("no {key}: {line}"));
            let at = text("timestamp");
            assert!(
                chrono::DateTime::parse_from_rfc3339(at).is_ok_and(|t| t.offset().utc_minus_local() == 0),
                "{line}"
            );
            assert!(["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&text("level")), "{line}");
            assert!(!text("message").is_empty() && object.get("fields").is_none(), "{line}");
            with_fields += usize::from(object.as_object().unwrap().len() > 3);
        }
        assert!(with_fields > 0, "{log}");
        assert!(log.contains("\"level\":\"DEBUG\""), "{log}");
    })
    .await;
}
