//! One call from a defining query to its plan, or to the reason why there is none.
//!
//! Place in the data's way: the entry of the control path. All reading happens in one transaction of the caller's
//! connection that is rolled back; the server keeps nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio_postgres::{GenericClient, Transaction};

use super::facts::{Column, Facts, Relation, StreamTable};
use super::load::{self, Loaded};
use super::node::Node;
use super::translate::{self, Inputs, ROW_ID, Refusal, Remote, Translated};
use super::{literals, lookup, verify};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::explain::Names;
use crate::plan::key::{self, KeyFacts, RelationKeys};
use crate::plan::{OutputColumn, Plan, Rel, SourceId, SourceUse, width};

/// Where the defining query is.
#[derive(Debug, Clone, Copy)]
pub enum TreeSource<'a> {
    /// A view, by OID.
    View(u32),
    /// The text of a query, with names for its columns (none: the query's own). It is analysed under the session's
    /// `search_path`. `owner` will own its view (none: whoever asks).
    Text { query: &'a str, columns: &'a [String], owner: Option<u32> },
}

/// What the analyzer found out about a query.
#[derive(Debug)]
pub struct Analysis {
    /// The plan, or why the query is not maintained incrementally.
    pub plan: std::result::Result<Plan, Refusal>,
    /// The query's columns (also without a plan).
    pub columns: Vec<OutputColumn>,
    /// The tables that it reads, by OID; for a refused query with all their columns.
    pub sources: Vec<SourceFacts>,
    /// All relations that it names, views included.
    pub relations: Vec<Relation>,
}

/// A base table of the query.
#[derive(Debug, Clone)]
pub struct SourceFacts {
    pub source: SourceId,
    pub schema: String,
    pub name: String,
    /// Attnums that the plan reads, ascending. The columns of the replica identity are not added.
    pub attributes: Vec<i16>,
    /// `relreplident`.
    pub replica_identity: char,
    /// Attnums of the replica identity's index; empty for FULL and NOTHING.
    pub identity: Vec<i16>,
    /// All live columns with their types.
    pub columns: Vec<Column>,
}

impl Analysis {
    /// Names for [`crate::plan::explain::explain`].
    pub fn names(&self) -> Names {
        let mut names = Names::default();
        for relation in &self.relations {
            let name = format!("{}.{}", relation.schema, relation.name);
            if let Some(stream_table) = &relation.stream_table {
                let columns = visible(relation).map(|c| c.name.clone()).collect();
                names.views.insert(stream_table.view, (name.clone(), columns));
            }
            let columns = relation.columns.iter().map(|c| (c.attnum, c.name.clone())).collect();
            names.sources.insert(relation.oid, (name, columns));
        }
        names
    }
}

/// Analyses a query. `stream_tables` says which relations store stream tables. Errors are the server's: a wrong query
/// ([`ErrorKind::Query`] with its SQLSTATE), a missing right, a broken connection.
pub async fn analyze<C: GenericClient + Sync>(
    client: &mut C,
    source: TreeSource<'_>,
    stream_tables: &HashMap<u32, StreamTable>,
) -> Result<Analysis> {
    let begin = client.transaction().await;
    let mut transaction = begin.map_err(|e| lookup::failed(e, "begin the analysis of a query"))?;
    let result = analyze_in(&mut transaction, source, stream_tables).await;
    let end = transaction.rollback().await.map_err(|e| lookup::failed(e, "end the analysis of a query"));
    let analysis = result?;
    end.map(|()| analysis)
}

async fn analyze_in(
    transaction: &mut Transaction<'_>,
    source: TreeSource<'_>,
    stream_tables: &HashMap<u32, StreamTable>,
) -> Result<Analysis> {
    // An ALTER TABLE or DROP of the application locks a source and then the views over it, we the other way round: we
    // give way long before its deadlock check (1 s by default) would end its statement in place of ours.
    let give_way = "set local lock_timeout = '200ms'";
    transaction.batch_execute(give_way).await.map_err(|e| lookup::failed(e, "analyse a query"))?;
    let (view, owner_to_be) = match source {
        TreeSource::View(oid) => (oid, None),
        TreeSource::Text { query, columns, owner } => {
            (temporary_view(transaction, query, columns).await?, owner)
        }
    };
    // Names in definitions and of types are then printed with their schema.
    let set = "set local search_path = pg_catalog, pg_temp";
    transaction.batch_execute(set).await.map_err(|e| lookup::failed(e, "analyse a query"))?;
    let view_facts = transaction.query_opt(VIEW, &[&view]).await;
    let view_facts = view_facts.map_err(|e| lookup::failed(e, "read a view"))?.ok_or_else(|| {
        Error::new(ErrorKind::Query, "the view of the defining query is gone").with_sqlstate("42P01")
    })?;
    let (owner, definition): (u32, String) = (view_facts.get(0), view_facts.get(1));
    let tree = load::view_tree(transaction, view).await?;
    let mut loaded = load::load(transaction, &tree, stream_tables).await?;
    literals::find(transaction, &mut loaded, &definition).await?;
    let columns = output_columns(transaction, view, &loaded.facts).await?;
    let plan = match plan(&loaded, owner_to_be.unwrap_or(owner), &columns) {
        Ok((plan, remote)) => match verify_all(transaction, &loaded.facts, &remote).await? {
            None => Ok(plan),
            Some(refusal) => Err(refusal),
        },
        Err(refusal) => Err(refusal),
    };
    let mut relations: Vec<Relation> =
        loaded.facts.relations.into_values().filter(|r| r.oid != view && r.kind != 'c').collect();
    relations.sort_by_key(|r| r.oid);
    let sources = source_facts(&relations, plan.as_ref().ok());
    Ok(Analysis { plan, columns, sources, relations })
}

const VIEW: &str = "select c.relowner, pg_catalog.pg_get_viewdef(c.oid) from pg_catalog.pg_class c \
    where c.oid operator(pg_catalog.=) $1";

const COLUMNS: &str = "select a.attname::pg_catalog.text, a.atttypid, a.atttypmod, a.attcollation, \
    pg_catalog.format_type(a.atttypid, a.atttypmod) from pg_catalog.pg_attribute a \
    where a.attrelid operator(pg_catalog.=) $1 and a.attnum operator(pg_catalog.>) 0 and not a.attisdropped \
    order by a.attnum";

const TEMPORARY: &str = "pgtrickle_analyzed";

/// Makes the server analyse `query`. It is sent as one prepared statement, so that it cannot be several.
async fn temporary_view(transaction: &Transaction<'_>, query: &str, columns: &[String]) -> Result<u32> {
    let names: Vec<String> = columns.iter().map(|c| format!("\"{}\"", c.replace('"', "\"\""))).collect();
    let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    let query = query.trim().trim_end_matches(';');
    let create = format!("create temporary view {TEMPORARY}{names} as {query}\n");
    transaction.execute(create.as_str(), &[]).await.map_err(wrong_query)?;
    let oid = format!("select 'pg_temp.{TEMPORARY}'::pg_catalog.regclass::pg_catalog.oid");
    let row = transaction.query_one(oid.as_str(), &[]).await;
    Ok(row.map_err(|e| lookup::failed(e, "analyse a query"))?.get(0))
}

/// The server's own message about a query it does not accept.
fn wrong_query(error: tokio_postgres::Error) -> Error {
    let Some(said) = error.as_db_error() else {
        return lookup::failed(error, "analyse a query");
    };
    let state = said.code().code().to_owned();
    // Without the right to make temporary tables it is not the query that is wrong.
    let temporary = state == "42501" && said.message().contains("temporary");
    let contention = matches!(state.as_str(), "55P03" | "40P01");
    if temporary || contention || state.starts_with("08") || state.starts_with("57") || state == "25006" {
        return lookup::failed(error, "analyse a query");
    }
    let wrong = Error::new(ErrorKind::Query, said.message()).with_sqlstate(state);
    match said.hint() {
        Some(hint) => wrong.with_hint(hint),
        None => wrong,
    }
}

async fn output_columns(
    transaction: &Transaction<'_>,
    view: u32,
    facts: &Facts,
) -> Result<Vec<OutputColumn>> {
    let rows = transaction.query(COLUMNS, &[&view]).await;
    let rows = rows.map_err(|e| lookup::failed(e, "read a view's columns"))?;
    let column = |r: &tokio_postgres::Row| OutputColumn {
        name: r.get(0),
        ty: translate::type_info(facts, r.get(1), r.get(2), r.get(3)),
        type_name: r.get(4),
    };
    Ok(rows.iter().map(column).collect())
}

fn plan(loaded: &Loaded, owner: u32, columns: &[OutputColumn]) -> translate::Step<(Plan, Vec<Remote>)> {
    let Loaded { query, views, generated, facts } = loaded;
    let keys = key_facts(facts);
    let inputs = Inputs { facts, views, generated, owner: Some(owner), keys: &keys };
    let Translated { rel, upstreams, notices, remote } = translate::translate(inputs, query)?;
    let mut rel = translate::prune(rel);
    rel.number_user_batches();
    if width(&rel) != columns.len() {
        return Err(Refusal::new("unsupported.tree", "the query's columns are not those of its view"));
    }
    let key = key::derive(&rel, &keys);
    let sources = source_uses(&rel);
    Ok((Plan { rel, columns: columns.to_vec(), key, sources, upstreams, notices }, remote))
}

/// Lets the server analyse what it shall compute; what does not come back as the same tree refuses the query.
async fn verify_all(
    transaction: &mut Transaction<'_>,
    facts: &Facts,
    remote: &[Remote],
) -> Result<Option<Refusal>> {
    for remote in remote {
        let verified = match remote {
            Remote::Rows { batch, originals } => {
                let originals: Vec<&Node> = originals.iter().collect();
                verify::verify(transaction, facts, batch, &originals, &translate::input_of).await
            }
            Remote::Groups { batch, originals } => {
                let originals = originals.as_ref();
                verify::verify_group(transaction, facts, batch, originals, &translate::input_of).await
            }
        };
        match verified {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                return Ok(Some(Refusal::new("unsupported.expression", e.context())));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// Columns of a stream table that belong to its query.
fn visible(relation: &Relation) -> impl Iterator<Item = &Column> {
    relation.columns.iter().filter(|c| c.name != ROW_ID)
}

fn key_facts(facts: &Facts) -> KeyFacts {
    let mut keys = KeyFacts::default();
    for relation in facts.relations.values() {
        let not_null: BTreeSet<i16> =
            relation.columns.iter().filter(|c| c.not_null).map(|c| c.attnum).collect();
        let unique: Vec<Vec<i16>> =
            relation.unique_keys.iter().filter(|k| k.not_null).map(|k| k.attributes.clone()).collect();
        if let Some(stream_table) = &relation.stream_table {
            let position = |a: &i16| visible(relation).position(|c| c.attnum == *a);
            let keys_of_view = RelationKeys {
                not_null: not_null.iter().filter_map(position).collect(),
                unique: unique.iter().filter_map(|k| k.iter().map(position).collect()).collect(),
            };
            keys.views.insert(stream_table.view, keys_of_view);
        }
        // Of a partitioned table for all its rows, else for the rows of the table alone.
        keys.sources.insert(relation.oid, RelationKeys { not_null, unique });
    }
    keys
}

fn source_uses(rel: &Rel) -> Vec<SourceUse> {
    let mut uses: BTreeMap<SourceId, BTreeSet<i16>> = BTreeMap::new();
    rel.walk(&mut |r| {
        if let Rel::Source { source, attributes } = r {
            uses.entry(*source).or_default().extend(attributes);
        }
    });
    let uses = uses.into_iter();
    uses.map(|(source, attributes)| SourceUse { source, attributes: attributes.into_iter().collect() })
        .collect()
}

fn source_facts(relations: &[Relation], plan: Option<&Plan>) -> Vec<SourceFacts> {
    let used = |relation: &Relation| match plan {
        Some(plan) => plan.sources.iter().find(|s| s.source == relation.oid).map(|s| s.attributes.clone()),
        None => Some(relation.columns.iter().map(|c| c.attnum).collect()),
    };
    let tables = relations.iter().filter(|r| r.kind != 'v');
    let facts = |r: &Relation| {
        let identity = r.unique_keys.iter().find(|k| k.is_replica_identity);
        Some(SourceFacts {
            source: r.oid,
            schema: r.schema.clone(),
            name: r.name.clone(),
            attributes: used(r)?,
            replica_identity: r.replica_identity,
            identity: identity.map(|k| k.attributes.clone()).unwrap_or_default(),
            columns: r.columns.clone(),
        })
    };
    tables.filter_map(facts).collect()
}
