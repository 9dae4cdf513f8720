//! The oracle test: random schemas, random supported queries and random transactions; PostgreSQL says what every stream
//! table must hold, at quiescence and at every commit boundary in between.
//!
//! `PGTRICKLE_ORACLE_SEED` chooses a run (a failure prints it; `random` takes one from the clock),
//! `PGTRICKLE_ORACLE_ROUNDS` sets how many random rounds each major gets. How the check in the middle is sound: see
//! [`boundaries`].

pub mod answers;
pub mod boundaries;
pub mod fixed;
pub mod forms;
pub mod joins;
pub mod measures;
pub mod mixed;
pub mod nested;
pub mod noticed;
pub mod prng;
pub mod query;
pub mod reshape;
pub mod round;
pub mod scalar;
pub mod schema;
pub mod sets;
pub mod stage;
pub mod transactions;
pub mod types;
pub mod windows;
pub mod world;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use pgtrickle::analyzer::{TreeSource, analyze};

use crate::harness::{TestDatabase, for_each_major};
use prng::{Prng, rounds, seed};
use round::{Options, play};
use stage::Stage;
use world::World;

#[tokio::test(flavor = "multi_thread")]
async fn random_queries_equal_their_stream_tables_at_every_commit() {
    for_each_major(async |server| {
        for number in 0..rounds() {
            play(server, seed() + number, Options::default()).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_give_the_same_answers() {
    for_each_major(async |server| {
        play(server, seed() + 1000, Options { arguments: &["--workers", "2"], ..Options::default() }).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn captured_by_triggers_the_answers_are_the_same() {
    for_each_major(async |server| {
        let arguments = &["--cdc-mode", "trigger"];
        play(server, seed() + 3000, Options { arguments, ..Options::default() }).await;
        play(server, seed() + 4000, Options { arguments, fixed: true, ..Options::default() }).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tricky_queries_equal_their_stream_tables_at_every_commit() {
    for_each_major(async |server| {
        play(server, seed() + 2000, Options { fixed: true, ..Options::default() }).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_schedule_stream_tables_equal_their_queries_at_one_commit() {
    for_each_major(async |server| {
        play(server, seed() + 5000, Options { schedule: "300ms", ..Options::default() }).await;
        play(server, seed() + 6000, Options { schedule: "* * * * * *", fixed: true, ..Options::default() })
            .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_many_schedules_stream_tables_equal_their_queries_over_what_is_stored() {
    for_each_major(async |server| {
        for number in 0..rounds().div_ceil(5) {
            mixed::play(server, seed() + 7000 + number, &[]).await;
        }
        mixed::play(server, seed() + 8000, &["--cdc-mode", "trigger"]).await;
    })
    .await;
}

/// The generator against PostgreSQL alone: what it makes is valid, mostly succeeds, and is of the supported kind.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_generator_makes_is_valid_and_supported() {
    for_each_major(async |server| {
        let rounds = rounds();
        let (mut begun, mut failed) = (0, 0);
        let mut refused = BTreeMap::new();
        for number in 0..=rounds {
            let seed = seed() + number;
            let database = TestDatabase::create(server).await;
            let mut app = database.as_app().await;
            let stage = if number < rounds {
                Stage::random(seed, &database).await
            } else {
                let stage = fixed::stage(seed);
                stage.install_tables(&app).await;
                stage.install_references(&app).await;
                stage
            };
            for stream in &stage.streams {
                let query = stream.query.inlined();
                let source = TreeSource::Text { query: &query, columns: &[], owner: None };
                match analyze(&mut app, source, &HashMap::new()).await {
                    Ok(analysis) => {
                        if let Err(refusal) = analysis.plan {
                            refused.entry(refusal.reason).or_insert((seed, query));
                        }
                    }
                    Err(error) => stage.fail(&format!("{query} cannot be analysed: {error}")),
                }
            }
            let stage = Arc::new(stage);
            let mut world = World::new(stage.clone(), &database, Prng::new(seed)).await;
            if number == rounds {
                for transaction in fixed::SCRIPT {
                    world.transaction(transaction).await;
                }
            }
            world.run(60).await;
            world.finish().await;
            begun += 60;
            failed += world.failed;
            let answers = world.boundaries.answers.lock().expect("answers").len();
            assert!(answers > 10, "only {answers} boundaries have answers");
        }
        println!("PostgreSQL {}: {failed} of {begun} transactions failed", server.major);
        assert!(refused.is_empty(), "queries are refused: {refused:#?}");
        assert!(failed * 3 < begun, "{failed} of {begun} transactions failed");
    })
    .await;
}
