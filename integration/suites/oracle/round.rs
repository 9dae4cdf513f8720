//! One round: a database, a sidecar, stream tables made before, at and after its start, a workload, and the checks.

use std::sync::Arc;

use tokio_postgres::Client;

use super::answers;
use super::boundaries::{Observation, Reader, SEEN, changing, observe, verify};
use super::fixed;
use super::prng::Prng;
use super::query::Query;
use super::reshape;
use super::scalar::Image;
use super::stage::{Stage, Stream};
use super::types::Ty;
use super::world::{PATIENCE, World};
use crate::harness::cluster::Members;
use crate::harness::oracle::{difference, difference_of_text};
use crate::harness::{SOON, Server, Sidecar, TestDatabase, wait_until};

/// How a round is played.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Of the sidecar.
    pub arguments: &'static [&'static str],
    /// The hand-written stage in place of a random one.
    pub fixed: bool,
    pub transactions: usize,
    /// Of all stream tables: they must show one commit boundary together, whichever it is.
    pub schedule: &'static str,
    /// That share the sidecar's state.
    pub members: Option<fn() -> Members>,
}

impl Default for Options {
    fn default() -> Options {
        Options { arguments: &[], fixed: false, transactions: 300, schedule: "calculated", members: None }
    }
}

/// Adds the stream tables over the numbers of the transactions.
pub fn with_log(stage: &mut Stage) {
    let i8 = (Ty::Int8, Image::Exact);
    let tally = Query::written("select max(id) as o0, count(*) as o1 from log_seq", &[i8, i8]);
    stage.streams.push(Stream { name: "tally".to_owned(), query: tally });
}

/// Installs pgtrickle and lets the sidecar read the application's tables. The application lives in another time zone than the
/// sidecar.
pub async fn install(database: &TestDatabase) {
    database.install();
    let dba = database.as_dba().await;
    dba.batch_execute(
        "grant usage on schema app to pgtrickle;
         alter default privileges for role app in schema app grant select on tables to pgtrickle;
         grant select on all tables in schema app to pgtrickle;
         do $$ begin
            execute format('alter role app in database %I set timezone = %L', current_database(), 'America/New_York');
         end $$",
    )
    .await
    .expect("rights of the sidecar");
}

/// A call that took longer is worth a line.
const SLOW: std::time::Duration = std::time::Duration::from_millis(1500);

/// Creates a stream table as the application.
pub async fn create(stage: &Stage, app: &Client, name: &str, query: &str) {
    create_at(stage, app, name, query, "calculated").await;
}

/// The same under a schedule.
pub async fn create_at(stage: &Stage, app: &Client, name: &str, query: &str, schedule: &str) {
    let call = "select pgtrickle.create_stream_table($1, $2, schedule => $3)";
    let started = std::time::Instant::now();
    if let Err(error) = app.execute(call, &[&name, &query, &schedule]).await {
        stage.fail(&format!("stream table {name} was not created: {error:?}\nquery: {query}"));
    }
    if started.elapsed() > SLOW {
        println!("  creating {name} took {:.1} s", started.elapsed().as_secs_f64());
    }
}

/// The stream table that says which commits are seen.
pub async fn create_seen(stage: &Stage, app: &Client) {
    create(stage, app, SEEN, "select id from log_seq").await;
}

/// Whether a query calls functions of users or reads settings, or reads what does: it is planned while a sidecar runs,
/// because the owner's functions are made at its creation.
pub fn needs_sidecar(stage: &Stage, text: &str) -> bool {
    const OWNERS: [&str; 5] = ["app_", "to_jsonb", "to_char", "date_trunc('day'", "/* DateStyle */"];
    const SETS: [&str; 3] = [" union ", " intersect ", " except "];
    let converted = |text: &str| text.contains("timestamptz") && SETS.iter().any(|word| text.contains(word));
    let calls = |text: &str| OWNERS.iter().any(|word| text.contains(word)) || converted(text);
    let mut views: Vec<String> = Vec::new();
    for (number, view) in stage.views.iter().enumerate() {
        if calls(view) || views.iter().any(|v| view.contains(v.as_str())) {
            views.push(format!("v{number} as"));
        }
    }
    calls(text) || views.iter().any(|v| text.contains(v.as_str()))
}

/// Without the WAL a query is planned after its creation, so the owner's functions can't be made with it.
pub fn leave_functions_out(stage: &mut Stage) {
    let mut gone: Vec<String> = Vec::new();
    for stream in std::mem::take(&mut stage.streams) {
        let reads = gone.iter().any(|name| stream.query.text.contains(name.as_str()));
        match reads || needs_sidecar(stage, &stream.query.text) {
            true => gone.push(format!("@{}@", stream.name)),
            false => stage.streams.push(stream),
        }
    }
}

/// Plays one round; fails with everything that is needed to play it again.
pub async fn play(server: &'static Server, seed: u64, options: Options) {
    let started = std::time::Instant::now();
    let database = TestDatabase::create(server).await;
    install(&database).await;
    let app = database.as_app().await;
    let mut stage = match options.fixed {
        true => fixed::stage(seed),
        false => Stage::random(seed, &database).await,
    };
    if options.fixed {
        stage.install_tables(&app).await;
        stage.install_references(&app).await;
    }
    if options.arguments.contains(&"trigger") {
        leave_functions_out(&mut stage);
    }
    with_log(&mut stage);
    app.batch_execute("create view ref_tally as select max(id) as o0, count(*) as o1 from log_seq")
        .await
        .unwrap();
    let stage = Arc::new(stage);
    println!("round with PGTRICKLE_ORACLE_SEED={seed} on PostgreSQL {}", server.major);
    // What nothing stands on can come late, and one of them can go.
    let leaves: Vec<usize> = (0..stage.streams.len())
        .filter(|i| {
            !stage.streams.iter().any(|s| s.query.text.contains(&format!("@{}@", stage.streams[*i].name)))
        })
        .collect();
    let mut rng = Prng::new(seed ^ 0xfeed);
    let late: Vec<usize> = leaves.iter().rev().take(3).copied().collect();
    let victim = leaves[0];
    let early = stage.streams.iter().enumerate().filter(|(i, _)| !late.contains(i));
    let early: Vec<&Stream> = early.map(|(_, s)| s).collect();
    let alone = early.iter().position(|s| needs_sidecar(&stage, &s.query.text)).unwrap_or(early.len());
    let before = rng.below(early.len()).min(alone);
    for stream in &early[..before] {
        create_at(&stage, &app, &stream.name, &stream.query.stored(), options.schedule).await;
    }
    let members = options.members.map(|start| start());
    let mut arguments: Vec<String> = options.arguments.iter().map(|a| (*a).to_owned()).collect();
    arguments.extend(members.iter().flat_map(|members| members.arguments(0)));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut sidecar = Sidecar::start(&database, &arguments);
    sidecar.wait_ready(PATIENCE).await;
    create_at(&stage, &app, SEEN, "select id from log_seq", options.schedule).await;
    for stream in &early[before..] {
        create_at(&stage, &app, &stream.name, &stream.query.stored(), options.schedule).await;
    }
    let created = started.elapsed().as_secs_f64();
    let full = full(&app).await;
    if !full.is_empty() {
        stage.fail(&format!("stream tables are not differential:\n{full}"));
    }
    let mut world = World::new(stage.clone(), &database, rng.fork()).await;
    if !options.fixed {
        world.boundaries.take().await;
    }
    let reader = Reader::start(stage.clone(), &database).await;
    if options.fixed {
        for transaction in fixed::SCRIPT {
            world.transaction(transaction).await;
        }
    }
    let part = options.transactions / 5;
    for (number, late) in late.iter().enumerate() {
        world.run(part).await;
        let stream = &stage.streams[*late];
        create_at(&stage, &app, &stream.name, &stream.query.stored(), options.schedule).await;
        if number == 1 {
            let drop = "select pgtrickle.drop_stream_table($1)";
            app.execute(drop, &[&stage.streams[victim].name]).await.expect("a stream table is dropped");
        }
    }
    if !options.fixed {
        reshape::reshape(&stage, &mut world, &mut rng, part / 2).await;
    }
    // A burst, then slowly again.
    world.watched = 0;
    world.run(part).await;
    world.watched = 70;
    world.run(part).await;
    let written = started.elapsed().as_secs_f64();
    world.finish().await;
    let answered = started.elapsed().as_secs_f64();
    wait_for(&stage, &app).await;
    let waited = started.elapsed().as_secs_f64();
    let mut observations = reader.finish().await;
    observations.push(quiet(&stage, &app, &world, stage.streams.len() - 1).await);
    let compared = verify(&stage, &world.boundaries.log, &world.boundaries.answers, &observations);
    modes(&stage, &app).await;
    for (number, stream) in stage.streams.iter().enumerate() {
        if number != victim {
            compare(&stage, &app, stream).await;
        }
    }
    let code = sidecar.terminate(SOON).await;
    assert_eq!(code, Some(0), "the sidecar's exit code after SIGTERM");
    // A migration may make it start again, as one process does; nothing else may.
    let lost = |l: &&str| l.contains("starting again") && !l.contains("changed its shape");
    if members.is_some()
        && let Some(line) = sidecar.logs().lines().find(lost)
    {
        stage.fail(&format!("the run was lost and started again: {line}"));
    }
    println!(
        "  {} commits, {} rolled back, {} snapshots of readers, {compared} tables compared, {} of {} changed; seconds: \
         {created:.1} created, {written:.1} written, {answered:.1} answered, {waited:.1} arrived, {:.1} all",
        world.boundaries.log.len(),
        world.failed,
        observations.len(),
        changing(&world.boundaries.answers),
        stage.streams.len(),
        started.elapsed().as_secs_f64()
    );
}

/// Waits until everything that was committed has arrived.
pub async fn wait_for(stage: &Stage, app: &Client) {
    let row = app.query_one("select pgtrickle.wait_for(timeout => '180 s')", &[]).await;
    match row {
        Ok(row) if row.get::<_, bool>(0) => {}
        Ok(_) => stage.fail("pgtrickle.wait_for() waited 180 s in vain"),
        Err(error) => stage.fail(&format!("pgtrickle.wait_for() failed: {error:?}")),
    }
}

/// The observation after the last commit, with this many stream tables.
pub async fn quiet(stage: &Stage, app: &Client, world: &World, tables: usize) -> Observation {
    let expected = world.boundaries.log.len();
    wait_until("all stream tables to be active and to hold all commits", PATIENCE, || async {
        match observe(app, stage).await {
            Some(seen) if seen.commits() == expected && seen.tables() == tables => Ok(seen),
            Some(seen) => Err(format!(
                "{} of {expected} commits, {} of {tables} tables (seed {}): {}",
                seen.commits(),
                seen.tables(),
                stage.seed,
                states(app).await
            )),
            None => {
                Err(format!("no active stream table `seen` (seed {}): {}", stage.seed, states(app).await))
            }
        }
    })
    .await
}

/// Both ways, against what upstreams store: by the oracle of the harness, or, where a float is determined to some digits
/// only or a type without equality stands beside numerics, text by text as at the commit boundaries.
pub async fn compare(stage: &Stage, app: &Client, stream: &Stream) {
    let columns: Vec<String> = (0..stream.query.columns.len()).map(|i| format!("o{i}")).collect();
    let columns = columns.join(", ");
    let image = stream.query.columns.iter().map(|c| c.1).max().unwrap_or(Image::Exact);
    let passenger = stream.query.columns.iter().any(|c| c.0.is_passenger());
    let query = stream.query.stored();
    let rows = match (image, passenger) {
        (Image::Exact, _) => difference_of_text(app, &query, &stream.name, &columns).await,
        (Image::Value, false) => difference(app, &query, &stream.name, &columns).await,
        _ => read_both(app, stream).await,
    };
    match rows {
        Ok(rows) if rows.is_empty() => {}
        Ok(rows) => {
            let some = rows.iter().take(6).cloned().collect::<Vec<_>>().join("\n  ");
            let name = &stream.name;
            stage.fail(&format!("{name} differs at rest in {} rows:\n  {some}\nquery: {query}", rows.len()));
        }
        Err(error) => stage.fail(&format!("{} cannot be compared: {error:?}", stream.name)),
    }
}

/// As the harness compares, in the form of [`super::answers`]; one snapshot.
async fn read_both(app: &Client, stream: &Stream) -> Result<Vec<String>, tokio_postgres::Error> {
    app.batch_execute("begin isolation level repeatable read").await?;
    let sides = [(stream, format!("({}) as query", stream.query.stored())), (stream, stream.name.clone())];
    let answers = answers::read(app, "(select 1 as id) as one", &sides).await.map(|(_, answers)| answers);
    app.batch_execute("rollback").await?;
    let [expected, actual] = answers?.try_into().expect("two answers");
    Ok(answers::differences(&expected, &actual))
}

/// Every stream table must be maintained incrementally. A migration may be noticed at a look after everything has arrived.
async fn modes(stage: &Stage, app: &Client) {
    wait_until("all stream tables to be active and differential", PATIENCE, || async {
        let odd = states(app).await;
        if odd.is_empty() { Ok(()) } else { Err(format!("{odd} (seed {})", stage.seed)) }
    })
    .await;
}

/// Stream tables that fell to FULL, with the reason.
async fn full(app: &Client) -> String {
    let full = "select pgt_name || ': ' || coalesce(refresh_reason, '') from pgtrickle.pgt_stream_tables
        where refresh_mode <> 'DIFFERENTIAL' order by 1";
    let rows = app.query(full, &[]).await.expect("the catalog can be read");
    rows.iter().map(|r| r.get::<_, String>(0)).collect::<Vec<_>>().join("\n")
}

/// Stream tables that are not active and differential, with the reason.
pub async fn states(app: &Client) -> String {
    let odd = "select pgt_name || ': ' || status || ' ' || refresh_mode || ' ' || coalesce(refresh_reason, '') || ' '
          || coalesce(last_error_sqlstate || ' ' || last_error_message, '')
        from pgtrickle.pgt_stream_tables where status <> 'ACTIVE' or refresh_mode <> 'DIFFERENTIAL' order by 1";
    let rows = app.query(odd, &[]).await.expect("the catalog can be read");
    rows.iter().map(|r| r.get::<_, String>(0)).collect::<Vec<_>>().join("\n")
}
