//! The service behind the dataflow's Evaluate operators: PostgreSQL computes expressions over batches of rows (D3).
//!
//! Invariant: one row of results per requested row. A row that fails gets error values instead; the others of its batch
//! do not suffer. Expressions made of built-in functions, operators and types are sent as they are; all others run inside
//! a definer function of the stream table's owner, so users' code never has our rights (D7).

mod groups;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio_postgres::{Client, Statement};

use crate::analyzer::verify::work_sql;
use crate::dataflow::EvaluationRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{RemoteBatch, RemoteWork, ViewId};
use crate::postgres::sessions::{Purpose, Target, error};
use crate::row::record::parse_record;
use crate::row::{Datum, Row, TypeClass};

/// Rows per statement (measured: more gain nothing).
const BATCH: usize = 1_000;
/// Prepared statements kept.
const STATEMENTS: usize = 1_000;

/// Answers requests until the dataflow ends. An error ends it: without answers no epoch completes, so the pipeline has
/// to start anew.
pub async fn serve(target: Target, mut requests: UnboundedReceiver<EvaluationRequest>) -> Result<()> {
    let mut session: Option<Evaluator> = None;
    while let Some(request) = requests.recv().await {
        let evaluator = match &mut session {
            Some(evaluator) => evaluator,
            None => session.insert(Evaluator::connect(&target).await?),
        };
        match request {
            EvaluationRequest::Rows { view, batch, rows, reply } => {
                let mut results = Vec::with_capacity(rows.len());
                for rows in rows.chunks(BATCH) {
                    results.extend(evaluator.evaluate(view, &batch, rows).await?);
                }
                reply.send(results);
            }
            EvaluationRequest::Groups { view, batch, groups, reply } => {
                reply.send(evaluator.groups(view, &batch, &groups).await?);
            }
        }
    }
    Ok(())
}

/// The statement of some work: the expressions themselves, or the call of the owner's function. The condition names no
/// column, so the server decides it before it calls anything: a function that was exchanged is not run, its rows stay
/// away, and the pipeline starts anew and looks at the stream table again. Values become text here, under the settings of
/// this session: the function may run in another time zone.
fn call(view: ViewId, work: RemoteWork<'_>) -> String {
    let Some(number) = work.owner_function() else {
        return format!("select q.o, (q.r)::pg_catalog.text from ({}) q", work_sql(work));
    };
    let arguments: Vec<String> = (1..=work.parameters()).map(|i| format!("${i}::text[]")).collect();
    let name = format!("pgtrickle_queries.evaluate_{view}_{number}");
    let types = vec!["pg_catalog.text[]"; arguments.len()].join(", ");
    format!(
        "select o, (r)::pg_catalog.text from {name}({})
         where (select p.prosecdef and p.proowner = c.relowner
                  from pgtrickle.pgt_stream_tables s join pg_catalog.pg_class c on c.oid = s.pgt_relid
                  join pg_catalog.pg_proc p on p.oid = pg_catalog.to_regprocedure('{name}({types})')
                 where s.pgt_id = {view})",
        arguments.join(", ")
    )
}

struct Evaluator {
    client: Client,
    statements: HashMap<String, Statement>,
}

impl Evaluator {
    async fn connect(target: &Target) -> Result<Evaluator> {
        Ok(Evaluator { client: target.connect(Purpose::Evaluate).await?, statements: HashMap::new() })
    }

    async fn statement(&mut self, view: ViewId, work: RemoteWork<'_>) -> Result<Statement> {
        let sql = call(view, work);
        if let Some(statement) = self.statements.get(&sql) {
            return Ok(statement.clone());
        }
        if self.statements.len() >= STATEMENTS {
            // Dropping a statement closes it on the server.
            self.statements.clear();
        }
        let statement = self.client.prepare(&sql).await.map_err(error)?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }

    /// Results of `rows`, in order. A row that already carries an error hands it on.
    async fn evaluate(&mut self, view: ViewId, batch: &Arc<RemoteBatch>, rows: &[Row]) -> Result<Vec<Row>> {
        let sound: Vec<Row> = rows.iter().filter(|row| !row.has_error()).cloned().collect();
        let mut answers = self.evaluate_sound(view, batch, &sound).await?.into_iter();
        let missing = || Error::internal("an evaluated row is missing");
        rows.iter()
            .map(|row| match row.iter().find(Datum::is_error) {
                Some(failed) => Ok(Row::from_datums(batch.exprs.iter().map(|_| failed))),
                None => answers.next().ok_or_else(missing),
            })
            .collect()
    }

    /// A batch that fails is halved until the failing rows stand alone.
    async fn evaluate_sound(
        &mut self,
        view: ViewId,
        batch: &Arc<RemoteBatch>,
        rows: &[Row],
    ) -> Result<Vec<Row>> {
        let statement = self.statement(view, RemoteWork::Rows(batch)).await?;
        let classes: Vec<TypeClass> = batch.exprs.iter().map(|e| e.result.class).collect();
        let mut results: Vec<Option<Row>> = vec![None; rows.len()];
        let mut open = Vec::new();
        open.push(0..rows.len());
        while let Some(range) = open.pop() {
            match self.ask(&statement, batch, &rows[range.clone()]).await {
                Ok(answers) => {
                    for (ordinal, record) in answers {
                        let row = parse_record(record.as_bytes(), &classes)?;
                        let place =
                            usize::try_from(ordinal - 1).ok().and_then(|i| results.get_mut(range.start + i));
                        *place.ok_or_else(|| Error::internal("an evaluated row has no place"))? = Some(row);
                    }
                }
                Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
                Err(e) if range.len() == 1 => {
                    let payload = format!("{}:{}", e.sqlstate().unwrap_or("XX000"), e.context());
                    let failed = Row::from_datums(classes.iter().map(|_| Datum::Error(payload.as_bytes())));
                    if let Some(place) = results.get_mut(range.start) {
                        *place = Some(failed);
                    }
                }
                Err(_) => {
                    let middle = range.start + range.len() / 2;
                    open.push(middle..range.end);
                    open.push(range.start..middle);
                }
            }
        }
        results.into_iter().map(|r| r.ok_or_else(|| Error::internal("an evaluated row is missing"))).collect()
    }

    async fn ask(
        &self,
        statement: &Statement,
        batch: &RemoteBatch,
        rows: &[Row],
    ) -> Result<Vec<(i64, String)>> {
        let width = batch.inputs.len().max(1);
        let mut columns: Vec<Vec<Option<String>>> = vec![Vec::with_capacity(rows.len()); width];
        rows.iter().for_each(|row| push_texts(row, &mut columns));
        let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
            columns.iter().map(|c| c as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
        let answers = self.client.query(statement, &parameters).await.map_err(error)?;
        Ok(answers.iter().map(|r| (r.get(0), r.get(1))).collect())
    }
}

/// Appends the texts of a row's first columns, one per column.
fn push_texts(row: &Row, columns: &mut [Vec<Option<String>>]) {
    let mut datums = row.iter();
    for column in columns {
        let mut text = Vec::new();
        let present = datums.next().is_some_and(|d| d.write_text(&mut text));
        column.push(present.then(|| String::from_utf8_lossy(&text).into_owned()));
    }
}
