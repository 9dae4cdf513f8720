//! The service behind the dataflow's Evaluate operators: PostgreSQL computes expressions over batches of rows (D3).
//!
//! Invariant: one row of results per requested row. A row that fails gets error values instead; the others of its batch
//! do not suffer. Requests of one stream table are answered in order, one at a time, so a slow one holds one session and not
//! those of the others; one that is too slow fails. Expressions made of built-in functions, operators and types are sent as
//! they are; all others run inside a definer function of the stream table's owner, so users' code never has our rights (D7).
//! It runs in a session of its own, in transactions that are always rolled back: nothing it sets, queues or prepares reaches
//! another evaluation.

mod groups;
mod queue;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio_postgres::Statement;
use tokio_postgres::types::{ToSql, Type};

use crate::analyzer::verify::work_sql;
use crate::dataflow::EvaluationRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{GroupBatch, RemoteBatch, RemoteWork, ViewId};
use crate::postgres::session::SqlSession;
use crate::postgres::sessions::{Purpose, Target, error};
use crate::row::datum::error_payload;
use crate::row::record::parse_record;
use crate::row::{Datum, Row, TypeClass};
use queue::Queue;

/// Rows per statement (measured: more gain nothing).
const BATCH: usize = 1_000;
/// Prepared statements kept.
const STATEMENTS: usize = 1_000;

/// How PostgreSQL may compute expressions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sessions, at least 1.
    pub sessions: usize,
    /// Longest time of one statement; `None`: any.
    pub timeout: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { sessions: 4, timeout: Some(Duration::from_secs(600)) }
    }
}

/// Answers requests until the dataflow ends. An error ends it: without answers no epoch completes, so the pipeline has
/// to start anew.
pub async fn serve(
    target: Target,
    limits: Limits,
    mut requests: UnboundedReceiver<EvaluationRequest>,
) -> Result<()> {
    let mut queue = Queue::default();
    // The session that answered last comes first: another is opened only when all are at work.
    let mut idle: Vec<Evaluator> = Vec::new();
    let mut working = JoinSet::new();
    loop {
        while working.len() < limits.sessions.max(1) {
            let Some(request) = queue.next() else { break };
            working.spawn(answer(idle.pop(), target.clone(), limits, request));
        }
        tokio::select! {
            request = requests.recv() => match request {
                Some(request) => queue.push(request),
                None => return Ok(()),
            },
            Some(done) = working.join_next() => {
                let failed = |e| Error::internal("a session of the evaluation service failed").with_source(e);
                let (evaluator, view) = done.map_err(failed)??;
                queue.done(view);
                idle.extend(evaluator);
            }
        }
    }
}

/// Answers one request, in this session or a new one, which is returned unless its work was given up.
async fn answer(
    evaluator: Option<Evaluator>,
    target: Target,
    limits: Limits,
    request: EvaluationRequest,
) -> Result<(Option<Evaluator>, ViewId)> {
    let answered = request.view();
    let mut evaluator = match evaluator {
        Some(evaluator) => evaluator,
        None => Evaluator::connect(&target, limits).await?,
    };
    // Where nobody waits any more (the stream table was dropped), the statement ends with its session.
    match request {
        EvaluationRequest::Rows { view, batch, rows, mut reply } => {
            let results = tokio::select! {
                results = evaluator.rows_or_again(view, &batch, &rows) => results?,
                () = reply.unwanted() => return Ok((None, answered)),
            };
            reply.send(results);
        }
        EvaluationRequest::Groups { view, batch, groups, mut reply } => {
            let results = tokio::select! {
                results = evaluator.groups_or_again(view, &batch, &groups) => results?,
                () = reply.unwanted() => return Ok((None, answered)),
            };
            reply.send(results);
        }
    }
    Ok((Some(evaluator), answered))
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
    target: Target,
    /// Runs built-in expressions only.
    client: SqlSession,
    statements: HashMap<String, Statement>,
    /// Runs owners' functions.
    owners: Option<SqlSession>,
    limits: Limits,
}

/// How some work is asked for.
enum Question {
    Plain(Statement),
    OfOwner(String),
}

/// A session whose statements end in time.
async fn connect(target: &Target, limits: Limits) -> Result<SqlSession> {
    let client = target.connect_when_free(Purpose::Evaluate).await?;
    if let Some(timeout) = limits.timeout {
        let set = format!("set statement_timeout = {}", timeout.as_millis());
        client.batch_execute(&set).await.map_err(error)?;
    }
    // A function can ignore that its statement is cancelled, not that nobody is there any more. Not on every platform.
    let checked = client.batch_execute("set client_connection_check_interval = '1s'").await.map_err(error);
    match checked {
        Err(e) if e.kind() == ErrorKind::Connection => Err(e),
        _ => Ok(client),
    }
}

impl Evaluator {
    async fn connect(target: &Target, limits: Limits) -> Result<Evaluator> {
        let client = connect(target, limits).await?;
        let (target, statements) = (target.clone(), HashMap::new());
        Ok(Evaluator { target, client, statements, owners: None, limits })
    }

    /// Somebody may have ended the session alone: then nothing is lost but time. Where the server is gone, so is the next one.
    async fn replace(&mut self, because: &Error) -> Result<()> {
        tracing::warn!(error = %because.for_logs(), "a session that computes expressions was ended; asking again");
        *self = Evaluator::connect(&self.target, self.limits).await?;
        Ok(())
    }

    async fn rows_or_again(
        &mut self,
        view: ViewId,
        batch: &Arc<RemoteBatch>,
        rows: &[Row],
    ) -> Result<Vec<Row>> {
        match self.rows(view, batch, rows).await {
            Err(e) if e.kind() == ErrorKind::Connection => {
                self.replace(&e).await?;
                self.rows(view, batch, rows).await
            }
            results => results,
        }
    }

    async fn groups_or_again(
        &mut self,
        view: ViewId,
        batch: &Arc<GroupBatch>,
        groups: &[Vec<Row>],
    ) -> Result<Vec<Vec<Row>>> {
        match self.groups(view, batch, groups).await {
            Err(e) if e.kind() == ErrorKind::Connection => {
                self.replace(&e).await?;
                self.groups(view, batch, groups).await
            }
            results => results,
        }
    }

    async fn rows(&mut self, view: ViewId, batch: &Arc<RemoteBatch>, rows: &[Row]) -> Result<Vec<Row>> {
        let mut results = Vec::with_capacity(rows.len());
        for rows in rows.chunks(BATCH) {
            results.extend(self.evaluate(view, batch, rows).await?);
        }
        Ok(results)
    }

    /// What a statement that began at `begun` failed of, if it was the timeout: the payload of an error. Smaller parts of it
    /// would take as long until the slow one is found, and hold up everything meanwhile.
    fn timed_out(&self, e: &Error, begun: Instant, work: RemoteWork<'_>) -> Option<String> {
        let timeout =
            self.limits.timeout.filter(|t| e.sqlstate() == Some("57014") && begun.elapsed() >= *t)?;
        let message = format!(
            "PostgreSQL needed more than {timeout:?} for one batch of the expressions (evaluation_timeout)"
        );
        Some(error_payload("57014", &message, &work_sql(work)))
    }

    async fn question(&mut self, view: ViewId, work: RemoteWork<'_>) -> Result<Question> {
        let sql = call(view, work);
        if work.owner_function().is_some() {
            if self.owners.as_ref().is_none_or(|c| c.is_closed()) {
                self.owners = Some(connect(&self.target, self.limits).await?);
            }
            return Ok(Question::OfOwner(sql));
        }
        if let Some(statement) = self.statements.get(&sql) {
            return Ok(Question::Plain(statement.clone()));
        }
        if self.statements.len() >= STATEMENTS {
            // Dropping a statement closes it on the server.
            self.statements.clear();
        }
        let statement = self.client.prepare(&sql).await.map_err(error)?;
        self.statements.insert(sql, statement.clone());
        Ok(Question::Plain(statement))
    }

    /// Asks with arrays of texts; numbers and texts come back.
    async fn answers(
        &self,
        question: &Question,
        arrays: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<(i64, String)>> {
        let answers = match (question, &self.owners) {
            (Question::Plain(statement), _) => self.client.query(statement, arrays).await.map_err(error)?,
            (Question::OfOwner(sql), Some(owners)) => {
                let arrays: Vec<_> = arrays.iter().map(|a| (*a, Type::TEXT_ARRAY)).collect();
                // One flight. The statement is unnamed: owners' code could take a name that we prepared.
                let (begun, answers, undone) = futures_util::future::join3(
                    owners.batch_execute("begin"),
                    owners.query_typed(sql, &arrays),
                    owners.batch_execute("rollback"),
                )
                .await;
                begun.and(undone).map_err(error)?;
                answers.map_err(error)?
            }
            (Question::OfOwner(_), None) => return Err(Error::internal("there is no session for owners")),
        };
        Ok(answers.iter().map(|r| (r.get(0), r.get(1))).collect())
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
        let question = self.question(view, RemoteWork::Rows(batch)).await?;
        let classes: Vec<TypeClass> = batch.exprs.iter().map(|e| e.result.class).collect();
        let mut results: Vec<Option<Row>> = vec![None; rows.len()];
        let mut open = Vec::new();
        open.push(0..rows.len());
        let failed =
            |payload: &str| Row::from_datums(classes.iter().map(|_| Datum::Error(payload.as_bytes())));
        while let Some(range) = open.pop() {
            let begun = Instant::now();
            match self.ask(&question, batch, &rows[range.clone()]).await {
                Ok(answers) => {
                    for (ordinal, record) in answers {
                        let row = parse_record(record.as_bytes(), &classes)?;
                        let place =
                            usize::try_from(ordinal - 1).ok().and_then(|i| results.get_mut(range.start + i));
                        *place.ok_or_else(|| Error::internal("an evaluated row has no place"))? = Some(row);
                    }
                }
                Err(e) if e.kind() == ErrorKind::Connection => return Err(e),
                Err(e) => {
                    if let Some(payload) = self.timed_out(&e, begun, RemoteWork::Rows(batch)) {
                        results.iter_mut().filter(|r| r.is_none()).for_each(|r| *r = Some(failed(&payload)));
                        break;
                    }
                    if range.len() == 1 {
                        let payload = payload(&e, RemoteWork::Rows(batch));
                        if let Some(place) = results.get_mut(range.start) {
                            *place = Some(failed(&payload));
                        }
                        continue;
                    }
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
        question: &Question,
        batch: &RemoteBatch,
        rows: &[Row],
    ) -> Result<Vec<(i64, String)>> {
        let width = batch.inputs.len().max(1);
        let mut columns: Vec<Vec<Option<String>>> = vec![Vec::with_capacity(rows.len()); width];
        rows.iter().for_each(|row| push_texts(row, &mut columns));
        let arrays: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|c| c as &(dyn ToSql + Sync)).collect();
        self.answers(question, &arrays).await
    }
}

/// What a row has instead of results that the server refused.
fn payload(e: &Error, work: RemoteWork<'_>) -> String {
    error_payload(e.sqlstate().unwrap_or("XX000"), e.context(), &work_sql(work))
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
