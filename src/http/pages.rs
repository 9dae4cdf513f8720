//! The pages: what was observed, as HTML that needs no script.

use askama::Template;
use axum::extract::{Form, OriginalUri, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Json, Redirect, Response};
use serde::{Deserialize, Serialize};

use super::access::own_path;
use super::units::Moment;
use super::view::{self, Graph, Order, Overview, RecoveryLog, TablePage, Tables, worst};
use super::{App, api, assets, manual};
use crate::observe::{Detail, Key, Severity, Wanted};

/// How far back charts reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Range {
    #[serde(rename = "15m")]
    Quarter,
    #[default]
    #[serde(rename = "1h")]
    Hour,
    #[serde(rename = "6h")]
    SixHours,
    #[serde(rename = "24h")]
    Day,
    #[serde(rename = "7d")]
    Week,
}

impl Range {
    const ALL: [Range; 5] = [Range::Quarter, Range::Hour, Range::SixHours, Range::Day, Range::Week];

    pub(super) fn seconds(self) -> i64 {
        match self {
            Range::Quarter => 900,
            Range::Hour => 3600,
            Range::SixHours => 6 * 3600,
            Range::Day => 86_400,
            Range::Week => 7 * 86_400,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Range::Quarter => "15m",
            Range::Hour => "1h",
            Range::SixHours => "6h",
            Range::Day => "24h",
            Range::Week => "7d",
        }
    }
}

/// What the address of a page says.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wish {
    format: String,
    pub q: String,
    pub sort: Order,
    range: Range,
    pub database: Option<String>,
    pub pipeline: Option<String>,
}

impl Wish {
    fn wants_json(&self) -> bool {
        self.format == "json"
    }
}

/// What every page has around it.
struct Frame {
    title: String,
    /// The part of the navigation that is lit.
    part: &'static str,
    theme: &'static str,
    severity: Severity,
    /// Findings that somebody should act on.
    attention: usize,
    version: &'static str,
    assets: &'static str,
    /// This page's own address, to come back to.
    here: String,
    now: Moment,
    /// Reads itself again where there is no script.
    is_live: bool,
}

impl Frame {
    fn new(app: &App, title: &str, part: &'static str, uri: &OriginalUri, headers: &HeaderMap) -> Frame {
        let seen = app.observed.seen();
        let findings = seen.iter().flat_map(|s| &s.findings);
        Frame {
            title: title.to_owned(),
            part,
            theme: theme_of(headers),
            severity: worst(&seen),
            attention: findings.filter(|f| f.severity >= Severity::Warning).count(),
            version: env!("CARGO_PKG_VERSION"),
            assets: &assets::VERSION,
            here: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            now: Moment::now(),
            // The manual does not change, and nothing comes where no page is.
            is_live: !matches!(part, "manual" | ""),
        }
    }

    fn state_words(&self) -> String {
        match (self.severity, self.attention) {
            (Severity::Ok | Severity::Notice, _) => "All is well".to_owned(),
            (Severity::Unknown, _) => "Not known yet".to_owned(),
            (_, 1) => "1 thing needs attention".to_owned(),
            (_, n) => format!("{n} things need attention"),
        }
    }
}

/// The theme that a visitor chose; without a choice that of the system.
fn theme_of(headers: &HeaderMap) -> &'static str {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|c| c.to_str().ok());
    let mut pairs = cookies.flat_map(|c| c.split(';')).map(str::trim);
    match pairs.find_map(|pair| pair.strip_prefix("pgtrickle_theme=")) {
        Some("dark") => "dark",
        Some("light") => "light",
        _ => "auto",
    }
}

/// A template as an answer.
fn html(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(text) => (status, Html(text)).into_response(),
        Err(e) => {
            tracing::error!(error = %e, "a page can't be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewTemplate {
    frame: Frame,
    view: Overview,
    ranges: Ranges,
}

#[derive(Template)]
#[template(path = "tables.html")]
struct TablesTemplate {
    frame: Frame,
    view: Tables,
    q: String,
    sort: Order,
    several: bool,
}

impl TablesTemplate {
    /// A column's heading: the link that orders by it, and whether it does.
    fn column(&self, order: Order, words: &str) -> Column {
        let sort = serde_json::to_value(order).ok().and_then(|v| v.as_str().map(str::to_owned));
        let query = if self.q.is_empty() { String::new() } else { format!("&q={}", view::encoded(&self.q)) };
        Column {
            url: format!("/tables?sort={}{query}", sort.unwrap_or_default()),
            words: words.to_owned(),
            lit: self.sort == order,
            ascending: matches!(order, Order::Name),
        }
    }
}

#[derive(Template)]
#[template(path = "column.html")]
struct Column {
    url: String,
    words: String,
    lit: bool,
    ascending: bool,
}

#[derive(Template)]
#[template(path = "table.html")]
struct TableTemplate {
    frame: Frame,
    view: TablePage,
    ranges: Ranges,
}

#[derive(Template)]
#[template(path = "graph.html")]
struct GraphTemplate {
    frame: Frame,
    graphs: Vec<Graph>,
}

#[derive(Template)]
#[template(path = "recovery.html")]
struct RecoveryTemplate {
    frame: Frame,
    view: RecoveryLog,
    several: bool,
}

#[derive(Template)]
#[template(path = "manual.html")]
struct ManualTemplate {
    frame: Frame,
    /// Rendered from files that are part of the program.
    body: String,
}

#[derive(Template)]
#[template(path = "message.html")]
struct MessageTemplate {
    frame: Frame,
    words: String,
    links: Vec<(String, String)>,
}

/// Links to the same page with another range.
struct Ranges {
    links: Vec<(&'static str, String, bool)>,
}

impl Ranges {
    fn new(chosen: Range, path: &str, place: &str) -> Ranges {
        let link = |range: Range| {
            let url = format!("{path}?range={}{place}", range.name());
            (range.name(), url, range == chosen)
        };
        Ranges { links: Range::ALL.into_iter().map(link).collect() }
    }
}

pub(super) async fn overview(
    State(app): State<App>,
    uri: OriginalUri,
    Query(wish): Query<Wish>,
    headers: HeaderMap,
) -> Response {
    let view = Overview::of(&app.observed, wish.range.seconds());
    if wish.wants_json() {
        return Json(view).into_response();
    }
    let frame = Frame::new(&app, "Overview", "overview", &uri, &headers);
    let ranges = Ranges::new(wish.range, "/", "");
    html(StatusCode::OK, &OverviewTemplate { frame, view, ranges })
}

pub(super) async fn tables(
    State(app): State<App>,
    uri: OriginalUri,
    Query(wish): Query<Wish>,
    headers: HeaderMap,
) -> Response {
    let view = Tables::of(&app.observed, &wish.q, wish.sort);
    if wish.wants_json() {
        return Json(view).into_response();
    }
    let frame = Frame::new(&app, "Stream tables", "tables", &uri, &headers);
    let several = app.observed.seen().len() > 1;
    html(StatusCode::OK, &TablesTemplate { frame, view, q: wish.q, sort: wish.sort, several })
}

/// A stream table in full, or the pipelines that have one of this name (none: it does not exist).
pub(super) async fn find_table(
    app: &App,
    name: &str,
    wish: &Wish,
) -> std::result::Result<Box<TablePage>, Vec<Key>> {
    let found = TablePage::find(&app.observed, name, wish.database.as_deref(), wish.pipeline.as_deref());
    let [key] = found.as_slice() else { return Err(found) };
    let detail = match app.observed.detail(key, Wanted::Table(name.to_owned())).await {
        Ok(Some(Detail::Table(detail))) => Ok(*detail),
        Ok(_) => Err("it was dropped a moment ago".to_owned()),
        Err(error) => Err(error),
    };
    let page = TablePage::of(&app.observed, key, name, wish.range.seconds(), detail, app.show_queries);
    page.map(Box::new).ok_or_else(Vec::new)
}

pub(super) async fn table(
    State(app): State<App>,
    uri: OriginalUri,
    Path(name): Path<String>,
    Query(wish): Query<Wish>,
    headers: HeaderMap,
) -> Response {
    match find_table(&app, &name, &wish).await {
        Ok(page) if wish.wants_json() => Json(*page).into_response(),
        Ok(view) => {
            let frame = Frame::new(&app, &view.row.name, "tables", &uri, &headers);
            let place = wish.database.as_ref().zip(wish.pipeline.as_ref());
            let place = place.map_or_else(String::new, |(d, p)| {
                format!("&database={}&pipeline={}", view::encoded(d), view::encoded(p))
            });
            let path = format!("/tables/{}", view::encoded(&name));
            let ranges = Ranges::new(wish.range, &path, &place);
            html(StatusCode::OK, &TableTemplate { frame, view: *view, ranges })
        }
        Err(several) => {
            let (status, words) = match several.is_empty() {
                true => (StatusCode::NOT_FOUND, format!("There is no stream table {name}.")),
                false => (StatusCode::MULTIPLE_CHOICES, format!("Several pipelines have {name}:")),
            };
            if wish.wants_json() {
                return api::refuse(status, &words);
            }
            let links = several
                .iter()
                .map(|key| (view::table_url(key, &name, true), format!("{} ({})", key.0, key.1)));
            let links = links.collect();
            let frame = Frame::new(&app, &name, "tables", &uri, &headers);
            html(status, &MessageTemplate { frame, words, links })
        }
    }
}

pub(super) async fn graph(
    State(app): State<App>,
    uri: OriginalUri,
    Query(wish): Query<Wish>,
    headers: HeaderMap,
) -> Response {
    let graphs = Graph::all(&app.observed);
    if wish.wants_json() {
        return Json(serde_json::json!({ "pipelines": graphs })).into_response();
    }
    let frame = Frame::new(&app, "Graph", "graph", &uri, &headers);
    html(StatusCode::OK, &GraphTemplate { frame, graphs })
}

/// The log of all pipelines.
pub(super) async fn recovery_log(app: &App) -> RecoveryLog {
    let mut log = RecoveryLog::default();
    let keys: Vec<Key> = app.observed.seen().iter().map(view::key).collect();
    let reads = keys.iter().map(|key| app.observed.detail(key, Wanted::Recoveries));
    for (key, read) in keys.iter().zip(futures_util::future::join_all(reads).await) {
        match read {
            Ok(Some(Detail::Recoveries(found))) => log.add(&key.0, &key.1, *found),
            Ok(_) => log.errors.push(format!("{} ({}): it has gone", key.0, key.1)),
            Err(error) => log.errors.push(format!("{} ({}): {error}", key.0, key.1)),
        }
    }
    log.sort();
    log
}

pub(super) async fn recovery(
    State(app): State<App>,
    uri: OriginalUri,
    Query(wish): Query<Wish>,
    headers: HeaderMap,
) -> Response {
    let view = recovery_log(&app).await;
    if wish.wants_json() {
        return Json(view).into_response();
    }
    let frame = Frame::new(&app, "Recovery", "recovery", &uri, &headers);
    let several = app.observed.seen().len() > 1;
    html(StatusCode::OK, &RecoveryTemplate { frame, view, several })
}

pub(super) async fn manual_contents(
    State(app): State<App>,
    uri: OriginalUri,
    headers: HeaderMap,
) -> Response {
    let frame = Frame::new(&app, "Manual", "manual", &uri, &headers);
    let body = format!("<h1>Manual</h1><ul>{}</ul>", manual::contents());
    html(StatusCode::OK, &ManualTemplate { frame, body })
}

pub(super) async fn manual_page(
    State(app): State<App>,
    uri: OriginalUri,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    match manual::page(&name) {
        Some(page) => {
            let frame = Frame::new(&app, &page.title, "manual", &uri, &headers);
            html(StatusCode::OK, &ManualTemplate { frame, body: page.html })
        }
        None => not_found(State(app), uri, headers).await,
    }
}

pub(super) async fn not_found(State(app): State<App>, uri: OriginalUri, headers: HeaderMap) -> Response {
    let frame = Frame::new(&app, "Not found", "", &uri, &headers);
    let words = "There is nothing under this address.".to_owned();
    let links = vec![("/".to_owned(), "Overview".to_owned())];
    html(StatusCode::NOT_FOUND, &MessageTemplate { frame, words, links })
}

#[derive(Deserialize)]
pub(super) struct Choice {
    theme: String,
    #[serde(default)]
    back: String,
}

/// Remembers the theme in the browser and goes back to where it was chosen.
pub(super) async fn theme(Form(choice): Form<Choice>) -> Response {
    let cookie = match choice.theme.as_str() {
        theme @ ("dark" | "light") => {
            format!("pgtrickle_theme={theme}; Path=/; Max-Age=31536000; SameSite=Strict; HttpOnly")
        }
        _ => "pgtrickle_theme=; Path=/; Max-Age=0; SameSite=Strict; HttpOnly".to_owned(),
    };
    ([(header::SET_COOKIE, cookie)], Redirect::to(own_path(&choice.back))).into_response()
}
