//! Stream tables of many schedules over each other: gates everywhere, so no commit boundary is shared. What must hold: at
//! rest, once each was refreshed in the order of the chain, each equals its query over what its upstreams store; whatever
//! schedules were changed, whichever were suspended, and however often the sidecar was killed before.

use std::sync::Arc;

use tokio_postgres::Client;

use super::prng::Prng;
use super::round::{compare, create_at, install, leave_functions_out, needs_sidecar, states};
use super::stage::Stage;
use super::world::{PATIENCE, World};
use crate::harness::{Server, Sidecar, TestDatabase, wait_until};

const SCHEDULES: &[&str] = &["calculated", "calculated", "300ms", "1s", "* * * * * *", "manual"];
const TRANSACTIONS: usize = 40;

/// What happens while transactions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Nothing,
    OtherSchedules,
    Suspended,
    Killed,
}

const EVENTS: [Event; 6] = [
    Event::Nothing,
    Event::OtherSchedules,
    Event::Suspended,
    Event::Killed,
    Event::OtherSchedules,
    Event::Nothing,
];

fn schedule(rng: &mut Prng) -> &'static str {
    SCHEDULES[rng.below(SCHEDULES.len())]
}

/// Plays one round.
pub async fn play(server: &'static Server, seed: u64, arguments: &'static [&'static str]) {
    let database = TestDatabase::create(server).await;
    install(&database).await;
    let app = database.as_app().await;
    let mut stage = Stage::random(seed, &database).await;
    if arguments.contains(&"trigger") {
        leave_functions_out(&mut stage);
    }
    let mut rng = Prng::new(seed ^ 0x5c4e_d01e);
    println!("mixed schedules with PGTRICKLE_ORACLE_SEED={seed} on PostgreSQL {}", server.major);
    let first_late = stage.streams.iter().position(|s| needs_sidecar(&stage, &s.query.text));
    let before = rng.below(stage.streams.len()).min(first_late.unwrap_or(stage.streams.len()));
    for stream in &stage.streams[..before] {
        create_at(&stage, &app, &stream.name, &stream.query.stored(), schedule(&mut rng)).await;
    }
    let mut sidecar = Sidecar::start(&database, arguments);
    sidecar.wait_ready(PATIENCE).await;
    for stream in &stage.streams[before..] {
        create_at(&stage, &app, &stream.name, &stream.query.stored(), schedule(&mut rng)).await;
    }
    let stage = Arc::new(stage);
    let mut world = World::new(stage.clone(), &database, rng.fork()).await;
    world.watched = 0;
    for event in EVENTS {
        world.run(TRANSACTIONS).await;
        let some = &stage.streams[rng.below(stage.streams.len())].name;
        match event {
            Event::Nothing => {}
            Event::OtherSchedules => {
                for _ in 0..3 {
                    let name = &stage.streams[rng.below(stage.streams.len())].name;
                    let alter = "select pgtrickle.alter_stream_table($1, schedule => $2)";
                    app.execute(alter, &[name, &schedule(&mut rng)]).await.expect("another schedule");
                }
            }
            Event::Suspended => call(&app, "suspend_stream_table", some).await,
            Event::Killed => {
                sidecar.kill9();
                world.run(TRANSACTIONS / 2).await;
                sidecar.start_again();
            }
        }
        world.run(TRANSACTIONS).await;
        if event == Event::Suspended {
            call(&app, "resume_stream_table", some).await;
        }
        world.finish().await;
        at_rest(&stage, &app).await;
    }
    assert_eq!(sidecar.terminate(PATIENCE).await, Some(0), "the sidecar's exit code after SIGTERM");
    println!(
        "  {} commits, {} stream tables compared {} times",
        world.boundaries.log.len(),
        stage.streams.len(),
        EVENTS.len()
    );
}

async fn call(app: &Client, function: &str, name: &str) {
    app.execute(&format!("select pgtrickle.{function}($1)"), &[&name]).await.expect("a stream table of ours");
}

async fn at_rest(stage: &Stage, app: &Client) {
    wait_until("all stream tables to be active", PATIENCE, || async {
        let odd = states(app).await;
        if odd.is_empty() { Ok(()) } else { Err(format!("seed {}: {odd}", stage.seed)) }
    })
    .await;
    for stream in &stage.streams {
        let refresh = "select pgtrickle.refresh_stream_table($1)";
        if let Err(error) = app.execute(refresh, &[&stream.name]).await {
            stage.fail(&format!("{} can't be refreshed: {error:?}", stream.name));
        }
    }
    for stream in &stage.streams {
        compare(stage, app, stream).await;
    }
}
