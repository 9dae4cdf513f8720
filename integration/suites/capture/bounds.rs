//! What capture may cost while nobody reads it.

use super::world::World;
use super::{becomes, text};
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major};

#[tokio::test(flavor = "multi_thread")]
async fn a_buffer_that_nobody_reads_stays_bounded_and_the_return_repairs_by_difference() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let world = World::new(&db, true).await;
        let dba = db.as_dba().await;
        dba.batch_execute("insert into pgtrickle.settings values ('buffer_limit_mb', '1')").await.unwrap();
        let mut sidecar = Sidecar::start(&db, &["--cdc-mode", "trigger"]);
        sidecar.wait_ready(SOON).await;
        world.create().await;
        world.active().await;
        sidecar.kill9();
        // Far more than the bound; old transactions meet the mark as well.
        let old = db.as_app().await;
        old.batch_execute("begin isolation level repeatable read; select count(*) from accounts").await.unwrap();
        for _ in 0..30 {
            world.app.batch_execute("update accounts set amount = amount + 1").await.unwrap();
        }
        let insert = "insert into events select 'big', i from generate_series(1, 40000) i";
        world.app.batch_execute(insert).await.unwrap();
        world.app.batch_execute(insert).await.unwrap();
        world.app.batch_execute("update events set v = v + 1 where kind = 'big'").await.unwrap();
        let largest = "select max(pg_relation_size(oid)) / 1048576 || ' MB'
            from pg_class where relnamespace = 'pgtrickle_changes'::regnamespace and relkind = 'r'";
        let size = text(&dba, largest).await;
        println!("  largest buffer after 160 000 changes: {size}");
        let marks = text(&dba, "select coalesce(sum(n), 0) || '' from (select (xpath('/row/n/text()',
            query_to_xml(format('select count(*) as n from %s where op = ''G''', c.oid::regclass), false, true, '')))[1]::text::int as n
            from pg_class c where c.relnamespace = 'pgtrickle_changes'::regnamespace and c.relkind = 'r') q").await;
        assert_eq!(marks, "2", "two sources have passed the bound, and each is marked once");
        let writers = world.writers(&db, 3).await;
        sidecar.start_again();
        writers.more(100).await;
        // It read nothing so far, so its snapshot shows the mark; what it writes now is recorded all the same.
        old.batch_execute("insert into events values ('old', 3); commit").await.unwrap();
        writers.more(100).await;
        writers.stop().await;
        world.active().await;
        world.check().await;
        becomes(&dba, "select (max(pg_relation_size(oid)) < 8 * 1048576)::text from pg_class
            where relnamespace = 'pgtrickle_changes'::regnamespace and relkind = 'r'", "true").await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_heartbeat_for_long_nothing_is_recorded() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let world = World::new(&db, false).await;
        let dba = db.as_dba().await;
        let mut sidecar = Sidecar::start(&db, &["--cdc-mode", "trigger"]);
        sidecar.wait_ready(SOON).await;
        world.create().await;
        world.active().await;
        sidecar.kill9();
        // A week passes.
        dba.batch_execute("update pgtrickle.pgt_pipelines set heartbeat_at = heartbeat_at - interval '7 days'").await.unwrap();
        let writers = world.writers(&db, 3).await;
        writers.more(300).await;
        let rows = "select max(n) || '' from (select (xpath('/row/n/text()',
            query_to_xml(format('select count(*) as n from %s', c.oid::regclass), false, true, '')))[1]::text::int as n
            from pg_class c where c.relnamespace = 'pgtrickle_changes'::regnamespace and c.relkind = 'r') q";
        let most: i64 = text(&dba, rows).await.parse().unwrap();
        println!("  rows in the fullest buffer after 300 transactions of a week without a sidecar: {most}");
        assert!(most <= 6, "{most} rows were recorded");
        sidecar.start_again();
        writers.more(100).await;
        writers.stop().await;
        world.active().await;
        world.check().await;
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
