//! Reads a defining query's tree and everything it names from the catalog.
//!
//! Purpose: one call gives the tree, the trees of the views below it and plain facts, so that translation and
//! deparsing need no server. Works for any role: the catalogs read here are readable by everybody on 14 to 18.
//! Invariant: nothing is guessed; an object that is not found is missing from the facts, and its reader refuses it.
//! Several statements are run: for one consistent picture call it inside a REPEATABLE READ transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio_postgres::GenericClient;

use super::facts::{Facts, StreamTable, Type};
use super::lookup;
use super::node::{self, Node, Value};
use super::oids::Oids;
use crate::error::{Error, Result};
use crate::row::{TypeClass, TypeInfo};

/// A defining query with all that is needed to translate it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The QUERY node of the defining query.
    pub query: Node,
    /// QUERY nodes of the views in any range table (theirs included), by `pg_class.oid`.
    pub views: HashMap<u32, Node>,
    /// Expressions of generated columns (`pg_attrdef.adbin`), by relation and attnum. Their Vars have varno 1.
    pub generated: HashMap<(u32, i16), Node>,
    pub facts: Facts,
}

/// The stored rule of a view, as the server analysed it: a list with one QUERY node.
pub async fn view_tree<C: GenericClient + Sync>(client: &C, view: u32) -> Result<Value> {
    let row =
        client.query_opt(lookup::VIEW_TREE, &[&view]).await.map_err(|e| lookup::failed(e, "read a view"))?;
    let row = row.ok_or_else(|| Error::unsupported(format!("relation {view} is not a view")))?;
    node::parse(row.get::<_, &str>(0))
}

/// The QUERY node in a tree: the tree itself or the only item of its list.
pub fn query_of(tree: &Value) -> Result<&Node> {
    let node = match tree {
        Value::List(items) if items.len() == 1 => items[0].as_node(),
        other => other.as_node(),
    };
    node.filter(|n| n.tag == "QUERY")
        .ok_or_else(|| Error::unsupported("the view's rule does not hold exactly one query"))
}

/// How many entries at the start of a view's own range table are the OLD and NEW placeholders that 14 and 15 store
/// (`DefineViewRules`): 2 or 0. They refer to the view itself and are no sources.
pub fn placeholders(query: &Node) -> usize {
    let table = query.list("rtable");
    let is = |i: usize, name: &str| {
        table.get(i).and_then(Value::as_node).is_some_and(|rte| {
            let alias = rte.optional_node("eref").and_then(|e| e.text("aliasname"));
            rte.field("rtekind") == &Value::Int(0)
                && !rte.bool("inFromCl")
                && rte.text("relkind").as_deref() == Some("v")
                && alias.as_deref() == Some(name)
        })
    };
    if is(0, "old") && is(1, "new") { 2 } else { 0 }
}

/// Loads `tree` (a view's `ev_action`). `stream_tables` says which relations store stream tables.
pub async fn load<C: GenericClient + Sync>(
    client: &C,
    tree: &Value,
    stream_tables: &HashMap<u32, StreamTable>,
) -> Result<Loaded> {
    let query = query_of(tree)?.clone();
    let mut found = Oids::default();
    add_query(&mut found, &query);
    let mut loaded = load_oids(client, found, stream_tables, query).await?;
    finish_types(&mut loaded.facts);
    finish_columns(&mut loaded.facts);
    Ok(loaded)
}

/// Adds what a view's query names, except its own placeholders.
fn add_query(found: &mut Oids, query: &Node) {
    let skip = placeholders(query);
    for (name, value) in &query.fields {
        let nodes = if name == "rtable" { &value.items()[skip..] } else { std::slice::from_ref(value) };
        nodes.iter().for_each(|v| match v {
            Value::List(items) => items.iter().filter_map(Value::as_node).for_each(|n| found.add(n)),
            other => other.as_node().into_iter().for_each(|n| found.add(n)),
        });
    }
}

/// Loads and follows until nothing new is named. Each round is a handful of statements; two or three are usual.
async fn load_oids<C: GenericClient + Sync>(
    client: &C,
    mut found: Oids,
    stream_tables: &HashMap<u32, StreamTable>,
    query: Node,
) -> Result<Loaded> {
    let mut facts = Facts::default();
    lookup::server(client, &mut facts).await?;
    let (mut views, mut generated) = (HashMap::new(), HashMap::new());
    let mut done = Oids::default();
    loop {
        let relations = fresh(&found.relations, &mut done.relations);
        let types = fresh(&found.types, &mut done.types);
        let operators = fresh(&found.operators, &mut done.operators);
        let collations = fresh(&found.collations, &mut done.collations);
        let functions = fresh(&found.functions, &mut done.functions);
        if [&relations, &types, &operators, &collations, &functions].iter().all(|l| l.is_empty()) {
            facts.typmods = lookup::typmods(client, &found.typmods).await?;
            return Ok(Loaded { query, views, generated, facts });
        }
        for (oid, mut relation) in lookup::relations(client, &relations).await? {
            relation.stream_table = stream_tables.get(&oid).cloned();
            found.relations.extend(&relation.descendants);
            for column in &relation.columns {
                found.types.insert(column.ty.oid);
                found.add_typmod(column.ty.oid, column.ty.typmod);
                found.collations.extend((column.ty.collation != 0).then_some(column.ty.collation));
            }
            facts.relations.insert(oid, relation);
        }
        for (relation, attnum, expr) in lookup::generated(client, &relations).await? {
            if let Some(expr) = node::parse(&expr)?.as_node() {
                found.add(expr);
                generated.insert((relation, attnum), expr.clone());
            }
        }
        for view in relations.iter().filter(|r| facts.relations.get(r).is_some_and(|r| r.kind == 'v')) {
            let tree = view_tree(client, *view).await?;
            let query = query_of(&tree)?.clone();
            add_query(&mut found, &query);
            views.insert(*view, query);
        }
        for ty in lookup::types(client, &types).await? {
            for below in [ty.parent, ty.element] {
                found.types.extend((below != 0).then_some(below));
            }
            found.relations.extend((ty.relation != 0).then_some(ty.relation));
            found.functions.extend([ty.input, ty.output].iter().filter(|f| **f != 0));
            found.collations.extend((ty.collation != 0).then_some(ty.collation));
            ty.checks.iter().for_each(|c| found.add(c));
            facts.types.insert(ty.oid, ty);
        }
        // It may be known only now, from a view below: also of the types of earlier rounds.
        if found.arrays {
            found.types.extend(facts.types.values().map(|ty| ty.array).filter(|array| *array != 0));
        }
        for operator in lookup::operators(client, &operators).await? {
            found.functions.extend((operator.function != 0).then_some(operator.function));
            facts.operators.insert(operator.oid, operator);
        }
        for mut collation in lookup::collations(client, &collations).await? {
            collation.is_c |= collation.oid == DEFAULT_COLLATION && facts.database_collation_is_c;
            facts.collations.insert(collation.oid, collation);
        }
        for function in lookup::functions(client, &functions).await? {
            facts.functions.insert(function.oid, function);
        }
    }
}

/// `pg_collation.oid` of "default".
const DEFAULT_COLLATION: u32 = 100;

fn fresh(found: &BTreeSet<u32>, done: &mut BTreeSet<u32>) -> Vec<u32> {
    let fresh: Vec<u32> = found.difference(done).copied().collect();
    done.extend(&fresh);
    fresh
}

/// Resolves domains to their base type and decides equality of arrays and row types by their parts.
fn finish_types(facts: &mut Facts) {
    let oids: Vec<u32> = facts.types.keys().copied().collect();
    let mut resolved = BTreeMap::new();
    for oid in oids {
        let base = base_of(&facts.types, oid);
        resolved.insert(oid, (base, has_equality(facts, base, 0)));
    }
    for (oid, (base, equality)) in resolved {
        if let Some(ty) = facts.types.get_mut(&oid) {
            ty.base = base;
            ty.has_equality = equality;
        }
    }
}

fn base_of(types: &HashMap<u32, Type>, mut oid: u32) -> u32 {
    while let Some(below) = types.get(&oid).map(|t| t.parent).filter(|p| *p != 0) {
        oid = below;
    }
    oid
}

/// The server's rule (`lookup_type_cache`): arrays and rows are comparable if their parts are, enums, ranges and
/// multiranges always.
fn has_equality(facts: &Facts, oid: u32, depth: usize) -> bool {
    let Some(ty) = facts.types.get(&base_of(&facts.types, oid)) else { return false };
    if ty.has_equality || depth > 32 {
        return ty.has_equality;
    }
    match ty.typtype {
        'e' | 'r' | 'm' => true,
        'c' => facts
            .relations
            .get(&ty.relation)
            .is_some_and(|r| r.columns.iter().all(|c| has_equality(facts, c.ty.oid, depth + 1))),
        'b' if ty.category == 'A' && ty.length == -1 => has_equality(facts, ty.element, depth + 1),
        _ => false,
    }
}

fn finish_columns(facts: &mut Facts) {
    let mut relations = std::mem::take(&mut facts.relations);
    for column in relations.values_mut().flat_map(|r| r.columns.iter_mut()) {
        if let Ok(info) = type_info(facts, column.ty.oid, column.ty.typmod, column.ty.collation) {
            column.ty = info;
        }
    }
    facts.relations = relations;
}

/// The pipeline's notion of a type, from what the tree says about an expression or column.
pub fn type_info(facts: &Facts, oid: u32, typmod: i32, collation: u32) -> Result<TypeInfo> {
    let missing = || Error::unsupported(format!("type {oid} is not in the catalog (any more)"));
    let ty = facts.types.get(&oid).ok_or_else(missing)?;
    let base = facts.types.get(&ty.base).ok_or_else(missing)?;
    let deterministic = match collation {
        0 => true,
        c => facts.collations.get(&c).is_some_and(|c| c.deterministic),
    };
    Ok(TypeInfo { oid, typmod, collation, deterministic, class: TypeClass::of(base.oid, base.typtype) })
}
