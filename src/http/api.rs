//! `/api/v1`: the same as the pages as JSON, and events for whoever wants to follow.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;

use super::App;
use super::pages::{Range, Wish, find_table, recovery_log};
use super::view::{Graph, Overview, Tables, worst};
use crate::observe::{Measure, Severity, Subject};

pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/pipelines", get(pipelines))
        .route("/overview", get(overview))
        .route("/slots", get(slots))
        .route("/ladder", get(ladder))
        .route("/findings", get(findings))
        .route("/stream_tables", get(stream_tables))
        .route("/stream_tables/{*name}", get(stream_table))
        .route("/graph", get(graph))
        .route("/recoveries", get(recoveries))
        .route("/history", get(history))
        .route("/events", get(events))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "there is nothing under this address"))
}

/// An answer that says what is wrong.
pub(super) fn refuse(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

/// The last look at every pipeline, as it was read.
async fn pipelines(State(app): State<App>) -> Response {
    let looks = app.observed.looks().into_iter().map(|((database, pipeline), look)| {
        let age = look.taken.elapsed().as_secs_f64();
        match look.outcome {
            Ok(sample) => {
                json!({ "database": database, "pipeline": pipeline, "age_seconds": age, "sample": *sample })
            }
            Err(error) => {
                json!({ "database": database, "pipeline": pipeline, "age_seconds": age, "error": error })
            }
        }
    });
    Json(json!({ "pipelines": looks.collect::<Vec<_>>() })).into_response()
}

async fn overview(State(app): State<App>) -> Response {
    Json(Overview::of(&app.observed, Range::default().seconds())).into_response()
}

async fn slots(State(app): State<App>) -> Response {
    let overview = Overview::of(&app.observed, Range::default().seconds());
    Json(json!({ "generated_at": overview.generated_at, "slots": overview.slots })).into_response()
}

async fn ladder(State(app): State<App>) -> Response {
    let overview = Overview::of(&app.observed, Range::default().seconds());
    let ladders = overview.pipelines.iter().map(
        |p| json!({ "database": p.database, "pipeline": p.pipeline, "sampled_at": p.sampled_at, "ladder": p.ladder }),
    );
    Json(json!({ "pipelines": ladders.collect::<Vec<_>>() })).into_response()
}

async fn findings(State(app): State<App>) -> Response {
    let seen = app.observed.seen();
    let all = seen.iter().map(|seen| {
        json!({ "database": seen.database, "pipeline": seen.pipeline, "severity": seen.severity(),
                "findings": seen.findings })
    });
    Json(json!({ "severity": worst(&seen), "pipelines": all.collect::<Vec<_>>() })).into_response()
}

async fn stream_tables(State(app): State<App>, Query(wish): Query<Wish>) -> Response {
    Json(Tables::of(&app.observed, &wish.q, wish.sort)).into_response()
}

async fn stream_table(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(wish): Query<Wish>,
) -> Response {
    match find_table(&app, &name, &wish).await {
        Ok(page) => Json(page).into_response(),
        Err(several) if several.is_empty() => {
            refuse(StatusCode::NOT_FOUND, &format!("there is no stream table {name}"))
        }
        Err(several) => {
            let places = several
                .iter()
                .map(|(database, pipeline)| json!({ "database": database, "pipeline": pipeline }));
            let answer = json!({ "error": "several pipelines have it: name database and pipeline",
                                 "pipelines": places.collect::<Vec<_>>() });
            (StatusCode::MULTIPLE_CHOICES, Json(answer)).into_response()
        }
    }
}

async fn graph(State(app): State<App>) -> Response {
    Json(json!({ "pipelines": Graph::all(&app.observed) })).into_response()
}

async fn recoveries(State(app): State<App>) -> Response {
    Json(recovery_log(&app).await).into_response()
}

/// What is asked of the history.
#[derive(Deserialize)]
struct Question {
    measure: String,
    #[serde(default)]
    range: Range,
    database: Option<String>,
    pipeline: Option<String>,
    slot: Option<String>,
    stream_table: Option<String>,
}

/// One measure over time. Database and pipeline may be left out where there is one.
async fn history(State(app): State<App>, Query(ask): Query<Question>) -> Response {
    let Some(measure) = Measure::ALL.into_iter().find(|m| m.name() == ask.measure) else {
        let names: Vec<&str> = Measure::ALL.iter().map(|m| m.name()).collect();
        let text = format!("{:?} is no measure; there are {}", ask.measure, names.join(", "));
        return refuse(StatusCode::BAD_REQUEST, &text);
    };
    let meant = |named: &Option<String>, is: &str| named.as_ref().is_none_or(|named| named == is);
    let seen = app.observed.seen();
    let mut found =
        seen.iter().filter(|s| meant(&ask.database, &s.database) && meant(&ask.pipeline, &s.pipeline));
    let (Some(one), None) = (found.next(), found.next()) else {
        let text = "name one pipeline with database and pipeline";
        return refuse(StatusCode::NOT_FOUND, text);
    };
    let subject = match (ask.slot, ask.stream_table) {
        (Some(slot), _) => Subject::Slot(slot),
        (None, Some(table)) => Subject::Table(table),
        (None, None) => Subject::Pipeline,
    };
    let key = (one.database.clone(), one.pipeline.clone());
    let points = app.observed.points(&key, &subject, measure, ask.range.seconds());
    Json(json!({ "database": key.0, "pipeline": key.1, "measure": measure.name(), "range_seconds": ask.range.seconds(),
                 "points": points }))
    .into_response()
}

/// An event for each look: that there is something new, and how bad things are.
async fn events(State(app): State<App>) -> Response {
    let Ok(permit) = app.followers.clone().try_acquire_owned() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many follow the events already");
    };
    let mut changes = app.observed.subscribe();
    changes.mark_changed();
    let follow = stream::unfold((app, changes, permit), async |(app, mut changes, permit)| {
        tokio::select! {
            () = app.shutdown.cancelled() => return None,
            changed = changes.changed() => changed.ok()?,
        }
        let number = *changes.borrow_and_update();
        let seen = app.observed.seen();
        let findings = seen.iter().flat_map(|s| &s.findings);
        let attention = findings.filter(|f| f.severity >= Severity::Warning).count();
        let data = json!({ "severity": worst(&seen), "attention": attention });
        let event = Event::default().event("look").id(number.to_string()).data(data.to_string());
        Some((Ok::<_, Infallible>(event), (app, changes, permit)))
    });
    Sse::new(follow).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}
