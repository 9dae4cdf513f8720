//! The oracle: PostgreSQL itself says what a stream table must contain.
//!
//! Invariant: both sides of a comparison are read by one statement, so in one snapshot.

use tokio_postgres::{Client, Error};

/// Rows that only the query has (`missing: (...)`) and rows that only the table has (`surplus: (...)`), as multisets with
/// SQL's own equality. `columns` is a select list that is valid for both.
pub async fn difference(
    client: &Client,
    query: &str,
    table: &str,
    columns: &str,
) -> Result<Vec<String>, Error> {
    compare(client, query, table, columns, "side.*").await
}

/// As [`difference`], but rows are equal only when their text is: 1.0 differs from 1.00, and types without an equality
/// operator (json, point) can be compared.
pub async fn difference_of_text(
    client: &Client,
    query: &str,
    table: &str,
    columns: &str,
) -> Result<Vec<String>, Error> {
    compare(client, query, table, columns, "side::text").await
}

async fn compare(
    client: &Client,
    query: &str,
    table: &str,
    columns: &str,
    compared: &str,
) -> Result<Vec<String>, Error> {
    let query = query.trim().trim_end_matches(';');
    // Line ends keep a comment at the end of the query from swallowing the bracket.
    let statement = format!(
        "with expected as materialized (select {columns} from (\n{query}\n) as query),
              actual as materialized (select {columns} from {table} as stored)
         select 'missing: ' || row::text from
             (select {compared} from expected as side except all select {compared} from actual as side) as row
         union all
         select 'surplus: ' || row::text from
             (select {compared} from actual as side except all select {compared} from expected as side) as row
         order by 1"
    );
    let rows = client.query(&statement, &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Fails with the first rows that differ.
pub async fn assert_equal(client: &Client, query: &str, table: &str, columns: &str) {
    let rows = difference(client, query, table, columns).await.expect("both sides can be read");
    if !rows.is_empty() {
        let shown = rows.iter().take(20).cloned().collect::<Vec<_>>().join("\n  ");
        panic!("{table} differs from its query in {} rows:\n  {shown}\nquery: {query}", rows.len());
    }
}
