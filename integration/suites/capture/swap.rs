//! Tables that exchange their names while triggers capture them.

use super::super::hazards::Scene;
use super::super::snapshots::value;
use crate::harness::{SOON, for_each_major, wait_until};

/// The usual way of a migration that rewrites a table: the old one is put aside, the new one has its name. What is written
/// to the old one afterwards does not concern the new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_took_the_name_of_another_is_not_fed_by_its_triggers() {
    for_each_major(async |server| {
        for arguments in [&["--cdc-mode", "trigger"][..], &[]] {
            let scene = Scene::start_with(
                server,
                "create table orders (id int primary key, v int); insert into orders select g, g from generate_series(1, 100) g",
                arguments,
            )
            .await;
            scene.run("select pgtrickle.create_stream_table('s', 'select id, v from orders', cdc_mode => 'trigger')").await;
            scene.wait_status("s", "ACTIVE DIFFERENTIAL").await;
            scene
                .run(
                    "begin; alter table orders rename to orders_old; create table orders (like orders_old including all);
                     insert into orders select * from orders_old where id <= 50; commit",
                )
                .await;
            scene.run("select pgtrickle.alter_stream_table('s', query => 'select id, v from orders')").await;
            scene.check_in_time(&["s"]).await;
            scene.run("insert into orders_old values (1000, 1); insert into orders values (2000, 2); truncate orders_old").await;
            scene.check(&["s"]).await;
            // Both are read; then names are exchanged once more.
            scene.run("select pgtrickle.create_stream_table('o', 'select id, v from orders_old', cdc_mode => 'trigger')").await;
            scene.check_in_time(&["s", "o"]).await;
            scene
                .run("begin; alter table orders rename to swapped; alter table orders_old rename to orders; alter table swapped rename to orders_old; commit")
                .await;
            scene.run("insert into orders values (1, 1); insert into orders_old values (3000, 3)").await;
            scene.check_in_time(&["s", "o"]).await;
            scene.run("select pgtrickle.alter_stream_table('s', query => 'select id, v from orders')").await;
            scene.check_in_time(&["s", "o"]).await;
            // The new name is noticed at a look, whenever it comes, and what has it is read again.
            wait_until("o to be prepared again", SOON, || async {
                let again = "select count(*) from pgtrickle.pgt_refresh_history where pgt_name = 'o' and action = 'REINITIALIZE'";
                match value(&scene.dba, again).await.as_str() {
                    "0" => Err("it was not".to_owned()),
                    _ => Ok(()),
                }
            })
            .await;
            scene.check_in_time(&["s", "o"]).await;
            scene.run("insert into orders values (2, 2); delete from orders_old where id < 20").await;
            scene.check(&["s", "o"]).await;
            let named = "select count(*) from pgtrickle.pgt_sources s join pg_class c on c.oid = s.source::oid
                where s.source_name <> format('app.%I', c.relname)";
            assert_eq!(value(&scene.dba, named).await, "0");
        }
    })
    .await;
}
