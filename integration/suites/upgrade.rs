//! A database of an earlier release: served as it is, upgraded when told, and safe from an older binary.

use super::bad_input::{settled, value, wait_value};
use crate::harness::database::{SIDECAR, TestDatabase, pgtrickle, printed};
use crate::harness::oracle::assert_equal;
use crate::harness::servers::SUPERUSER;
use crate::harness::{SOON, Server, Sidecar, for_each_major};
use pgtrickle::catalog::migrate::{OLDEST_SCHEMA, SCHEMA_VERSION};

/// One per release whose databases may still be there.
const FIXTURES: &[(&str, &str)] = &[("0.1", include_str!("../fixtures/schema_0.1.sql"))];

/// Everything of ours in the catalog, as one number.
const STATE: &str = "select md5(concat_ws(' ', (select string_agg(file || checksum, ',' order by file) from pgtrickle.schema_files),
    (select string_agg(key || value, ',' order by key) from pgtrickle.settings),
    (select string_agg(md5(pg_get_functiondef(oid)), ',' order by oid::regprocedure::text) from pg_proc
      where pronamespace in ('pgtrickle'::regnamespace, 'pgtrickle_queries'::regnamespace) and prokind = 'f')))";

/// What a fresh installation and an upgraded one have in common: everything of ours but data and what each stream table
/// and each day of history brings. Columns come in any order; the fixtures have no empty lines.
const SHAPE: &str = "with ours as (select * from pg_class where relnamespace = 'pgtrickle'::regnamespace and not relispartition)
    select line from (
        select format('column %s.%s %s%s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
               case when a.attnotnull then ' not null' end, pg_get_expr(d.adbin, d.adrelid)) as line
          from ours c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
          left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum where c.relkind in ('r', 'p', 'v', 'S')
        union all select format('constraint %s: %s', conrelid::regclass, pg_get_constraintdef(k.oid))
          from pg_constraint k join ours c on c.oid = k.conrelid
        union all select format('index: %s', pg_get_indexdef(c.oid)) from ours c where relkind in ('i', 'I')
        union all select format('trigger: %s', pg_get_triggerdef(t.oid)) from pg_trigger t join ours c on c.oid = t.tgrelid where not tgisinternal
        union all select format('view %s: %s', relname, md5(pg_get_viewdef(oid))) from ours where relkind = 'v'
        union all select format('rights on %s: %s', relname, (select string_agg(a::text, ',' order by a::text) from unnest(relacl) a)) from ours
        union all select format('function %s: %s, rights %s', oid::regprocedure, md5(regexp_replace(pg_get_functiondef(oid), E'\\n+', E'\\n', 'g')),
               (select string_agg(a::text, ',' order by a::text) from unnest(proacl) a))
          from pg_proc where pronamespace = 'pgtrickle'::regnamespace and prokind in ('f', 'p')
        union all select format('comment on %s: %s', (pg_identify_object(classoid, objoid, objsubid)).identity, md5(description))
          from pg_description where (pg_identify_object(classoid, objoid, objsubid)).schema = 'pgtrickle') l order by line";

async fn shape(dba: &tokio_postgres::Client) -> Vec<String> {
    dba.query(SHAPE, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_database_is_like_a_new_one() {
    for_each_major(async |server| {
        let fresh = TestDatabase::create(server).await;
        fresh.install();
        let fresh = shape(&fresh.as_dba().await).await;
        assert!(fresh.len() > 300, "{} objects of ours", fresh.len());
        for (release, sql) in FIXTURES {
            let db = loaded(server, sql).await;
            let (code, said) = init(&db, &["--upgrade"]);
            assert_eq!(code, Some(0), "{release}: {said}");
            let upgraded = shape(&db.as_dba().await).await;
            let missing: Vec<_> = fresh.iter().filter(|line| !upgraded.contains(line)).collect();
            let left: Vec<_> = upgraded.iter().filter(|line| !fresh.contains(line)).collect();
            assert!(
                missing.is_empty() && left.is_empty(),
                "from {release}:\nmissing {missing:#?}\nleft {left:#?}"
            );
        }
    })
    .await;
}

async fn loaded(server: &'static Server, sql: &str) -> TestDatabase {
    let db = TestDatabase::create(server).await;
    db.as_dba().await.batch_execute(sql).await.expect("the fixture can be loaded");
    db
}

fn init(db: &TestDatabase, extra: &[&str]) -> (Option<i32>, String) {
    let url = db.url(SUPERUSER);
    let done = pgtrickle(&[&["init", "--database-url", &url], extra].concat());
    (done.status.code(), printed(&done))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_each_release_is_upgraded_and_goes_on() {
    for_each_major(async |server| {
        for (release, sql) in FIXTURES {
            let db = loaded(server, sql).await;
            let (app, dba) = (db.as_app().await, db.as_dba().await);
            let before = value(&dba, "select string_agg(concat_ws(' ', pgt_id, pgt_name, status, original_query), ',' order by pgt_id) from pgtrickle.pgt_stream_tables").await;
            let (code, said) = init(&db, &["--upgrade"]);
            assert_eq!(code, Some(0), "{release}: {said}");
            println!("PostgreSQL {}, from {release}: {}", db.major, said.trim());
            assert_eq!(before, value(&dba, "select string_agg(concat_ws(' ', pgt_id, pgt_name, status, original_query), ',' order by pgt_id) from pgtrickle.pgt_stream_tables").await);
            let state = value(&dba, STATE).await;
            let (code, said) = init(&db, &["--upgrade"]);
            assert!(code == Some(0) && said.contains("up to date"), "{said}");
            assert_eq!(value(&dba, STATE).await, state);
            let mut sidecar = Sidecar::start(&db, &[]);
            sidecar.wait_ready(SOON).await;
            settled(&dba).await;
            app.batch_execute(
                "insert into orders select n, n % 20 + 1, n from generate_series(101, 200) n; delete from orders where id % 7 = 0;
                 update customers set region = 'r9' where id = 3; insert into customers values (21, 'r7')",
            )
            .await
            .unwrap();
            for (table, query, columns) in [
                ("spent", "select customer, sum(price) as total, count(*) as n from orders group by customer", "customer, total, n"),
                ("by_region", "select c.region, sum(o.price) as total from orders o join customers c on c.id = o.customer group by c.region", "region, total"),
                ("prices", "select id, taxed(price) as price from orders", "id, price"),
                ("largest", "select id, price from orders order by price desc, id limit 5", "id, price"),
            ] {
                app.batch_execute(&format!("select pgtrickle.refresh_stream_table('{table}')")).await.unwrap();
                assert_equal(&app, query, table, columns).await;
            }
            let kept = "select status from pgtrickle.pgt_stream_tables where pgt_name = 'kept'";
            assert_eq!(value(&app, kept).await, "SUSPENDED");
            app.batch_execute("select pgtrickle.resume_stream_table('kept')").await.unwrap();
            wait_value(&app, kept, "ACTIVE").await;
            app.batch_execute("select pgtrickle.refresh_stream_table('kept')").await.unwrap();
            assert_equal(&app, "select distinct region from customers", "kept", "region").await;
            assert_eq!(value(&app, "select count(*) from pgtrickle.list_snapshots('spent')").await, "1");
            app.batch_execute("select pgtrickle.create_stream_table('anew', 'select region, count(*) as n from customers group by region')").await.unwrap();
            assert_eq!(sidecar.terminate(SOON).await, Some(0));
        }
    })
    .await;
}

/// What a binary says that it serves, it serves as it is; everything older is refused, and nothing is changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_was_not_upgraded_is_served_or_refused_as_its_version_says() {
    for_each_major(async |server| {
        for (release, sql) in FIXTURES {
            let db = loaded(server, sql).await;
            let dba = db.as_dba().await;
            let version = value(&dba, "select value from pgtrickle.settings where key = 'schema_version'").await;
            let version: i32 = version.parse().unwrap();
            assert!(version < SCHEMA_VERSION, "{release}: an older schema has an older version");
            let state = value(&dba, STATE).await;
            let mut sidecar = Sidecar::start(&db, &[]);
            if version >= OLDEST_SCHEMA {
                sidecar.wait_ready(SOON).await;
                settled(&dba).await;
                let app = db.as_app().await;
                app.batch_execute("insert into orders values (1000, 3, 5)").await.unwrap();
                let query = "select customer, sum(price) as total, count(*) as n from orders group by customer";
                app.batch_execute("select pgtrickle.refresh_stream_table('spent')").await.unwrap();
                assert_equal(&app, query, "spent", "customer, total, n").await;
                assert_eq!(sidecar.terminate(SOON).await, Some(0));
            } else {
                assert_eq!(sidecar.wait_exit(SOON).await, Some(8), "{release}: {}", sidecar.logs());
                for words in [
                    format!("has version {version}, this binary brings version {SCHEMA_VERSION}"),
                    format!("hint: run `pgtrickle init --upgrade` with this binary, which serves schemas from version {OLDEST_SCHEMA} on"),
                ] {
                    assert!(sidecar.logs().contains(&words), "{words:?} is not in {}", sidecar.logs());
                }
                let slots = "select count(*) from pg_replication_slots where database = current_database()";
                assert_eq!(value(&dba, slots).await, "0", "{release}");
                // Neither does an installation that was not told to upgrade.
                let (code, said) = init(&db, &["--sidecar-role", SIDECAR]);
                assert!(code == Some(8) && said.contains("init --upgrade"), "{release}: {said}");
            }
            assert_eq!(value(&dba, STATE).await, state, "{release}: something was changed untold");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_upgraded_untold_and_an_older_binary_changes_nothing() {
    for_each_major(async |server| {
        let db = loaded(server, FIXTURES[0].1).await;
        let dba = db.as_dba().await;
        let run = async |code: i32, words: &[&str]| {
            let mut sidecar = Sidecar::start(&db, &[]);
            let ended = sidecar.wait_exit(SOON).await;
            assert_eq!(ended, Some(code), "{}", sidecar.logs());
            for word in words {
                assert!(sidecar.logs().contains(word), "{word:?} is not in {}", sidecar.logs());
            }
        };
        // Older than this binary can serve.
        dba.batch_execute("update pgtrickle.settings set value = '0' where key = 'schema_version'")
            .await
            .unwrap();
        let state = value(&dba, STATE).await;
        run(8, &["has version 0", "init --upgrade"]).await;
        let (code, said) = init(&db, &["--sidecar-role", SIDECAR]);
        assert!(code == Some(8) && said.contains("init --upgrade"), "{said}");
        let (code, script) = init(&db, &["--upgrade", "--print"]);
        assert!(code == Some(0) && script.ends_with("commit;\n"), "{script}");
        assert_eq!(value(&dba, STATE).await, state, "something was changed untold");
        // What is printed is what is done.
        let sql: String = script.lines().filter(|l| !l.starts_with('\\')).flat_map(|l| [l, "\n"]).collect();
        dba.batch_execute(&sql).await.unwrap();
        let by_script = value(&dba, STATE).await;
        assert_eq!(init(&db, &["--upgrade"]).0, Some(0));
        assert_eq!(value(&dba, STATE).await, by_script);
        // A newer pgtrickle has been here.
        dba.batch_execute("update pgtrickle.settings set value = '999' where key = 'schema_version'")
            .await
            .unwrap();
        let newer = value(&dba, STATE).await;
        run(12, &["version 999", "upgrade this binary"]).await;
        for extra in [&[][..], &["--upgrade"]] {
            let (code, said) = init(&db, extra);
            assert!(code == Some(12) && said.contains("version 999"), "{said}");
        }
        assert!(dba.batch_execute(&sql).await.is_err(), "the script of an older binary was applied");
        dba.batch_execute("rollback").await.unwrap();
        assert_eq!(value(&dba, STATE).await, newer);
        // Nothing to upgrade.
        let empty = TestDatabase::create(server).await;
        let (code, said) = init(&empty, &["--upgrade"]);
        assert!(code == Some(8) && said.contains("no schema to upgrade"), "{said}");
    })
    .await;
}
