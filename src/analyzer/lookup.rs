//! The catalog queries of [`super::load`]: OIDs in, facts out.
//!
//! Every name and operator is schema-qualified, so that no `search_path` of the session can redirect them. Columns that
//! not all majors have are read through `to_jsonb`, which turns an absent one into NULL.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::{GenericClient, Row};

use super::facts::{Collation, Column, Facts, Function, Operator, Relation, Type, UniqueKey};
use super::node::{self, Node};
use crate::error::{Error, ErrorKind, Result};
use crate::row::{TypeClass, TypeInfo};

pub(super) const VIEW_TREE: &str = "select r.ev_action::pg_catalog.text from pg_catalog.pg_rewrite r \
    where r.ev_class operator(pg_catalog.=) $1 and r.rulename operator(pg_catalog.=) '_RETURN' \
      and r.is_instead and r.ev_type operator(pg_catalog.=) '1'";

const SERVER: &str = "select pg_catalog.current_setting('server_version_num')::pg_catalog.int4, \
    d.datcollate::pg_catalog.text, pg_catalog.to_jsonb(d) operator(pg_catalog.->>) 'datlocprovider' \
    from pg_catalog.pg_database d where d.datname operator(pg_catalog.=) pg_catalog.current_database()";

const FUNCTIONS: &str = "select p.oid, n.nspname::pg_catalog.text, p.proname::pg_catalog.text, p.prosrc, \
    l.lanname::pg_catalog.text, p.provolatile::pg_catalog.text, p.proisstrict, p.prokind::pg_catalog.text, \
    p.proretset, p.proargtypes::pg_catalog.oid[], p.prorettype \
    from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) p.pronamespace \
    join pg_catalog.pg_language l on l.oid operator(pg_catalog.=) p.prolang \
    where p.oid operator(pg_catalog.=) any ($1)";

const OPERATORS: &str = "select o.oid, n.nspname::pg_catalog.text, o.oprname::pg_catalog.text, \
    o.oprkind::pg_catalog.text, o.oprleft, o.oprright, o.oprresult, o.oprcode::pg_catalog.oid, \
    exists (select from pg_catalog.pg_opclass c \
      join pg_catalog.pg_am a on a.oid operator(pg_catalog.=) c.opcmethod \
      join pg_catalog.pg_amop p on p.amopfamily operator(pg_catalog.=) c.opcfamily \
      where c.opcdefault and a.amname operator(pg_catalog.=) 'hash' and p.amopopr operator(pg_catalog.=) o.oid \
        and c.opcintype operator(pg_catalog.=) o.oprleft and c.opcintype operator(pg_catalog.=) o.oprright) \
    from pg_catalog.pg_operator o join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) o.oprnamespace \
    where o.oid operator(pg_catalog.=) any ($1)";

/// Equality: a default btree or hash operator class of the type itself or of one it is implicitly the same bytes as.
const TYPES: &str = "select t.oid, n.nspname::pg_catalog.text, t.typname::pg_catalog.text, \
    t.typtype::pg_catalog.text, t.typcategory::pg_catalog.text, t.typbasetype, t.typelem, t.typarray, t.typrelid, \
    t.typlen, t.typbyval, t.typcollation, t.typtypmod, t.typinput::pg_catalog.oid, t.typoutput::pg_catalog.oid, \
    exists (select from pg_catalog.pg_opclass o join pg_catalog.pg_am a on a.oid operator(pg_catalog.=) o.opcmethod \
      where o.opcdefault and a.amname operator(pg_catalog.=) any ('{btree,hash}'::pg_catalog.name[]) \
        and (o.opcintype operator(pg_catalog.=) t.oid or exists (select from pg_catalog.pg_cast c \
          where c.castsource operator(pg_catalog.=) t.oid and c.casttarget operator(pg_catalog.=) o.opcintype \
            and c.castmethod operator(pg_catalog.=) 'b' and c.castcontext operator(pg_catalog.=) 'i'))), \
    (select pg_catalog.array_agg(e.oid order by e.enumsortorder) from pg_catalog.pg_enum e \
      where e.enumtypid operator(pg_catalog.=) t.oid), \
    (select pg_catalog.array_agg(e.enumlabel::pg_catalog.text order by e.enumsortorder) from pg_catalog.pg_enum e \
      where e.enumtypid operator(pg_catalog.=) t.oid), \
    (select pg_catalog.array_agg(k.conbin::pg_catalog.text order by k.conname) from pg_catalog.pg_constraint k \
      where k.contypid operator(pg_catalog.=) t.oid and k.conbin is not null) \
    from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) t.typnamespace \
    where t.oid operator(pg_catalog.=) any ($1)";

/// Bytewise: "C" and "POSIX" of libc, and all of the built-in provider (17 and later: `memcmp`).
const COLLATIONS: &str = "select c.oid, n.nspname::pg_catalog.text, c.collname::pg_catalog.text, \
    c.collisdeterministic, c.collprovider::pg_catalog.text operator(pg_catalog.=) 'b' \
      or (c.collprovider::pg_catalog.text operator(pg_catalog.=) 'c' and coalesce( \
        c.collcollate::pg_catalog.text operator(pg_catalog.=) any ('{C,POSIX}'::pg_catalog.text[]), false)) \
    from pg_catalog.pg_collation c join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.collnamespace \
    where c.oid operator(pg_catalog.=) any ($1)";

const RELATIONS: &str = "select c.oid, n.nspname::pg_catalog.text, c.relname::pg_catalog.text, \
    c.relkind::pg_catalog.text, c.relpersistence::pg_catalog.text, c.relreplident::pg_catalog.text, \
    c.relrowsecurity, coalesce(c.reloptions, '{}'::pg_catalog.text[]), c.relowner, \
    c.relkind operator(pg_catalog.=) 'p' or exists (select from pg_catalog.pg_inherits i \
      where i.inhparent operator(pg_catalog.=) c.oid) \
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace \
    where c.oid operator(pg_catalog.=) any ($1)";

/// A partition whose DETACH CONCURRENTLY is under way is not read any more.
const DESCENDANTS: &str = "with recursive below (top, oid) as ( \
      select i.inhparent, i.inhrelid from pg_catalog.pg_inherits i \
       where i.inhparent operator(pg_catalog.=) any ($1) and not i.inhdetachpending \
      union \
      select b.top, i.inhrelid from below b join pg_catalog.pg_inherits i \
        on i.inhparent operator(pg_catalog.=) b.oid and not i.inhdetachpending) \
    select top, oid from below order by top, oid";

/// A NOT NULL constraint may be NOT VALID from 18 on; `attnotnull` is set all the same.
const COLUMNS: &str = "select a.attrelid, a.attnum, a.attname::pg_catalog.text, a.atttypid, a.atttypmod, \
    a.attcollation, a.attnotnull and not exists (select from pg_catalog.pg_constraint k \
      where k.conrelid operator(pg_catalog.=) a.attrelid and k.contype operator(pg_catalog.=) 'n' \
        and not k.convalidated and a.attnum operator(pg_catalog.=) any (k.conkey)), a.attgenerated::pg_catalog.text \
    from pg_catalog.pg_attribute a where a.attrelid operator(pg_catalog.=) any ($1) \
      and a.attnum operator(pg_catalog.>) 0 and not a.attisdropped order by a.attrelid, a.attnum";

/// Unique under the columns' own equality: default operator classes and the columns' collations only. WITHOUT OVERLAPS
/// (18) calls itself unique but is an exclusion constraint.
const KEYS: &str = "select i.indrelid, i.indexrelid, i.indisprimary, \
    (i.indkey::pg_catalog.int2[])[0:i.indnkeyatts operator(pg_catalog.-) 1], \
    (c.relreplident operator(pg_catalog.=) 'i' and i.indisreplident) \
      or (c.relreplident operator(pg_catalog.=) 'd' and i.indisprimary) \
    from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid operator(pg_catalog.=) i.indrelid \
    where i.indrelid operator(pg_catalog.=) any ($1) and i.indisunique and i.indimmediate and i.indisvalid \
      and i.indisready and i.indislive and not i.indisexclusion and i.indpred is null and i.indexprs is null \
      and not exists (select from pg_catalog.generate_series(0, i.indnkeyatts operator(pg_catalog.-) 1) g(k) \
        join pg_catalog.pg_attribute a on a.attrelid operator(pg_catalog.=) i.indrelid \
          and a.attnum operator(pg_catalog.=) i.indkey[g.k] \
        join pg_catalog.pg_opclass o on o.oid operator(pg_catalog.=) i.indclass[g.k] \
        where a.attcollation operator(pg_catalog.<>) i.indcollation[g.k] or not o.opcdefault) \
    order by i.indisprimary desc, i.indexrelid";

const GENERATED: &str = "select d.adrelid, d.adnum, d.adbin::pg_catalog.text from pg_catalog.pg_attrdef d \
    join pg_catalog.pg_attribute a on a.attrelid operator(pg_catalog.=) d.adrelid \
      and a.attnum operator(pg_catalog.=) d.adnum \
    where d.adrelid operator(pg_catalog.=) any ($1) and a.attgenerated operator(pg_catalog.<>) ''";

const TYPMODS: &str = "select u.t, u.m, pg_catalog.format_type(u.t, -1), pg_catalog.format_type(u.t, u.m) \
    from rows from (pg_catalog.unnest($1::pg_catalog.oid[]), pg_catalog.unnest($2::pg_catalog.int4[])) u(t, m)";

/// The error of a failed catalog query. `doing` completes "could not ...".
pub(super) fn failed(error: tokio_postgres::Error, doing: &str) -> Error {
    let state = error.code().map(|c| c.code().to_owned());
    let kind = match state.as_deref() {
        None => ErrorKind::Connection,
        Some("42501") => ErrorKind::Privilege,
        Some(s) if s.starts_with("08") || s.starts_with("57P") => ErrorKind::Connection,
        Some(s) if s.starts_with("40") || s == "55P03" || s == "57014" => ErrorKind::Contention,
        Some(_) => ErrorKind::Internal,
    };
    let detail = error.as_db_error().map_or_else(|| error.to_string(), |e| e.message().to_owned());
    let wrapped = Error::new(kind, format!("could not {doing}: {detail}")).with_source(error);
    match state {
        Some(state) => wrapped.with_sqlstate(state),
        None => wrapped,
    }
}

async fn rows<C: GenericClient + Sync>(client: &C, sql: &str, oids: &[u32]) -> Result<Vec<Row>> {
    if oids.is_empty() {
        return Ok(Vec::new());
    }
    client.query(sql, &[&oids]).await.map_err(|e| failed(e, "read the catalog"))
}

fn letter(row: &Row, column: usize) -> char {
    row.get::<_, &str>(column).chars().next().unwrap_or(' ')
}

/// Major version and the kind of the default collation.
pub(super) async fn server<C: GenericClient + Sync>(client: &C, facts: &mut Facts) -> Result<()> {
    let row = client.query_one(SERVER, &[]).await.map_err(|e| failed(e, "read the catalog"))?;
    facts.major = u32::try_from(row.get::<_, i32>(0) / 10000).unwrap_or(0);
    facts.database_collation_is_c = match row.get::<_, Option<&str>>(2) {
        Some("b") => true,
        Some("i") => false,
        _ => matches!(row.get::<_, &str>(1), "C" | "POSIX"),
    };
    Ok(())
}

pub(super) async fn functions<C: GenericClient + Sync>(client: &C, oids: &[u32]) -> Result<Vec<Function>> {
    let rows = rows(client, FUNCTIONS, oids).await?;
    let function = |r: &Row| Function {
        oid: r.get(0),
        schema: r.get(1),
        name: r.get(2),
        source: r.get(3),
        language: r.get(4),
        volatility: letter(r, 5),
        strict: r.get(6),
        kind: letter(r, 7),
        returns_set: r.get(8),
        arguments: r.get(9),
        result: r.get(10),
    };
    Ok(rows.iter().map(function).collect())
}

pub(super) async fn operators<C: GenericClient + Sync>(client: &C, oids: &[u32]) -> Result<Vec<Operator>> {
    let rows = rows(client, OPERATORS, oids).await?;
    let operator = |r: &Row| Operator {
        oid: r.get(0),
        schema: r.get(1),
        name: r.get(2),
        kind: letter(r, 3),
        left: r.get(4),
        right: r.get(5),
        result: r.get(6),
        function: r.get(7),
        is_hash_equality: r.get(8),
    };
    Ok(rows.iter().map(operator).collect())
}

/// `base` is the type itself and `has_equality` that of operator classes alone, until the loader finishes them.
pub(super) async fn types<C: GenericClient + Sync>(client: &C, oids: &[u32]) -> Result<Vec<Type>> {
    let mut types = Vec::new();
    for r in rows(client, TYPES, oids).await? {
        let label_oids: Vec<u32> = r.get::<_, Option<_>>(16).unwrap_or_default();
        let labels: Vec<String> = r.get::<_, Option<_>>(17).unwrap_or_default();
        let checks: Vec<String> = r.get::<_, Option<_>>(18).unwrap_or_default();
        types.push(Type {
            oid: r.get(0),
            schema: r.get(1),
            name: r.get(2),
            typtype: letter(&r, 3),
            category: letter(&r, 4),
            base: r.get(0),
            parent: r.get(5),
            element: r.get(6),
            array: r.get(7),
            relation: r.get(8),
            length: r.get(9),
            by_value: r.get(10),
            collation: r.get(11),
            typmod: r.get(12),
            input: r.get(13),
            output: r.get(14),
            has_equality: r.get(15),
            labels: label_oids.into_iter().zip(labels).collect(),
            checks: checks.iter().map(|c| expression(c)).collect::<Result<_>>()?,
        });
    }
    Ok(types)
}

fn expression(text: &str) -> Result<Node> {
    let value = node::parse(text)?;
    value
        .as_node()
        .cloned()
        .ok_or_else(|| Error::unsupported("a constraint's expression has an unknown form"))
}

/// `is_c` of the default collation is added by the loader.
pub(super) async fn collations<C: GenericClient + Sync>(client: &C, oids: &[u32]) -> Result<Vec<Collation>> {
    let rows = rows(client, COLLATIONS, oids).await?;
    let collation = |r: &Row| Collation {
        oid: r.get(0),
        schema: r.get(1),
        name: r.get(2),
        deterministic: r.get(3),
        is_c: r.get(4),
    };
    Ok(rows.iter().map(collation).collect())
}

/// Relations with columns and keys. Column types are finished by the loader, when it knows the types.
pub(super) async fn relations<C: GenericClient + Sync>(
    client: &C,
    oids: &[u32],
) -> Result<HashMap<u32, Relation>> {
    let mut relations = HashMap::new();
    for r in rows(client, RELATIONS, oids).await? {
        let options: Vec<String> = r.get(7);
        relations.insert(
            r.get(0),
            Relation {
                oid: r.get(0),
                schema: r.get(1),
                name: r.get(2),
                kind: letter(&r, 3),
                persistence: letter(&r, 4),
                replica_identity: letter(&r, 5),
                row_security: r.get(6),
                security_barrier: is_on(&options, "security_barrier"),
                security_invoker: is_on(&options, "security_invoker"),
                owner: r.get(8),
                has_children: r.get(9),
                descendants: Vec::new(),
                columns: Vec::new(),
                unique_keys: Vec::new(),
                stream_table: None,
            },
        );
    }
    let parents: Vec<u32> = relations.values().filter(|r| r.has_children).map(|r| r.oid).collect();
    for r in rows(client, DESCENDANTS, &parents).await? {
        if let Some(relation) = relations.get_mut(&r.get::<_, u32>(0)) {
            relation.descendants.push(r.get(1));
        }
    }
    for r in rows(client, COLUMNS, oids).await? {
        if let Some(relation) = relations.get_mut(&r.get::<_, u32>(0)) {
            relation.columns.push(column(&r));
        }
    }
    for r in rows(client, KEYS, oids).await? {
        if let Some(relation) = relations.get_mut(&r.get::<_, u32>(0)) {
            let attributes: Vec<i16> = r.get(3);
            let not_null =
                attributes.iter().all(|k| relation.columns.iter().any(|c| c.attnum == *k && c.not_null));
            let (index, primary, is_replica_identity) = (r.get(1), r.get(2), r.get(4));
            relation.unique_keys.push(UniqueKey {
                index,
                primary,
                attributes,
                not_null,
                is_replica_identity,
            });
        }
    }
    Ok(relations)
}

fn column(r: &Row) -> Column {
    let ty = TypeInfo {
        oid: r.get(3),
        typmod: r.get(4),
        collation: r.get(5),
        deterministic: false,
        class: TypeClass::Other,
    };
    Column { attnum: r.get(1), name: r.get(2), ty, not_null: r.get(6), generated: letter(r, 7) }
}

/// `reloptions` keep booleans as they were typed (`parse_bool`: any prefix of false, no, off; or 0).
fn is_on(options: &[String], name: &str) -> bool {
    let value = options.iter().find_map(|o| o.strip_prefix(name)?.strip_prefix('='));
    value.is_some_and(|v| {
        let v = v.to_ascii_lowercase();
        let off = v == "0" || "false".starts_with(&v) || "no".starts_with(&v);
        !(off || v.len() > 1 && "off".starts_with(&v))
    })
}

/// Relation, attnum and node text of every generated column.
pub(super) async fn generated<C: GenericClient + Sync>(
    client: &C,
    oids: &[u32],
) -> Result<Vec<(u32, i16, String)>> {
    let rows = rows(client, GENERATED, oids).await?;
    Ok(rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect())
}

/// What the types print behind their names, brackets of arrays left out.
pub(super) async fn typmods<C: GenericClient + Sync>(
    client: &C,
    pairs: &BTreeSet<(u32, i32)>,
) -> Result<HashMap<(u32, i32), String>> {
    if pairs.is_empty() {
        return Ok(HashMap::new());
    }
    let (types, typmods): (Vec<u32>, Vec<i32>) = pairs.iter().copied().unzip();
    let rows = client.query(TYPMODS, &[&types, &typmods]).await.map_err(|e| failed(e, "read the catalog"))?;
    let suffix = |r: &Row| {
        let (plain, full) = (r.get::<_, &str>(2).trim_end_matches("[]"), r.get::<_, &str>(3));
        let suffix = full.trim_end_matches("[]").strip_prefix(plain)?;
        Some(((r.get(0), r.get(1)), suffix.to_owned()))
    };
    Ok(rows.iter().filter_map(suffix).collect())
}
