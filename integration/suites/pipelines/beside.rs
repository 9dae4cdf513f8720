//! Two pipelines over the same sources, and over each other's stream tables.

use super::{Scene, Table};
use crate::harness::database::{pgtrickle, printed};
use crate::harness::servers::SUPERUSER;
use crate::harness::{SOON, for_each_major, wait_until};
use crate::suites::bad_input::value;

/// `plain` has no replica identity: triggers of each pipeline capture it.
const SOURCES: &str = "
    create table orders (id int primary key, customer int not null, amount numeric(12, 2));
    create table plain (customer int not null, note text);
    insert into orders select i, i % 20, i from generate_series(1, 500) i;
    insert into plain select i % 25, 'n' || i from generate_series(1, 100) i";

const SPENT: Table = (
    "spent",
    "select customer, sum(amount) as total, count(*) as n from orders group by customer",
    "customer, total, n",
);
const NOTES: Table = (
    "notes",
    "select p.note, o.amount from plain p join orders o on o.customer = p.customer and o.id < 40",
    "note, amount",
);
const SPENT_B: Table = (
    "spent_b",
    "select customer, sum(amount) as total, count(*) as n from orders group by customer",
    "customer, total, n",
);
const NOTED_B: Table =
    ("noted_b", "select customer, count(*) as n from plain group by customer", "customer, n");
/// Each over one of the other pipeline.
const BIG_B: Table =
    ("big_b", "select customer, total, n from spent where total > 5000", "customer, total, n");
const HOW_MANY: Table = ("how_many", "select count(*) as n, sum(total) as total from big_b", "n, total");
const ALL: [Table; 6] = [SPENT, NOTES, SPENT_B, NOTED_B, BIG_B, HOW_MANY];

async fn write(scene: &Scene, seed: i32) {
    scene
        .app
        .batch_execute(&format!(
            "begin;
             update orders set amount = amount + {seed}, customer = (customer + 1) % 20 where id % 7 = {seed} % 7;
             delete from orders where id % 50 = {seed} % 50;
             insert into orders select 1000 * ({seed} + 1) + i, i % 23, i from generate_series(1, 40) i;
             delete from plain where ctid in (select ctid from plain limit 5);
             insert into plain select i % 25, 'w{seed}' from generate_series(1, 7) i;
             commit"
        ))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pipelines_share_sources_read_each_other_and_survive_each_other() {
    for_each_major(async |server| {
        let mut scene = Scene::set(server, SOURCES).await;
        for (pipeline, table) in
            [("main", SPENT), ("main", NOTES), ("b", SPENT_B), ("b", NOTED_B), ("b", BIG_B), ("main", HOW_MANY)]
        {
            scene.create(pipeline, &table).await;
        }
        scene.live().await;
        // Each request was answered by the sidecar that it was meant for: these have their keys.
        let keyed = "select string_agg(pgt_name, ' ' order by pgt_name) from pgtrickle.pgt_stream_tables where key_columns is not null";
        assert_eq!(value(&scene.dba, keyed).await, "big_b noted_b spent spent_b");
        let modes = "select string_agg(distinct refresh_mode, ' ') from pgtrickle.pgt_stream_tables";
        assert_eq!(value(&scene.dba, modes).await, "DIFFERENTIAL");
        let published = "select string_agg(p.pipeline || ' ' || t.tablename, ', ' order by p.pipeline, t.tablename)
            from pgtrickle.pgt_pipelines p join pg_publication_tables t on t.pubname = p.publication_name";
        assert_eq!(value(&scene.dba, published).await, "b orders, b spent, main big_b, main orders");
        let triggers = "select count(*) from pg_trigger where tgname like 'pgtrickle_capture_%' and tgrelid = 'app.plain'::regclass";
        assert_eq!(value(&scene.dba, triggers).await, "8");
        for seed in 0..4 {
            write(&scene, seed).await;
            scene.equal(&ALL).await;
        }
        // What one asks for does not disturb the other.
        let generations = "select string_agg(generation::text, ' ' order by pipeline) from pgtrickle.pgt_pipelines";
        let before = value(&scene.dba, generations).await;
        scene.app.batch_execute("select pgtrickle.alter_stream_table('spent_b', cdc_mode => 'wal')").await.unwrap();
        scene.live().await;
        write(&scene, 4).await;
        // The last of a chain through both.
        scene.app.batch_execute("select pgtrickle.refresh_stream_table('how_many')").await.unwrap();
        let (_, query, columns) = HOW_MANY;
        let chained = query.replace("big_b", "(select customer, sum(amount) as total from orders group by 1 having sum(amount) > 5000) x");
        crate::harness::oracle::assert_equal(&scene.app, &chained, "how_many", columns).await;
        assert_eq!(value(&scene.dba, generations).await, before);
        // Either one ends in the middle of writes.
        for (round, of_main) in [(5, true), (6, false)] {
            write(&scene, round).await;
            let sidecar = if of_main { &mut scene.main } else { &mut scene.b };
            sidecar.kill9();
            write(&scene, round + 10).await;
            let sidecar = if of_main { &mut scene.main } else { &mut scene.b };
            sidecar.start_again();
            write(&scene, round + 20).await;
            scene.equal(&ALL).await;
        }
        // A migration parks the queries of both.
        scene
            .app
            .batch_execute(
                "begin; select pgtrickle.begin_ddl('orders'); alter table orders alter amount type numeric(14, 2);
                 select pgtrickle.end_ddl('orders'); commit",
            )
            .await
            .unwrap();
        scene.live().await;
        write(&scene, 30).await;
        scene.equal(&ALL).await;
        dropped(&mut scene).await;
    })
    .await;
}

/// The pipeline goes with all that is its own; the other one goes on.
async fn dropped(scene: &mut Scene) {
    let refused = scene.dba.batch_execute("select pgtrickle.drop_pipeline('b')").await.unwrap_err();
    let refused = refused.as_db_error().expect("the server's answer");
    assert_eq!(refused.code().code(), "2BP01");
    assert_eq!(refused.message(), "pipeline b has 3 stream tables: app.big_b, app.noted_b, app.spent_b");
    let refused = scene.dba.batch_execute("select pgtrickle.drop_pipeline('b', true)").await.unwrap_err();
    assert_eq!(refused.as_db_error().map(|e| e.code().code()), Some("55006"));
    let url = scene.db.url(SUPERUSER);
    let done = pgtrickle(&["pipelines", "drop", "b", "--cascade", "--database-url", &url]);
    assert!(done.status.success(), "{}", printed(&done));
    // Nobody is left who could serve it: its sidecar ends.
    let code = scene.b.wait_exit(SOON).await;
    assert_eq!(code, Some(2), "{}", scene.b.logs().lines().last().unwrap_or_default());
    for (what, left) in [
        ("select count(*) from pg_replication_slots where database = current_database()", "1"),
        ("select count(*) from pg_publication", "1"),
        ("select count(*) from pg_trigger where tgname like 'pgtrickle_capture_%'", "4"),
        ("select count(*) from pg_proc where pronamespace = 'pgtrickle_changes'::regnamespace", "1"),
        ("select string_agg(pgt_name, ' ' order by pgt_id) from pgtrickle.pgt_stream_tables", "spent notes"),
        ("select count(*) from pgtrickle.pgt_sources where pipeline = 'b'", "0"),
    ] {
        assert_eq!(value(&scene.dba, what).await, left, "{what}");
    }
    write(scene, 40).await;
    scene.equal(&[SPENT, NOTES]).await;
    wait_until("nothing of the other pipeline to be left in the publication", SOON, || async {
        let sql = "select string_agg(tablename, ' ') from pg_publication_tables";
        match value(&scene.dba, sql).await {
            left if left == "orders" => Ok(()),
            left => Err(left),
        }
    })
    .await;
    assert_eq!(scene.main.terminate(SOON).await, Some(0));
}
