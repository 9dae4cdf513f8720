//! The difference between what a stream table holds and what it should hold (D6).

use std::collections::HashMap;

use futures_util::{StreamExt, pin_mut};
use tokio_postgres::Client;

use crate::capture::hydrate::same_table;
use crate::capture::source::quote;
use crate::error::Result;
use crate::postgres::sessions::error;
use crate::row::copy::CopyDecoder;
use crate::row::{Row, TypeClass};

/// Rows by image with their multiplicity.
pub type Bag = HashMap<Row, i64>;

/// Reads the rows that the stream table `relation` holds, without its row id.
///
/// # Errors
/// `Contention` when its name is another relation's by now.
pub async fn read_stored(
    client: &Client,
    relation: u32,
    schema: &str,
    table: &str,
    columns: &[(String, TypeClass)],
) -> Result<Bag> {
    client.batch_execute("begin isolation level read committed read only").await.map_err(error)?;
    let stored = read_locked(client, relation, &format!("{}.{}", quote(schema), quote(table)), columns).await;
    client.batch_execute("rollback").await.map_err(error)?;
    stored.map_err(|e| e.during(format!("reading {schema}.{table}")))
}

async fn read_locked(
    client: &Client,
    relation: u32,
    qualified: &str,
    columns: &[(String, TypeClass)],
) -> Result<Bag> {
    client
        .batch_execute(&format!("lock table only {qualified} in access share mode"))
        .await
        .map_err(error)?;
    same_table(client, qualified, relation).await?;
    let list: Vec<String> = columns.iter().map(|(name, _)| quote(name)).collect();
    let sql = format!("copy (select {} from only {qualified}) to stdout", list.join(", "));
    let stream = client.copy_out(&sql).await.map_err(error)?;
    pin_mut!(stream);
    let mut decoder = CopyDecoder::new(columns.iter().map(|(_, class)| *class).collect());
    let mut bag = Bag::new();
    while let Some(line) = stream.next().await {
        let row = decoder.decode(&line.map_err(error)?)?;
        *bag.entry(row).or_insert(0) += 1;
    }
    Ok(bag)
}

/// The delta that turns `stored` into `answer`. `answer` is consolidated; its rows have positive multiplicity.
pub fn difference(answer: Vec<(Row, i64)>, mut stored: Bag) -> Vec<(Row, i64)> {
    let mut delta = Vec::new();
    for (row, times) in answer {
        let held = stored.remove(&row).unwrap_or(0);
        if times != held {
            delta.push((row, times - held));
        }
    }
    delta.extend(stored.into_iter().map(|(row, times)| (row, -times)));
    delta
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Datum;

    fn row(i: i64) -> Row {
        Row::from_datums([Datum::Int(i)])
    }

    #[test]
    fn only_what_differs_is_written() {
        let stored: Bag = [(row(1), 1), (row(2), 2), (row(3), 1)].into();
        let mut delta = difference(vec![(row(1), 1), (row(2), 1), (row(4), 1)], stored);
        delta.sort();
        let mut want = vec![(row(2), -1), (row(3), -1), (row(4), 1)];
        want.sort();
        assert_eq!(delta, want);
    }
}
