//! The oracle test tests itself: a row that is wrong, missing or left behind is noticed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::boundaries::verify;
use super::prng::{Prng, seed};
use super::round::{create, create_seen, install, quiet};
use super::world::{PATIENCE, World};
use super::{fixed, stage::Stage};
use crate::harness::{Sidecar, TestDatabase, for_each_major};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_table_that_is_changed_by_hand_is_noticed() {
    for_each_major(async |server| {
        let database = TestDatabase::create(server).await;
        install(&database).await;
        let app = database.as_app().await;
        let mut stage: Stage = fixed::stage(seed());
        stage.streams.retain(|s| s.name == "duplicates" || s.name == "null_keys");
        stage.install_tables(&app).await;
        stage.install_references(&app).await;
        let mut sidecar = Sidecar::start(&database, &[]);
        sidecar.wait_ready(PATIENCE).await;
        create_seen(&stage, &app).await;
        for stream in &stage.streams {
            create(&stage, &app, &stream.name, &stream.query.stored()).await;
        }
        let stage = Arc::new(stage);
        let mut world = World::new(stage.clone(), &database, Prng::new(stage.seed)).await;
        for transaction in &fixed::SCRIPT[..4] {
            world.transaction(transaction).await;
        }
        world.finish().await;
        let dba = database.as_dba().await;
        let passes = async || {
            let seen = [quiet(&stage, &app, &world, 2).await];
            let check = || verify(&stage, &world.boundaries.log, &world.boundaries.answers, &seen);
            catch_unwind(AssertUnwindSafe(check)).is_ok()
        };
        assert!(passes().await, "nothing was changed");
        for (what, undo) in [
            // One of two equal rows, a digit behind the point of nothing, a group too many.
            (
                "create table kept as select * from duplicates;
              delete from duplicates where ctid = (select min(ctid) from duplicates where o0 = 'dup')",
                "truncate duplicates; insert into duplicates select * from kept",
            ),
            (
                "update null_keys set o2 = o2 + 1 where o0 is null",
                "update null_keys set o2 = o2 - 1 where o0 is null",
            ),
        ] {
            let by_hand = "set session_replication_role = replica; set search_path = app";
            dba.batch_execute(&format!("{by_hand}; {what}")).await.unwrap();
            assert!(!passes().await, "{what} was not noticed");
            dba.batch_execute(undo).await.unwrap();
            assert!(passes().await, "{what} was undone");
        }
    })
    .await;
}
