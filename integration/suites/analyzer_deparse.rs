//! Expressions are given back as SQL that the server analyses to the same tree, on every major, and that SQL computes
//! for the text of a row what the user's expression computes for the row.

use pgtrickle::ErrorKind;
use pgtrickle::analyzer::{deparse, verify};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

use super::analyzer_support::{Prepared, database, prepare};
use super::expressions::{CORPUS, REFUSED, SCHEMA};
use crate::harness::for_each_major;

/// Evaluates over the text of all rows and compares with the view itself.
async fn same_values(client: &Client, view: &str, prepared: &Prepared) -> std::result::Result<(), String> {
    let columns = client
        .query("select attname::text, attnum from pg_attribute where attrelid = 'all_types'::regclass", &[])
        .await
        .expect("columns");
    let mut texts: Vec<Vec<Option<String>>> = Vec::new();
    for attnum in &prepared.attributes {
        let name = columns
            .iter()
            .find(|c| c.get::<_, i16>(1) == *attnum)
            .map(|c| c.get::<_, &str>(0))
            .expect("column");
        let sql = format!(
            "select pg_catalog.array_agg({}::text order by id) from all_types",
            deparse::quote_identifier(name)
        );
        texts.push(client.query_one(&sql, &[]).await.expect("texts").get(0));
    }
    let count: i64 = client.query_one("select count(*) from all_types", &[]).await.expect("count").get(0);
    if texts.is_empty() {
        texts.push(vec![None; count as usize]);
    }
    let parameters: Vec<_> = texts.iter().map(|t| t as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
    let sql =
        format!("select array_agg(r::text order by o) from ({}) e", verify::evaluation_sql(&prepared.batch));
    let evaluated = client.query_one(&sql, &parameters).await;
    let sql = format!("select array_agg(row(v.e)::text order by v.id) from {view} v");
    let wanted = client.query_one(&sql, &[]).await;
    let values = |r: &Row| r.get::<_, Vec<String>>(0);
    match (evaluated, wanted) {
        (Ok(evaluated), Ok(wanted)) if values(&evaluated) == values(&wanted) => Ok(()),
        (Ok(evaluated), Ok(wanted)) => {
            Err(format!("{:?} instead of {:?}", values(&evaluated), values(&wanted)))
        }
        (Err(evaluated), Err(wanted)) if evaluated.code() == wanted.code() => Ok(()),
        (evaluated, wanted) => Err(format!("{evaluated:?} instead of {wanted:?}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_expression_is_proven_equal_or_refused_by_name() {
    for_each_major(|server| async {
        let (_database, mut client) = database(server, SCHEMA).await;
        let mut wrong = Vec::new();
        for (i, (since, sql)) in CORPUS.iter().chain(REFUSED).enumerate() {
            if server.major < *since {
                continue;
            }
            let view = format!("v{i}");
            let create = format!("create view {view} as select {sql} as e, id from all_types");
            match client.batch_execute(&create).await {
                Ok(()) => {}
                // No XML in this build: refused by the server already.
                Err(e) if i >= CORPUS.len() && e.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => continue,
                Err(e) => {
                    wrong.push(format!("{sql}: {:?}", e.as_db_error()));
                    continue;
                }
            }
            match (prepare(&mut client, &view).await, i < CORPUS.len()) {
                (Ok(prepared), true) => {
                    if let Err(e) = same_values(&client, &view, &prepared).await {
                        wrong.push(format!("{sql}: values: {e}"));
                    }
                }
                (Err(e), false) if e.kind() == ErrorKind::Unsupported => {}
                (Ok(p), false) => wrong.push(format!("{sql} passed as {}", p.batch.exprs[0].sql)),
                (Err(e), _) => wrong.push(format!("{sql}: {e:?}")),
            }
        }
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    })
    .await;
}
