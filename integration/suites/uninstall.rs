//! `pgtrickle uninstall`: what a database looks like afterwards is what it looked like before.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use tokio_postgres::Client;

use super::json_shapes::assert_documented;
use super::snapshots::value;
use crate::harness::database::{APP, SIDECAR, pgtrickle, printed};
use crate::harness::servers::{SUPERUSER, each, install, own_cluster};
use crate::harness::{SOON, Sidecar, TestDatabase, wait_until};

/// Everything that an installation touches, and should leave as it was: objects with their definitions and rights, slots,
/// publications, roles, settings.
const STATE: &str = r"
    select string_agg(line, E'\n' order by line) from (
        select format('schema %s %s %s', nspname, nspowner::regrole, coalesce(nspacl, acldefault('n', nspowner))) as line from pg_namespace
         where nspname !~ '^pg_(temp|toast)'
        union all select format('relation %s %s %s %s %s', c.oid::regclass, c.relkind, c.relowner::regrole,
               coalesce(c.relacl, acldefault('r', c.relowner)), c.relreplident)
          from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
           and n.nspname !~ '^pg_temp'
        union all select format('column %s.%s %s %s %s', a.attrelid::regclass, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attacl)
          from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
         where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'v', 'p') and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
        union all select format('view %s %s', c.oid::regclass, pg_get_viewdef(c.oid)) from pg_class c
         where c.relkind = 'v' and c.relnamespace::regnamespace::text not in ('pg_catalog', 'information_schema')
        union all select format('function %s %s %s', p.oid::regprocedure, coalesce(p.proacl, acldefault('f', p.proowner)), md5(p.prosrc)) from pg_proc p
         where p.pronamespace::regnamespace::text not in ('pg_catalog', 'information_schema')
        union all select format('trigger %s', pg_get_triggerdef(oid)) from pg_trigger where not tgisinternal
        union all select format('constraint %s %s', conrelid::regclass, pg_get_constraintdef(oid)) from pg_constraint
         where connamespace::regnamespace::text not in ('pg_catalog', 'information_schema')
        union all select format('comment %s %s', d.objoid::regclass, d.description) from pg_description d
         where d.classoid = 'pg_class'::regclass and d.objoid >= 16384
        union all select format('publication %s', pubname) from pg_publication
        union all select format('slot %s', slot_name) from pg_replication_slots where database = current_database()
        union all select format('role %s %s', rolname, to_jsonb(r) - 'rolpassword' - 'oid') from pg_roles r
        union all select format('member %s of %s', member::regrole, roleid::regrole) from pg_auth_members
        union all select format('role setting %s %s', setrole::regrole, setconfig) from pg_db_role_setting s
         where setdatabase in (0, (select oid from pg_database where datname = current_database()))
        union all select format('setting %s = %s', name, setting) from pg_settings where source in ('configuration file', 'database')
        union all select format('default rights %s %s %s', defaclrole::regrole, defaclobjtype, defaclacl) from pg_default_acl
        union all select format('event trigger %s', evtname) from pg_event_trigger
        union all select format('type %s', t.oid::regtype) from pg_type t where t.typnamespace::regnamespace::text not in ('pg_catalog', 'information_schema', 'pg_toast')
    ) s";

async fn state(client: &Client) -> Vec<String> {
    value(client, STATE).await.lines().map(str::to_owned).collect()
}

#[track_caller]
fn assert_same(before: &[String], after: &[String], but: impl Fn(&str) -> bool) {
    let more: Vec<&String> = after.iter().filter(|l| !before.contains(l) && !but(l)).collect();
    let less: Vec<&String> = before.iter().filter(|l| !after.contains(l)).collect();
    assert!(more.is_empty() && less.is_empty(), "left over:\n{more:#?}\nmissing:\n{less:#?}");
}

/// `pg_dump --schema-only` without the lines that differ each time; `None` where the server's package has no pg_dump.
fn dump(db: &TestDatabase) -> Option<String> {
    let install = install(db.major);
    if !install.has_client_tools {
        return None;
    }
    let output = Command::new(install.program("pg_dump"))
        .args(["--schema-only", "--no-owner", "-d", &db.url(SUPERUSER)])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.lines().filter(|l| !l.contains("restrict ")).map(|l| format!("{l}\n")).collect())
}

fn uninstall(db: &TestDatabase, role: &str, more: &[&str]) -> Output {
    let url = db.url(role);
    tokio::task::block_in_place(|| pgtrickle(&[&["uninstall", "--database-url", &url], more].concat()))
}

/// An application with its tables, in two schemas, one of which the sidecar's role may not use by itself.
async fn application(db: &TestDatabase) -> Client {
    let app = db.as_app().await;
    db.as_dba().await.batch_execute(&format!("create schema reports authorization {APP}")).await.unwrap();
    app.batch_execute(
        "create table orders (id int primary key, amount int not null); insert into orders select i, i % 10 from generate_series(1, 100) i;
         create table bag (v int); insert into bag values (1), (1), (2)",
    )
    .await
    .unwrap();
    app
}

/// Stream tables of every kind, captured both ways, with a snapshot.
async fn use_it(db: &TestDatabase, app: &Client) -> Sidecar {
    let mut sidecar = Sidecar::start(db, &[]);
    sidecar.wait_ready(SOON).await;
    app.batch_execute(
        "select pgtrickle.create_stream_table('totals', 'select amount, count(*) as n from orders group by amount');
         select pgtrickle.create_stream_table('reports.bags', 'select v from bag');
         select pgtrickle.create_stream_table('reports.chain', 'select sum(n) as n from totals');
         select pgtrickle.create_stream_table('reports.whole', 'select id from orders', refresh_mode => 'FULL');
         select pgtrickle.snapshot_stream_table('totals')",
    )
    .await
    .unwrap();
    wait_until("both ways of capture", SOON, || async {
        let told =
            value(app, "select string_agg(capture, ' ' order by capture) from pgtrickle.pgt_sources").await;
        if told == "trigger wal" { Ok(()) } else { Err(told) }
    })
    .await;
    app.batch_execute("insert into orders values (101, 1); insert into bag values (7)").await.unwrap();
    let passed = value(app, "select pgtrickle.wait_for()").await;
    assert_eq!(passed, "true");
    sidecar
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_behind_and_the_live_sidecar_leaves_first() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        let (app, dba) = (application(&db).await, db.as_dba().await);
        let (before, schema) = (state(&dba).await, dump(&db));
        db.install();
        let mut sidecar = use_it(&db, &app).await;
        // Asked for, not done.
        let dry = uninstall(&db, SUPERUSER, &["--dry-run"]);
        let said = printed(&dry);
        assert!(dry.status.success(), "{said}");
        for word in ["slot pgtrickle_", "publication pgtrickle_", "trigger pgtrickle_capture_", "stream table app.totals: would be dropped", "snapshot ", "schema pgtrickle_queries"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        let silent = uninstall(&db, SUPERUSER, &[]);
        assert_eq!(silent.status.code(), Some(2), "{}", printed(&silent));
        let weak = uninstall(&db, APP, &["--yes"]);
        assert_eq!(weak.status.code(), Some(5), "{}", printed(&weak));
        // What others have built is not taken along without a word.
        app.batch_execute("create view mine as select * from totals; create view health as select * from pgtrickle.pgt_status()").await.unwrap();
        let refused = uninstall(&db, SUPERUSER, &["--yes"]);
        let said = printed(&refused);
        assert_eq!(refused.status.code(), Some(9), "{said}");
        assert!(said.contains("view app.mine") && said.contains("view app.health") && said.contains("--cascade"), "{said}");
        app.batch_execute("drop view health; drop view mine").await.unwrap();
        let done = uninstall(&db, SUPERUSER, &["--yes", "--json"]);
        assert!(done.status.success(), "{}", printed(&done));
        let told: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_documented("uninstall", &told);
        assert!(told["done"] == true && told["stream_tables"].as_array().unwrap().len() == 4, "{told:#}");
        assert_same(&before, &state(&dba).await, |_| false);
        assert_eq!(schema, dump(&db));
        // The sidecar waits and is no danger; the application's tables are only its own again.
        assert!(sidecar.is_running(), "it waits for the database to be attached again");
        app.batch_execute("insert into orders values (102, 1); insert into bag values (8)").await.unwrap();
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        assert_same(&before, &state(&dba).await, |_| false);
        // And once more from the start: nothing stands in the way.
        db.install();
        let again = pgtrickle(&["doctor", "--database-url", &db.url(SIDECAR), "--json"]);
        assert!(printed(&again).contains("schema.installed"));
        assert!(uninstall(&db, SUPERUSER, &["--yes"]).status.success());
        assert_same(&before, &state(&dba).await, |_| false);
        let nothing = uninstall(&db, SUPERUSER, &["--yes"]);
        assert_eq!(nothing.status.code(), Some(8), "{}", printed(&nothing));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_tables_are_ordinary_ones_with_their_rows_also_by_the_script_and_after_a_crash() {
    each(async |major| {
        let server = own_cluster(major, &[]).await;
        let db = TestDatabase::create(&server).await;
        let (app, dba) = (application(&db).await, db.as_dba().await);
        let before = state(&dba).await;
        db.install();
        let mut sidecar = use_it(&db, &app).await;
        let rows = "select (select string_agg(t::text, ' ' order by t::text) from totals t) || ' ' ||
            (select string_agg(v::text, ' ' order by v) from reports.bags) || ' ' || (select n from reports.chain)";
        let held = value(&app, rows).await;
        // The sidecar is gone for good, its slot is not.
        sidecar.kill9();
        let script = pgtrickle(&["uninstall", "--print", "--keep-tables"]);
        assert!(script.status.success(), "{}", printed(&script));
        match install(major) {
            install if install.has_client_tools => {
                let mut psql = Command::new(install.program("psql"))
                    .args(["-X", "-q", "-d", &db.url(SUPERUSER), "-f", "-"])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                psql.stdin.take().unwrap().write_all(&script.stdout).unwrap();
                let output = tokio::task::block_in_place(|| psql.wait_with_output().unwrap());
                assert!(output.status.success(), "{}", printed(&output));
            }
            _ => {
                let done = uninstall(&db, SUPERUSER, &["--yes", "--keep-tables"]);
                assert!(done.status.success(), "{}", printed(&done));
            }
        }
        assert_eq!(value(&app, rows).await, held);
        let ours = ["app.totals", "totals", "reports.bags", "reports.chain", "reports.whole"];
        assert_same(&before, &state(&dba).await, |line| {
            let of = |name: &str| line.contains(&format!(" {name} ")) || line.contains(&format!(" {name}."));
            let about = ours.iter().any(|name| of(name)) || line.contains("totals") || line.starts_with("type reports.");
            // Kept, but without anything of ours on them.
            about && !line.contains("__pgt") && !line.starts_with("trigger") && !line.starts_with("comment") && !line.starts_with("view")
        });
        // Anybody with rights may write to them, and nobody follows their sources any more.
        app.batch_execute("insert into reports.bags values (99); delete from totals; insert into orders values (102, 1)").await.unwrap();
        assert_eq!(value(&app, "select count(*) from totals").await, "0");
        assert_eq!(value(&app, "select count(*) from reports.bags where v = 99").await, "1");
    })
    .await;
}
