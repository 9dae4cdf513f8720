//! Answers of queries, in a form in which equal ones are equal.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tokio_postgres::{Client, Error, SimpleQueryMessage, SimpleQueryRow};

use super::query::Query;
use super::scalar::Image;
use super::stage::Stream;

/// Of an answer with more rows only a hash is kept: there is one for each commit and query.
const KEPT: usize = 4000;

/// The rows of one query, sorted.
pub type Answer = Arc<Vec<String>>;

/// Asks several statements in one message, so that all of them run in the snapshot of the transaction around.
async fn ask(client: &Client, statements: &[String]) -> Result<Vec<Vec<SimpleQueryRow>>, Error> {
    let mut results = Vec::new();
    let mut rows = Vec::new();
    for message in client.simple_query(&statements.join(";\n")).await? {
        match message {
            SimpleQueryMessage::Row(row) => rows.push(row),
            SimpleQueryMessage::CommandComplete(_) => results.push(std::mem::take(&mut rows)),
            _ => {}
        }
    }
    Ok(results)
}

/// The ids in `ids`, and what each of the given relations holds.
pub async fn read(
    client: &Client,
    ids: &str,
    of: &[(&Stream, String)],
) -> Result<(Vec<i64>, Vec<Answer>), Error> {
    let mut statements = vec![format!("select id from {ids}")];
    for (stream, relation) in of {
        let list: Vec<String> = (0..stream.query.columns.len()).map(|i| format!("o{i}")).collect();
        statements.push(format!("select {} from {relation}", list.join(", ")));
    }
    let mut results = ask(client, &statements).await?.into_iter();
    let ids = results.next().unwrap_or_default();
    let ids = ids.iter().map(|r| r.get(0).unwrap_or_default().parse().expect("an id")).collect();
    let answers = results.zip(of).map(|(rows, (stream, _))| answer(&stream.query, &rows)).collect();
    Ok((ids, answers))
}

fn answer(query: &Query, rows: &[SimpleQueryRow]) -> Answer {
    let mut lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let columns = query.columns.iter().enumerate();
            columns.map(|(i, (_, image))| shown(row.get(i), *image)).collect::<Vec<_>>().join(" | ")
        })
        .collect();
    lines.sort();
    if lines.len() > KEPT {
        let mut hasher = DefaultHasher::new();
        lines.hash(&mut hasher);
        lines = vec![format!("<{} rows {:016x}>", lines.len(), hasher.finish())];
    }
    Arc::new(lines)
}

fn shown(value: Option<&str>, image: Image) -> String {
    let Some(text) = value else { return "NULL".to_owned() };
    match image {
        Image::Exact if text.len() > 200 => {
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            format!("<{} bytes {:016x}>", text.len(), hasher.finish())
        }
        Image::Exact => format!("'{text}'"),
        Image::Value if text.contains('.') => text.trim_end_matches('0').trim_end_matches('.').to_lowercase(),
        Image::Value => text.to_lowercase(),
        Image::Approximate => match text.parse::<f64>() {
            // What is left of a sum that is zero in another order is zero.
            Ok(number) if number.abs() < 1e-9 => "0".to_owned(),
            Ok(number) => format!("{number:.9e}"),
            Err(_) => text.to_owned(),
        },
    }
}

/// Rows that only one side has, for a message; empty when both are equal.
pub fn differences(expected: &[String], actual: &[String]) -> Vec<String> {
    let (mut e, mut a) = (expected.iter().peekable(), actual.iter().peekable());
    let mut found = Vec::new();
    loop {
        match (e.peek(), a.peek()) {
            (None, None) => return found,
            (Some(x), Some(y)) if x == y => {
                e.next();
                a.next();
            }
            (Some(x), y) if y.is_none_or(|y| x < y) => {
                found.push(format!("missing: {x}"));
                e.next();
            }
            (_, y) => {
                found.extend(y.map(|y| format!("surplus: {y}")));
                a.next();
            }
        }
    }
}
