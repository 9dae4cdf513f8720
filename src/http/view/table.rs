//! Stream tables: the list and one in full.

use serde::{Deserialize, Serialize};

use super::{key, table_url};
use crate::http::chart::{Chart, Drawn, Unit, spark};
use crate::http::units::{Bytes, Count, Moment, Rate, Seconds};
use crate::observe::{Key, Measure, Observed, Seen, Severity, StreamTable, Subject, TableDetail, redacted};

/// A stream table in the list.
#[derive(Debug, Clone, Serialize)]
pub struct TableRow {
    pub name: String,
    pub database: String,
    pub pipeline: String,
    pub owner: String,
    pub severity: Severity,
    pub status: String,
    pub mode: String,
    pub requested_mode: String,
    /// Why it is not incremental.
    pub reason: Option<String>,
    pub schedule: String,
    pub freshness_seconds: Seconds,
    /// WAL that it does not contain yet; a recomputed one has none.
    pub lag_bytes: Bytes,
    pub rows_per_second: Rate,
    /// The server's estimate.
    pub rows: Count,
    pub state_bytes: Bytes,
    pub data_timestamp: Moment,
    pub last_refresh_at: Moment,
    pub consecutive_errors: i64,
    pub sqlstate: Option<String>,
    /// Without values of rows.
    pub error: Option<String>,
    pub error_at: Moment,
    #[serde(skip)]
    pub url: String,
    #[serde(skip)]
    pub spark: String,
}

impl TableRow {
    /// How the mode is called on a page: what was chosen and how often.
    pub fn mode_words(&self) -> String {
        match (self.mode.as_str(), self.schedule.as_str()) {
            ("DIFFERENTIAL", "calculated") => "incremental".to_owned(),
            ("DIFFERENTIAL", schedule) => format!("incremental, {schedule}"),
            ("FULL", "calculated") => "full".to_owned(),
            ("FULL", schedule) => format!("full, {schedule}"),
            (other, _) => other.to_lowercase(),
        }
    }

    pub fn is_full(&self) -> bool {
        self.mode == "FULL"
    }
}

/// By what the list is ordered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Worst first.
    #[default]
    State,
    Name,
    Mode,
    Freshness,
    Rate,
    Rows,
    Size,
    Errors,
}

/// The list of stream tables.
#[derive(Debug, Clone, Serialize)]
pub struct Tables {
    pub generated_at: Moment,
    /// How many there are before a filter.
    pub total: usize,
    /// Pipelines of which nothing was seen yet.
    pub unseen: Vec<String>,
    pub stream_tables: Vec<TableRow>,
}

impl Tables {
    /// All whose name contains `filter`, in an order.
    pub fn of(observed: &Observed, filter: &str, order: Order) -> Tables {
        let all = observed.seen();
        let (mut rows, mut unseen) = (Vec::new(), Vec::new());
        if all.is_empty() {
            unseen.push("the database".to_owned());
        }
        for seen in &all {
            let Some(sample) = &seen.sample else {
                unseen.push(format!("{} ({})", seen.database, seen.pipeline));
                continue;
            };
            for table in &sample.stream_tables {
                rows.push(row(observed, seen, table, all.len() > 1));
            }
        }
        let total = rows.len();
        let filter = filter.to_lowercase();
        rows.retain(|row| row.name.to_lowercase().contains(&filter));
        sort(&mut rows, order);
        Tables { generated_at: Moment::now(), total, unseen, stream_tables: rows }
    }
}

fn sort(rows: &mut [TableRow], order: Order) {
    // Most first; what is unknown comes last.
    let most = |a: f64, b: f64| b.total_cmp(&a);
    let number = |v: Option<f64>| v.unwrap_or(f64::NEG_INFINITY);
    rows.sort_by(|a, b| {
        let by = match order {
            Order::State => b.severity.cmp(&a.severity),
            Order::Name => std::cmp::Ordering::Equal,
            Order::Mode => b.mode.cmp(&a.mode),
            Order::Freshness => most(number(a.freshness_seconds.0), number(b.freshness_seconds.0)),
            Order::Rate => most(number(a.rows_per_second.0), number(b.rows_per_second.0)),
            Order::Rows => b.rows.0.cmp(&a.rows.0),
            Order::Size => b.state_bytes.0.cmp(&a.state_bytes.0),
            Order::Errors => b.consecutive_errors.cmp(&a.consecutive_errors),
        };
        by.then_with(|| a.name.cmp(&b.name)).then_with(|| a.database.cmp(&b.database))
    });
}

/// How a stream table stands. What was seen before the database went away says nothing about now.
pub fn severity(seen: &Seen, table: &StreamTable) -> Severity {
    match table.status.as_str() {
        _ if seen.error.is_some() => Severity::Unknown,
        "ERROR" => Severity::Critical,
        // On purpose.
        "OFFLINE" if seen.sample.as_ref().is_some_and(|s| s.paused || s.detached) => Severity::Warning,
        "OFFLINE" => Severity::Critical,
        "SUSPENDED" => Severity::Warning,
        _ if table.consecutive_errors > 0 || table.stale => Severity::Warning,
        "INITIALIZING" => Severity::Notice,
        _ => Severity::Ok,
    }
}

fn row(observed: &Observed, seen: &Seen, table: &StreamTable, several: bool) -> TableRow {
    let key = key(seen);
    let subject = Subject::Table(table.name.clone());
    let incremental = table.refresh_mode == "DIFFERENTIAL" && table.status == "ACTIVE";
    let points = observed.points(&key, &subject, Measure::RowsPerSecond, 3600);
    TableRow {
        url: table_url(&key, &table.name, several),
        name: table.name.clone(),
        owner: table.owner.clone(),
        severity: severity(seen, table),
        status: table.status.clone(),
        mode: table.refresh_mode.clone(),
        requested_mode: table.requested_mode.clone(),
        reason: table.reason.clone(),
        schedule: table.schedule.clone(),
        freshness_seconds: Seconds(table.freshness_seconds),
        lag_bytes: Bytes(table.lag_bytes.filter(|_| incremental)),
        rows_per_second: Rate(observed.newest(&key, &subject, Measure::RowsPerSecond)),
        rows: Count(table.rows),
        state_bytes: Bytes(table.state_bytes),
        data_timestamp: Moment(table.data_timestamp),
        last_refresh_at: Moment(table.last_refresh_at),
        consecutive_errors: table.consecutive_errors,
        sqlstate: table.sqlstate.clone(),
        error: redacted(table.sqlstate.as_deref(), table.error.as_deref()),
        error_at: Moment(table.error_at),
        spark: spark(&points, 1.0),
        database: key.0,
        pipeline: key.1,
    }
}

/// A stream table in full.
#[derive(Debug, Clone, Serialize)]
pub struct TablePage {
    #[serde(flatten)]
    pub row: TableRow,
    /// Absent when it could not be read; then `detail_error` says why.
    pub detail: Option<TableDetail>,
    pub detail_error: Option<String>,
    /// Queries and plans are switched off.
    pub queries_hidden: bool,
    #[serde(skip)]
    pub freshness_chart: Drawn,
    #[serde(skip)]
    pub rows_chart: Drawn,
    #[serde(skip)]
    pub read_by: Vec<(String, Option<String>)>,
    #[serde(skip)]
    pub reads: Vec<(String, Option<String>)>,
}

impl TablePage {
    /// Where a name was found: those that could be meant.
    pub fn find(observed: &Observed, name: &str, database: Option<&str>, pipeline: Option<&str>) -> Vec<Key> {
        let of = |seen: &Seen| {
            let meant =
                database.is_none_or(|d| d == seen.database) && pipeline.is_none_or(|p| p == seen.pipeline);
            let there = seen.sample.as_ref().is_some_and(|s| s.stream_tables.iter().any(|t| t.name == name));
            (meant && there).then(|| key(seen))
        };
        observed.seen().iter().filter_map(of).collect()
    }

    /// The page of a stream table that was found; `None` if it has gone meanwhile.
    pub fn of(
        observed: &Observed,
        key: &Key,
        name: &str,
        range: i64,
        detail: Result<TableDetail, String>,
        show_queries: bool,
    ) -> Option<TablePage> {
        let all = observed.seen();
        let seen = all.iter().find(|seen| seen.database == key.0 && seen.pipeline == key.1)?;
        let sample = seen.sample.as_ref()?;
        let table = sample.stream_tables.iter().find(|table| table.name == name)?;
        let several = all.len() > 1;
        let row = row(observed, seen, table, several);
        let subject = Subject::Table(name.to_owned());
        let chart = |title, measure, unit| {
            let points = observed.points(key, &subject, measure, range);
            Chart { title, unit, points, thresholds: vec![], range, severity: row.severity }.draw()
        };
        let (mut detail, detail_error) = match detail {
            Ok(detail) => (Some(detail), None),
            Err(error) => (None, Some(error)),
        };
        if let Some(detail) = detail.as_mut().filter(|_| !show_queries) {
            (detail.query, detail.plan, detail.plan_error) = (None, None, None);
            // Expressions with their constants follow the kind of an operator.
            for state in &mut detail.state {
                state.operator = state.operator.split(' ').next().unwrap_or_default().to_owned();
            }
        }
        // Whichever pipeline of the database it is in; it may be one that another process serves.
        let has = |seen: &&Seen, name: &String| {
            let tables = seen.sample.as_ref().map_or(&[][..], |s| &s.stream_tables);
            seen.database == key.0 && tables.iter().any(|t| t.name == *name)
        };
        let url = |name: &String| {
            let place = self::key(all.iter().find(|seen| has(seen, name))?);
            Some(table_url(&place, name, several))
        };
        let reads = detail.iter().flat_map(|d| &d.reads).map(|r| (r.name.clone(), url(&r.name))).collect();
        let read_by = detail.iter().flat_map(|d| &d.read_by);
        let read_by = read_by.map(|name| (name.clone(), url(name))).collect();
        Some(TablePage {
            freshness_chart: chart("Freshness", Measure::FreshnessSeconds, Unit::Seconds),
            rows_chart: chart("Rows written", Measure::RowsPerSecond, Unit::RowsPerSecond),
            row,
            detail,
            detail_error,
            queries_hidden: !show_queries,
            read_by,
            reads,
        })
    }
}
