//! What reads what, one drawing per pipeline.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{key, short, table, table_url};
use crate::http::layout::{self, Layout};
use crate::http::units::{Bytes, Seconds};
use crate::observe::{Observed, Sample, Seen, Severity};

/// Longest name that fits into a node.
const NAME: usize = 27;

/// A source or a stream table.
#[derive(Debug, Clone, Serialize)]
pub struct Node {
    pub name: String,
    /// `source` or `stream_table`.
    pub kind: &'static str,
    pub severity: Severity,
    /// How a source is captured, or how a stream table is refreshed.
    pub mode: String,
    pub freshness_seconds: Seconds,
    /// Lag of a stream table, or what a source's buffer takes.
    pub bytes: Bytes,
    #[serde(skip)]
    pub short: String,
    #[serde(skip)]
    pub note: String,
    #[serde(skip)]
    pub url: Option<String>,
    #[serde(skip)]
    pub x: f64,
    #[serde(skip)]
    pub y: f64,
}

/// `to` reads `from`.
#[derive(Debug, Clone, Serialize)]
pub struct Edge {
    pub from: String,
    pub to: String,
    #[serde(skip)]
    pub path: String,
    #[serde(skip)]
    pub class: &'static str,
}

/// The graph of one pipeline.
#[derive(Debug, Clone, Serialize)]
pub struct Graph {
    pub database: String,
    pub pipeline: String,
    pub severity: Severity,
    pub delivery: Option<String>,
    pub applied_lag_bytes: Bytes,
    pub freshness_seconds: Seconds,
    pub nodes: Vec<Node>,
    pub edges: Vec<Edge>,
    #[serde(skip)]
    pub layout: Layout,
}

impl Graph {
    /// One for each pipeline.
    pub fn all(observed: &Observed) -> Vec<Graph> {
        let all = observed.seen();
        all.iter().filter_map(|seen| graph(seen, seen.sample.as_deref()?, all.len() > 1)).collect()
    }

    /// What reads a node, and what it reads.
    pub fn neighbours(&self, name: &str) -> (Vec<&str>, Vec<&str>) {
        let reads = self.edges.iter().filter(|e| e.to == name).map(|e| e.from.as_str()).collect();
        let read_by = self.edges.iter().filter(|e| e.from == name).map(|e| e.to.as_str()).collect();
        (reads, read_by)
    }

    pub fn reads(&self, name: &str) -> String {
        self.neighbours(name).0.join(", ")
    }

    pub fn read_by(&self, name: &str) -> String {
        self.neighbours(name).1.join(", ")
    }
}

fn graph(seen: &Seen, sample: &Sample, several: bool) -> Option<Graph> {
    let key = key(seen);
    let mut nodes: Vec<Node> = Vec::new();
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    for table in &sample.stream_tables {
        let incremental = table.refresh_mode == "DIFFERENTIAL";
        let mode = if incremental { "incremental" } else { "full" };
        let fresh = Seconds(table.freshness_seconds);
        let note = match table.status.as_str() {
            "ACTIVE" => format!("{mode} · {fresh} old"),
            other => format!("{mode} · {}", other.to_lowercase()),
        };
        numbers.insert(table.name.clone(), nodes.len());
        nodes.push(Node {
            short: short(&table.name, NAME),
            name: table.name.clone(),
            kind: "stream_table",
            severity: table::severity(seen, table),
            mode: mode.to_owned(),
            freshness_seconds: fresh,
            bytes: Bytes(table.lag_bytes.filter(|_| incremental)),
            note,
            url: Some(table_url(&key, &table.name, several)),
            x: 0.0,
            y: 0.0,
        });
    }
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    for table in &sample.stream_tables {
        for read in &table.reads {
            // A view is only a way to a table that is listed too.
            if read.kind == "VIEW" {
                continue;
            }
            let number = match numbers.get(&read.name) {
                Some(number) => *number,
                None => {
                    nodes.push(source(seen, sample, &read.name, &read.kind));
                    numbers.insert(read.name.clone(), nodes.len() - 1);
                    nodes.len() - 1
                }
            };
            let to = numbers.get(&table.name).copied().unwrap_or(number);
            if number != to {
                pairs.push((number, to));
            }
        }
    }
    let mut layout = layout::place(nodes.len(), &pairs);
    for (node, (x, y)) in nodes.iter_mut().zip(&layout.nodes) {
        (node.x, node.y) = (*x, *y);
    }
    let paths = std::mem::take(&mut layout.edges);
    let edges = pairs.iter().zip(paths).map(|(&(from, to), path)| Edge {
        from: nodes[from].name.clone(),
        to: nodes[to].name.clone(),
        path,
        class: if nodes[from].mode == "triggers" { "by-triggers" } else { "by-wal" },
    });
    Some(Graph {
        severity: seen.severity(),
        delivery: sample.delivery.clone(),
        applied_lag_bytes: Bytes(sample.applied_lag_bytes),
        freshness_seconds: Seconds(sample.freshness_seconds),
        edges: edges.collect(),
        nodes,
        layout,
        database: key.0,
        pipeline: key.1,
    })
}

fn source(seen: &Seen, sample: &Sample, name: &str, kind: &str) -> Node {
    let known = sample.sources.iter().find(|source| source.name == name);
    let mode = match (known.map(|source| source.capture.as_str()), kind) {
        (Some("wal"), _) => "WAL",
        (Some("trigger"), _) => "triggers",
        (Some("transitioning"), _) => "returning to the WAL",
        (_, "PARTITIONED_TABLE") => "partitioned",
        (_, "MATVIEW") => "materialized view",
        (_, "FOREIGN_TABLE") => "foreign table",
        _ => "not captured",
    };
    let buffer = known.and_then(|source| source.buffer_bytes);
    let note = match buffer {
        Some(bytes) => format!("{mode} · buffer {}", Bytes(Some(bytes))),
        None => mode.to_owned(),
    };
    let severity = match known {
        _ if seen.error.is_some() => Severity::Unknown,
        Some(source) if source.gap_since.is_some() => Severity::Warning,
        Some(source) if source.capture != "wal" => Severity::Notice,
        _ => Severity::Ok,
    };
    Node {
        short: short(name, NAME),
        name: name.to_owned(),
        kind: "source",
        severity,
        mode: mode.to_owned(),
        freshness_seconds: Seconds(None),
        bytes: Bytes(buffer),
        note,
        url: None,
        x: 0.0,
        y: 0.0,
    }
}
