//! What the analyzer's suites share: a database with a schema, and a view's expression prepared for evaluation.

use std::collections::HashMap;

use pgtrickle::analyzer::deparse::{self, Scope, collate_clause, type_name};
use pgtrickle::analyzer::load::Loaded;
use pgtrickle::analyzer::node::Node;
use pgtrickle::analyzer::{literals, load, verify, volatility};
use pgtrickle::error::Result;
use pgtrickle::plan::{RemoteBatch, RemoteExpr, RemoteInput};
use tokio_postgres::Client;

use crate::harness::{Server, TestDatabase};

/// A fresh database in which `schema` was run, and a session in it.
pub(super) async fn database(server: &Server, schema: &str) -> (TestDatabase, Client) {
    let database = TestDatabase::create(server).await;
    let client = database.as_dba().await;
    client.batch_execute(schema).await.expect("the schema");
    (database, client)
}

/// The one-column view over `all_types` as the pipeline would evaluate it: its batch and the attnums of its inputs.
pub(super) struct Prepared {
    pub(super) batch: RemoteBatch,
    pub(super) attributes: Vec<i16>,
    pub(super) volatility: char,
}

pub(super) async fn load_view(client: &mut Client, view: &str) -> Result<Loaded> {
    let sql = format!("select '{view}'::regclass::oid, coalesce(pg_get_viewdef('{view}'::regclass), '')");
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
    let batch = RemoteBatch { inputs: batch_inputs, exprs: vec![remote], owner_function: None };
    verify::verify(client, facts, &batch, &[expr], &inputs).await?;
    Ok(Prepared { batch, attributes, volatility: volatility::volatility(expr, facts) })
}
