//! Expressions are given back as SQL that the server analyses to the same tree, on every major, and that SQL computes
//! for the text of a row what the user's expression computes for the row.

use std::collections::HashMap;

use pgtrickle::ErrorKind;
use pgtrickle::analyzer::deparse::{self, Scope, collate_clause, type_name};
use pgtrickle::analyzer::node::Node;
use pgtrickle::analyzer::{literals, load, verify, volatility};
use pgtrickle::error::Result;
use pgtrickle::plan::{RemoteBatch, RemoteExpr, RemoteInput};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, Row};

use super::expressions::{CORPUS, REFUSED, SCHEMA};

pub(super) struct Server {
    pub(super) major: u32,
    pub(super) client: Client,
}

/// A fresh database with `schema` on every server that is there.
pub(super) async fn servers(schema: &str) -> Vec<Server> {
    let majors = std::env::var("PGTRICKLE_TEST_MAJORS").unwrap_or_else(|_| "14,15,16,17,18".to_owned());
    let mut servers = Vec::new();
    for major in majors.split(',').filter_map(|m| m.parse::<u32>().ok()) {
        let connect = async |database: &str| {
            let config = format!("host=127.0.0.1 port={} user=postgres dbname={database}", 55200 + major);
            let (client, connection) = tokio_postgres::connect(&config, NoTls).await.expect("connects");
            tokio::spawn(connection);
            client
        };
        let name = format!("t{}_{:?}", std::process::id(), std::thread::current().id());
        let name = name.replace(['(', ')'], "_");
        let admin = connect("postgres").await;
        admin.batch_execute(&format!("create database \"{name}\"")).await.expect("creates");
        let client = connect(&name).await;
        client.batch_execute(schema).await.expect("schema");
        servers.push(Server { major, client });
    }
    servers
}

/// The one-column view over `all_types` as the pipeline would evaluate it: its batch and the attnums of its inputs.
pub(super) struct Prepared {
    pub(super) batch: RemoteBatch,
    pub(super) attributes: Vec<i16>,
    pub(super) volatility: char,
}

pub(super) async fn load_view(client: &mut Client, view: &str) -> Result<load::Loaded> {
    let sql = format!("select '{view}'::regclass::oid, pg_get_viewdef('{view}'::regclass)");
    let row = client.query_one(&sql, &[]).await.expect("view");
    let tree = load::view_tree(client, row.get(0)).await?;
    let mut loaded = load::load(client, &tree, &HashMap::new()).await?;
    literals::find(client, &mut loaded, row.get(1)).await?;
    Ok(loaded)
}

pub(super) async fn prepare(client: &mut Client, view: &str) -> Result<Prepared> {
    let loaded = load_view(client, view).await?;
    let facts = &loaded.facts;
    let expr = loaded.query.nodes("targetList")?[0].node("expr")?;
    let mut attributes: Vec<i16> = Vec::new();
    let mut batch_inputs = Vec::new();
    let mut vars: Vec<&Node> = Vec::new();
    expr.walk(&mut |n| vars.extend((n.tag == "VAR").then_some(n)));
    for var in vars {
        let attnum = var.int("varattno")? as i16;
        if attnum > 0 && !attributes.contains(&attnum) {
            let ty = var.oid("vartype")?;
            attributes.push(attnum);
            batch_inputs.push(RemoteInput {
                column: batch_inputs.len(),
                type_name: type_name(facts, ty, var.int("vartypmod")? as i32)?,
                collate: collate_clause(facts, ty, var.oid("varcollid")?)?,
            });
        }
    }
    let positions = attributes.clone();
    let inputs = move |n: &Node| {
        let attnum = n.int("varattno").ok().filter(|_| n.tag == "VAR")?;
        positions.iter().position(|a| i64::from(*a) == attnum)
    };
    let sql = deparse::expression(expr, Scope { facts, inputs: &inputs })?;
    let result = load::type_info(facts, deparse::type_of(expr)?, -1, deparse::collation_of(expr)?)?;
    let remote = RemoteExpr { sql, result, builtin_only: volatility::builtin_only(expr, facts) };
    let batch = RemoteBatch { inputs: batch_inputs, exprs: vec![remote] };
    verify::verify(client, facts, &batch, &[expr], &inputs).await?;
    Ok(Prepared { batch, attributes, volatility: volatility::volatility(expr, facts) })
}

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
    let sql = format!("select array_agg(r order by o) from ({}) e", verify::evaluation_sql(&prepared.batch));
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

#[tokio::test]
async fn every_expression_is_proven_equal_or_refused_by_name() {
    let mut wrong = Vec::new();
    for mut server in servers(SCHEMA).await {
        for (i, (since, sql)) in CORPUS.iter().chain(REFUSED).enumerate() {
            if server.major < *since {
                continue;
            }
            let view = format!("v{i}");
            let create = format!("create view {view} as select {sql} as e, id from all_types");
            if let Err(e) = server.client.batch_execute(&create).await {
                // No XML in this build: refused by the server already.
                if i >= CORPUS.len() && e.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) {
                    continue;
                }
                wrong.push(format!("{}: {sql}: {:?}", server.major, e.as_db_error()));
                continue;
            }
            let prepared = prepare(&mut server.client, &view).await;
            match (prepared, i < CORPUS.len()) {
                (Ok(prepared), true) => {
                    server
                        .client
                        .batch_execute("set search_path = pg_catalog, deparse_suite")
                        .await
                        .expect("set");
                    if let Err(e) = same_values(&server.client, &view, &prepared).await {
                        wrong.push(format!("{}: {sql}: values: {e}", server.major));
                    }
                    server.client.batch_execute("set search_path = deparse_suite").await.expect("set");
                }
                (Err(e), false) if e.kind() == ErrorKind::Unsupported => {}
                (Ok(p), false) => {
                    wrong.push(format!("{}: {sql} passed as {}", server.major, p.batch.exprs[0].sql))
                }
                (Err(e), _) => wrong.push(format!("{}: {sql}: {e:?}", server.major)),
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
