//! Broken replication sessions.

use super::text;
use super::world::World;
use crate::harness::fault::terminate_slot;
use crate::harness::{SOON, Sidecar, TestDatabase, for_each_major, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_walsender_that_is_terminated_under_load_costs_no_reading() {
    for_each_major(async |server| {
        let db = TestDatabase::create(server).await;
        db.install();
        let world = World::new(&db, true).await;
        let dba = db.as_dba().await;
        let mut sidecar = Sidecar::start(&db, &[]);
        sidecar.wait_ready(SOON).await;
        world.create().await;
        world.active().await;
        world.check().await;
        let slot = text(&dba, "select slot_name from pgtrickle.pgt_pipelines").await;
        let generation = text(&dba, "select generation || '' from pgtrickle.pgt_pipelines").await;
        let loads = sidecar.logs().matches("sources loaded").count();
        let writers = world.writers(&db, 3).await;
        for round in 1..=6 {
            writers.more(40).await;
            wait_until("a walsender to be terminated", SOON, || async {
                if terminate_slot(&dba, &slot).await > 0 { Ok(()) } else { Err("none is active".to_owned()) }
            })
            .await;
            wait_until("the stream to go on", SOON, || async {
                let logs = sidecar.logs();
                let lost = logs.lines().find(|l| l.contains("starting again"));
                assert!(lost.is_none(), "not resumed: {}", lost.unwrap_or_default());
                let resumed = logs.matches("nothing had to be read again").count();
                if resumed >= round { Ok(()) } else { Err(format!("resumed {resumed} times")) }
            })
            .await;
        }
        writers.more(40).await;
        writers.stop().await;
        world.check().await;
        assert_eq!(text(&dba, "select generation || '' from pgtrickle.pgt_pipelines").await, generation);
        assert_eq!(sidecar.logs().matches("sources loaded").count(), loads, "sources were read again");
        assert_eq!(text(&dba, "select count(*) || '' from pgtrickle.pgt_recoveries").await, "0");
        assert_eq!(sidecar.terminate(SOON).await, Some(0));
    })
    .await;
}
