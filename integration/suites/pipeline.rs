//! The pipeline end to end: create, follow, stop, start.

use crate::harness::database::TestDatabase;
use crate::harness::oracle::assert_equal;
use crate::harness::servers::for_each_major;
use crate::harness::sidecar::Sidecar;
use crate::harness::wait::{SOON, wait_until};

const SHOP: &str = "
    create table customers (id bigint primary key, name text not null, region text);
    create table orders (id bigint primary key, customer bigint, amount numeric(12,2) not null, status text not null);
    insert into customers select i, 'c' || i, 'r' || i % 5 from generate_series(1, 200) i;
    insert into orders select i, i % 200, (i % 97) * 1.25, case when i % 3 = 0 then 'open' else 'done' end
        from generate_series(1, 2000) i;
";

const QUERIES: &[(&str, &str)] = &[
    ("open_orders", "select id, customer, amount from orders where status = 'open'"),
    (
        "by_region",
        "select c.region, count(*) as n, sum(o.amount) as total, min(o.amount) as low, avg(o.amount) as mean
         from orders o join customers c on c.id = o.customer group by c.region",
    ),
    (
        "with_name",
        "select o.id, upper(c.name) as name, o.amount from orders o left join customers c on c.id = o.customer",
    ),
    ("regions", "select distinct region from customers"),
    ("big_regions", "select region, total from by_region where n > 100"),
];

#[tokio::test(flavor = "multi_thread")]
async fn stream_tables_follow_their_sources_and_survive_a_restart() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute(SHOP).await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        for (name, query) in QUERIES {
            app.execute("select pgtrickle.create_stream_table($1, $2)", &[name, query]).await.unwrap();
        }
        let write = async |seed: i32| {
            app.batch_execute(&format!(
                "begin;
                 update orders set amount = amount + 1, status = 'open' where id % 7 = {seed};
                 delete from orders where id % 50 = {seed};
                 insert into orders select 10000 * ({seed} + 1) + i, i % 210, i, 'open' from generate_series(1, 50) i;
                 update customers set region = 'x' where id % 20 = {seed};
                 update customers set id = id + 5000 where id = {seed} + 3;
                 commit"
            ))
            .await
            .unwrap();
        };
        let check = async || {
            let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
            assert!(passed, "the frontier did not pass in time");
            for (name, query) in QUERIES {
                assert_equal(&app, query, name, &columns_of(&app, name).await).await;
            }
        };
        wait_until("all stream tables are active", SOON, || async {
            let row = app
                .query_one("select string_agg(name || ' ' || status || ' ' || refresh_mode, ', ') from pgtrickle.pgt_status() where status <> 'ACTIVE' or refresh_mode <> 'DIFFERENTIAL'", &[])
                .await
                .unwrap();
            match row.get::<_, Option<String>>(0) {
                None => Ok(()),
                Some(others) => Err(others),
            }
        })
        .await;
        check().await;
        for seed in 0..3 {
            write(seed).await;
            check().await;
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
        write(3).await;
        let mut sidecar = Sidecar::start(&db, &["--workers", "2"]);
        sidecar.wait_ready(SOON).await;
        check().await;
        write(4).await;
        check().await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

/// The query's columns of a stream table, without the row id.
async fn columns_of(client: &tokio_postgres::Client, table: &str) -> String {
    const SQL: &str = "select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
        where attrelid = to_regclass($1) and attnum > 0 and not attisdropped and attname <> '__pgt_row_id'";
    client.query_one(SQL, &[&table]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn users_functions_are_evaluated_with_the_owners_rights_and_stay_incremental() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        // A function that lies about being immutable shows who runs it.
        app.batch_execute(
            "create function me(int) returns text immutable language sql as 'select current_user::text || $1';
             create function risky(int) returns int immutable language plpgsql as 'begin return 10 / $1; end';
             create table t (id int primary key, v int);
             insert into t values (1, 1), (2, 2)",
        )
        .await
        .unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        let create = "select pgtrickle.create_stream_table('st', 'select id, me(v) as who, risky(v) as r from t', refresh_mode => 'DIFFERENTIAL')";
        app.batch_execute(create).await.unwrap();
        wait_active(&app).await;
        app.batch_execute("insert into t values (5, 5); update t set v = 7 where id = 1").await.unwrap();
        let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
        assert!(passed);
        let rows = app.query("select who, r from st order by id", &[]).await.unwrap();
        let rows: Vec<(String, i32)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
        assert_eq!(rows, [("app7".to_owned(), 1), ("app2".to_owned(), 5), ("app5".to_owned(), 2)]);
        // Its error belongs to the stream table, with the function's SQLSTATE.
        app.batch_execute("insert into t values (9, 0)").await.unwrap();
        wait_until("the failing stream table is taken out", SOON, || async {
            let sql = "select last_error_sqlstate from pgtrickle.stream_tables_info where pgt_name = 'st'";
            match app.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0).as_deref() {
                Some("22012") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        // Mended, it comes back by itself.
        app.batch_execute("delete from t where id = 9").await.unwrap();
        wait_active(&app).await;
        assert_equal(&app, "select id, me(v) as who, risky(v) as r from t", "st", "id, who, r").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

async fn wait_active(app: &tokio_postgres::Client) {
    wait_until("all stream tables are active", SOON, || async {
        const SQL: &str = "select string_agg(concat_ws(' ', name, status, refresh_mode, refresh_reason, last_error_message), ', ')
            from pgtrickle.pgt_status() where status <> 'ACTIVE' or refresh_mode <> 'DIFFERENTIAL'";
        match app.query_one(SQL, &[]).await.unwrap().get::<_, Option<String>>(0) {
            None => Ok(()),
            Some(others) => Err(others),
        }
    })
    .await;
}

/// "Everything that was committed before the call" has no exception for what is hardly there yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_includes_stream_tables_that_were_created_just_before() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let app = db.as_app().await;
        app.batch_execute(SHOP).await.unwrap();
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        for n in 0..8 {
            let query = format!("select id, amount + {n} as more from orders where id % 4 < 3");
            let name = format!("made_{n}");
            app.execute("select pgtrickle.create_stream_table($1, $2)", &[&name, &query]).await.unwrap();
            app.batch_execute(&format!("insert into orders values ({}, 1, 5, 'open')", 100_000 + n * 4))
                .await
                .unwrap();
            let passed: bool = app.query_one("select pgtrickle.wait_for()", &[]).await.unwrap().get(0);
            assert!(passed, "the wait was in vain");
            assert_equal(&app, &query, &name, "id, more").await;
        }
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
