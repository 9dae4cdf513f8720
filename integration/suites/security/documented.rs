//! `docs/security.md` is what happens: its SQL is run, its table of functions is compared with the catalog, its three ways
//! to publish are gone.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::super::bad_input::{settled, value, wait_value};
use crate::harness::database::{TestDatabase, connect, pgtrickle, printed};
use crate::harness::oracle::assert_equal;
use crate::harness::servers::{SUPERUSER, each, own_cluster};
use crate::harness::{SOON, Sidecar, for_each_major};

const PAGE: &str = include_str!("../../../docs/security.md");

/// Blocks of SQL with the role that runs them, in order.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    for part in PAGE.split("<!-- as: ").skip(1) {
        let (role, rest) = part.split_once(" -->\n```sql\n").expect("a block of SQL follows");
        found.push((role, rest.split_once("```").expect("the block ends").0));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_privileged_role_of_the_page_is_enough_for_everything() {
    each(async |major| {
        // Without a bound the doctor rightly fails: a slot could fill the disk.
        let server = own_cluster(major, &[("max_slot_wal_keep_size", "10GB")]).await;
        let root = connect(&server.cluster.conninfo("postgres", SUPERUSER)).await;
        // As on a server that has never seen us.
        root.batch_execute("drop role pgtrickle; drop role app").await.unwrap();
        root.batch_execute("create database shop").await.unwrap();
        let url = |role: &str| server.cluster.conninfo("shop", role);
        let steps = blocks();
        assert_eq!(steps.len(), 3, "{steps:?}");
        let run = async |(role, sql): (&str, &str)| {
            let client = connect(&url(role)).await;
            // As psql does it: each statement in a transaction of its own.
            for statement in sql.split(";\n").filter(|statement| !statement.trim().is_empty()) {
                let done = client.batch_execute(statement).await;
                done.unwrap_or_else(|e| panic!("as {role}: {statement}: {e:?}"));
            }
        };
        run(steps[0]).await;
        let dba = url(SUPERUSER);
        let init = ["init", "--database-url", &dba, "--sidecar-role", "pgtrickle", "--grant-to", "app"];
        let done = pgtrickle(&init);
        assert!(done.status.success(), "{}", printed(&done));
        let mut sidecar = Sidecar::start_with_url(&url("pgtrickle"), &["--cdc-mode", "wal"]);
        sidecar.wait_ready(SOON).await;
        run(steps[1]).await;
        let app = connect(&url("app")).await;
        let dba = connect(&dba).await;
        settled(&dba).await;
        assert_eq!(value(&app, "select refresh_mode from pgtrickle.stream_tables_info").await, "DIFFERENTIAL");
        for sql in [
            "insert into app.orders select n, n % 3, n from generate_series(1, 100) n",
            "delete from app.orders where id < 10",
            "select pgtrickle.refresh_stream_table('app.spent')",
        ] {
            app.batch_execute(sql).await.unwrap();
        }
        let query = "select customer, sum(price) as total from app.orders group by customer";
        assert_equal(&app, query, "app.spent", "customer, total").await;
        // Nothing more than the page says.
        const ATTRIBUTES: &str = "select concat_ws(' ', rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls)
            from pg_roles where rolname = 'pgtrickle'";
        assert_eq!(value(&dba, ATTRIBUTES).await, "f f f t f");
        const OWNS: &str = "select count(*) from pg_shdepend where refobjid = 'pgtrickle'::regrole and deptype = 'o'";
        assert_eq!(value(&dba, OWNS).await, "0");
        // The server of these tests sets no bound on what a slot may keep, which is a failure of its own.
        dba.batch_execute("insert into pgtrickle.settings values ('slot_policy', 'shed')").await.unwrap();
        let doctor = pgtrickle(&["doctor", "--database-url", &url("pgtrickle")]);
        assert!(doctor.status.code().is_some_and(|code| code < 2), "{}", printed(&doctor));
        // Row-level security: refused, then allowed by the page's third block.
        app.batch_execute("create table app.private (id int primary key); alter table app.private enable row level security").await.unwrap();
        let over = "select pgtrickle.create_stream_table('app.p', 'select id from app.private')";
        let refused = app.batch_execute(over).await.unwrap_err();
        assert_eq!(refused.code().map(|c| c.code()), Some("42501"), "{refused:?}");
        // Nobody talks himself out of it.
        app.batch_execute("set pg_trickle.row_security = 'warn'").await.unwrap();
        assert!(app.batch_execute(over).await.is_err());
        run(steps[2]).await;
        app.batch_execute(over).await.unwrap();
        app.batch_execute("select pgtrickle.drop_stream_table('app.p'); select pgtrickle.drop_stream_table('app.spent')").await.unwrap();
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_definer_functions_is_the_catalogs() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let dba = db.as_dba().await;
        const DEFINERS: &str = "select format('%s(%s)', p.proname, (select coalesce(string_agg(format_type(t.t, null), ', ' order by t.n), '')
                  from unnest(p.proargtypes) with ordinality t (t, n))),
               case when has_function_privilege('app', p.oid, 'EXECUTE') then 'users' else 'sidecar' end,
               'search_path=pg_catalog, pg_temp' = any (p.proconfig)
                 and has_function_privilege('pgtrickle', p.oid, 'EXECUTE')
                 and not exists (select from aclexplode(p.proacl) a where a.grantee = 0)
          from pg_proc p where p.pronamespace = 'pgtrickle'::regnamespace and p.prosecdef";
        let mut there = BTreeMap::new();
        for row in dba.query(DEFINERS, &[]).await.unwrap() {
            let name: String = row.get(0);
            assert!(row.get::<_, bool>(2), "{name}: search_path or rights");
            there.insert(name, row.get::<_, String>(1));
        }
        let line = |line: &str| {
            let mut cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
            Some((cells.next()?.trim_matches('`').to_owned(), cells.next()?))
        };
        let section = PAGE.split("## Functions with other rights").nth(1).expect("the section");
        let section = section.split("\n## ").next().unwrap_or_default();
        let page: BTreeMap<String, String> =
            section.lines().filter(|l| l.starts_with("| `")).filter_map(line).collect();
        assert_eq!(page, there, "docs/security.md (left) and the catalog (right) differ");
        // No function of ours is open to everybody, and none runs without a fixed search_path unless it only hands the
        // caller's on.
        const OPEN: &str = "select coalesce(string_agg(p.oid::regprocedure::text, ', '), '') from pg_proc p
            where p.pronamespace in ('pgtrickle'::regnamespace, 'pgtrickle_changes'::regnamespace, 'pgtrickle_queries'::regnamespace)
              and (p.proacl is null or exists (select from aclexplode(p.proacl) a where a.grantee = 0))";
        assert_eq!(value(&dba, OPEN).await, "");
        const LOOSE: &str = "select coalesce(string_agg(p.oid::regprocedure::text, ', '), '') from pg_proc p
            where p.pronamespace = 'pgtrickle'::regnamespace
              and not exists (select from unnest(p.proconfig) c where c like 'search_path=%')
              and p.prosrc !~ 'current_setting\\(''search_path''\\)'";
        assert_eq!(value(&dba, LOOSE).await, "", "functions without a search_path of their own");
        const TABLES: &str = "select coalesce(string_agg(c.oid::regclass::text, ', '), '') from pg_class c
            where c.relnamespace in (select oid from pg_namespace where nspname like 'pgtrickle%')
              and exists (select from aclexplode(c.relacl) a where a.grantee = 0)";
        assert_eq!(value(&dba, TABLES).await, "", "relations that are open to everybody");
    })
    .await;
}

/// A server, a sidecar and a source of `app`, installed by a role that is no superuser.
async fn without_superuser(
    major: u32,
    member: bool,
    mode: &str,
    work: impl AsyncFn(&Client, &Client, &TestDatabase),
) {
    let server = own_cluster(major, &[]).await;
    let db = TestDatabase::create(&server).await;
    let dba = db.as_dba().await;
    dba.batch_execute(&format!(
        "create role installer login; grant create on database {} to installer",
        db.name
    ))
    .await
    .unwrap();
    if member {
        dba.batch_execute("grant app to installer").await.unwrap();
    }
    let url = db.url("installer");
    let done =
        pgtrickle(&["init", "--database-url", &url, "--sidecar-role", "pgtrickle", "--grant-to", "app"]);
    assert!(done.status.success(), "{}", printed(&done));
    let app = db.as_app().await;
    app.batch_execute("create table src (id int primary key, v int)").await.unwrap();
    let mut sidecar = Sidecar::start(&db, &["--cdc-mode", mode]);
    sidecar.wait_ready(SOON).await;
    work(&app, &dba, &db).await;
    assert_eq!(sidecar.terminate(SOON).await, Some(0));
}

async fn follows(app: &Client, dba: &Client, captured: &str) {
    app.execute(
        "select pgtrickle.create_stream_table('t', 'select id, v from src', cdc_mode => $1)",
        &[&captured],
    )
    .await
    .unwrap();
    settled(dba).await;
    app.batch_execute(
        "insert into src select n, n from generate_series(1, 50) n; delete from src where id = 7",
    )
    .await
    .unwrap();
    wait_value(app, "select count(*) from t", "49").await;
    assert_equal(app, "select id, v from src", "t", "id, v").await;
    wait_value(dba, "select capture from pgtrickle.pgt_sources", captured).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_the_owners_installs_and_publishes_without_a_superuser() {
    each(async |major| {
        without_superuser(major, true, "wal", async |app, dba, _db| {
            follows(app, dba, "wal").await;
            let owner = "select string_agg(distinct pubowner::regrole::text, ',') from pg_publication";
            assert_eq!(value(dba, owner).await, "installer");
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_attaches_a_source_needs_no_publication_of_it() {
    each(async |major| {
        without_superuser(major, false, "auto", async |app, dba, _db| {
            app.batch_execute("select pgtrickle.attach_source('src')").await.unwrap();
            follows(app, dba, "trigger").await;
            // Exchanged for one that runs as its caller, the owner's function is not called with the installer's rights.
            app.batch_execute(
                "create table ran (who text); grant insert on ran to public; grant usage on schema app to public;
                 do $$ declare f text := (select format('pgtrickle_queries.%I', proname) from pg_proc where proname like 'attach_%'
                        and pronamespace = 'pgtrickle_queries'::regnamespace);
                 begin
                    execute format('create or replace function %s(mode text, epoch bigint, per_row boolean) returns void
                        language sql security invoker as $f$ insert into app.ran values (current_user) $f$', f);
                    execute format('create function %s(x int) returns void language sql security definer as $f$ select $f$', f);
                 end $$",
            )
            .await
            .unwrap();
            drop(dba.batch_execute("set role pgtrickle; select pgtrickle.rebuild_cdc_triggers(); reset role").await);
            assert_eq!(value(dba, "select count(*) from app.ran").await, "0");
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_may_not_be_published_is_captured_by_triggers_until_it_may_and_without_them_recomputed()
{
    each(async |major| {
        without_superuser(major, false, "auto", async |app, dba, db| {
            app.batch_execute("create table other (id int primary key)").await.unwrap();
            app.batch_execute("select pgtrickle.attach_source('src')").await.unwrap();
            let create = "select pgtrickle.create_stream_table('t', 'select id, v from src')";
            app.batch_execute(create).await.unwrap();
            settled(dba).await;
            app.batch_execute("insert into src select n, n from generate_series(1, 50) n").await.unwrap();
            wait_value(app, "select count(*) from t", "50").await;
            let capture = "select capture || ': ' || capture_reason from pgtrickle.pgt_sources where source_name = 'app.src'";
            let told = "trigger: the role installer, which installed pgtrickle, may not publish it";
            wait_value(dba, capture, told).await;
            let mode = |name: &str| format!("select status || ' ' || refresh_mode from pgtrickle.stream_tables_info where pgt_name = '{name}'");
            assert_eq!(value(dba, &mode("t")).await, "ACTIVE DIFFERENTIAL");
            let doctor = pgtrickle(&["doctor", "--fix-sql", "--database-url", &db.url(SUPERUSER)]);
            assert!(printed(&doctor).contains("grant app to installer;"), "{}", printed(&doctor));
            // Neither the WAL nor triggers: right all the same, with the reason; and refused where that was ruled out.
            app.batch_execute("select pgtrickle.create_stream_table('o', 'select id from other')").await.unwrap();
            wait_value(dba, &mode("o"), "ACTIVE FULL").await;
            let reason = value(dba, "select refresh_reason from pgtrickle.pgt_stream_tables where pgt_name = 'o'").await;
            assert!(reason.contains("may not publish it") && reason.contains("other"), "{reason}");
            for more in ["refresh_mode => 'DIFFERENTIAL'", "refresh_mode => 'DIFFERENTIAL', cdc_mode => 'wal'"] {
                let sql = format!("select pgtrickle.create_stream_table('x', 'select id from other', {more})");
                let refused = app.batch_execute(&sql).await.unwrap_err();
                let said = refused.as_db_error().map(|e| e.message().to_owned()).unwrap_or_default();
                assert!(said.contains("may not publish it"), "{more}: {said}");
            }
            // Once it may be published, both are followed from the WAL.
            dba.batch_execute("grant app to installer").await.unwrap();
            wait_value(dba, &mode("o"), "ACTIVE DIFFERENTIAL").await;
            wait_value(dba, "select string_agg(capture, ' ') from pgtrickle.pgt_sources", "wal wal").await;
            app.batch_execute("delete from src where id > 40; insert into other values (1)").await.unwrap();
            wait_value(app, "select count(*) from t", "40").await;
            wait_value(app, "select count(*) from o", "1").await;
            assert_equal(app, "select id, v from src", "t", "id, v").await;
        })
        .await;
    })
    .await;
}
