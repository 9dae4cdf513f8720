//! Whether owners may still read what their stream tables read, and whether the sidecar may (invariant 6, D12).
//!
//! PostgreSQL checks a reader's rights when a query runs; a stream table's rows are computed elsewhere and stay after a
//! REVOKE. So the rights are looked up again every few seconds and before each preparation, as PostgreSQL would check
//! them for the defining view: its own sources as the stream table's owner, what lies behind another view as that
//! view's owner (as the stream table's owner behind a `security_invoker` view).

use tokio_postgres::Client;

use crate::capture::source::quote;
use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::error;

/// `pg_depend` holds the columns that a view names; only a view that names none (`count(*)`) depends on the table alone.
const LOST: &str = "
with recursive needed (pgt_id, owner, reader, rel, att) as (
    select s.pgt_id, s.owner, s.owner, d.refobjid, d.refobjsubid
      from (select t.pgt_id, r.oid as owner, t.query_view::pg_catalog.oid as view from pgtrickle.pgt_stream_tables t
              join pg_catalog.pg_roles r on r.rolname = t.owner
             where $2::int8 is null and t.pipeline = $1 and t.status <> 'SUSPENDED'
            union all
            select $2, v.relowner, v.oid from pg_catalog.pg_class v where v.oid = $3) s
      join pg_catalog.pg_rewrite w on w.ev_class = s.view
      join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = w.oid
       and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid <> w.ev_class
    union
    select n.pgt_id, n.owner,
           -- Stored as it was written: true, on, yes, 1.
           case when exists (select from pg_catalog.pg_options_to_table(v.reloptions) o
                              where o.option_name = 'security_invoker' and o.option_value::pg_catalog.bool)
                then n.owner else v.relowner end,
           d.refobjid, d.refobjsubid
      from needed n
      join pg_catalog.pg_class v on v.oid = n.rel and v.relkind = 'v'
      join pg_catalog.pg_rewrite w on w.ev_class = v.oid
      join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass and d.objid = w.oid
       and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid <> v.oid)
select distinct on (n.pgt_id) n.pgt_id, pg_catalog.pg_get_userbyid(n.reader)::text, s.nspname::text, c.relname::text,
       a.attname::text, l.lost
  from needed n
  join pg_catalog.pg_class c on c.oid = n.rel and c.relkind in ('r', 'p', 'v', 'm', 'f')
  join pg_catalog.pg_namespace s on s.oid = c.relnamespace
  left join pg_catalog.pg_attribute a on a.attrelid = n.rel and a.attnum = n.att and n.att > 0
 cross join lateral (select not case when n.att = 0 then pg_catalog.has_any_column_privilege(n.reader, n.rel, 'SELECT')
                else pg_catalog.has_column_privilege(n.reader, n.rel, n.att::pg_catalog.int2, 'SELECT') end as lost) l
 where l.lost or c.relrowsecurity and pgtrickle._row_security() = 'refuse'
 order by n.pgt_id, l.lost desc, n.rel, n.att";

/// One stream table, and the view that will be analysed. The owner may write his row of the catalog at any moment, so
/// nothing about it is taken from there: neither which view is meant nor whether it is suspended.
pub type Meant = (ViewId, u32);

/// Stream tables (one, or all of the pipeline that are not suspended) whose sources must not be read any more on
/// behalf of their owner, or not without policies that readers would escape, with what to tell about it: kind `Query`, SQLSTATE 42501.
pub async fn lost(client: &Client, pipeline: &str, only: Option<Meant>) -> Result<Vec<(ViewId, Error)>> {
    let (only, view) = only.unzip();
    let rows = client.query(LOST, &[&pipeline, &only, &view]).await.map_err(error)?;
    let told = rows.iter().map(|row| {
        let (reader, schema, name): (String, String, String) = (row.get(1), row.get(2), row.get(3));
        let relation = format!("{}.{}", quote_if_needed(&schema), quote_if_needed(&name));
        if !row.get::<_, bool>(5) {
            return (row.get(0), secured(&relation));
        }
        let what = match row.get::<_, Option<String>>(4) {
            Some(column) => format!("column {} of {relation}", quote_if_needed(&column)),
            None => relation.clone(),
        };
        let e = Error::new(ErrorKind::Query, format!("role {reader} has no SELECT right on {what} any more"))
            .with_sqlstate("42501")
            .with_hint(format!(
                "grant select on {relation} to {} again, then call pgtrickle.resume_stream_table",
                quote_if_needed(&reader)
            ));
        (row.get(0), e)
    });
    Ok(told.collect())
}

/// The rows of a stream table are seen by whoever may read it, whatever the policies of its sources say.
fn secured(relation: &str) -> Error {
    let context =
        format!("{relation} has row-level security, to which readers of the stream table are not held");
    Error::new(ErrorKind::Query, context).with_sqlstate("42501").with_hint(
        "set row_security = 'warn' in pgtrickle.settings to accept that, then call pgtrickle.resume_stream_table",
    )
}

/// Whether the error says that an owner lost a right: nothing to be tried again by itself.
pub fn is_lost_right(e: &Error) -> bool {
    e.kind() == ErrorKind::Query && e.sqlstate() == Some("42501")
}

/// The first of the relations that the sidecar's own role may not read, as a reason and a hint: without that right
/// there is no dataflow over it, only recomputation with the owner's rights.
pub async fn unreadable(client: &Client, relations: &[u32]) -> Result<Option<(String, String)>> {
    const SQL: &str = "select n.nspname::text, c.relname::text, current_user::text,
            pg_catalog.has_schema_privilege(n.oid, 'USAGE')
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.oid = any ($1) and not (pg_catalog.has_schema_privilege(n.oid, 'USAGE')
            and pg_catalog.has_table_privilege(c.oid, 'SELECT')) order by c.oid limit 1";
    let row = client.query_opt(SQL, &[&relations]).await.map_err(error)?;
    Ok(row.map(|row| {
        let (schema, name, role): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let (schema, name) = (quote_if_needed(&schema), quote_if_needed(&name));
        let grantee = quote_if_needed(&role);
        let usage = match row.get::<_, bool>(3) {
            true => String::new(),
            false => format!("grant usage on schema {schema} to {grantee}; "),
        };
        (
            format!("the sidecar's role {role} has no SELECT right on {schema}.{name}"),
            format!("{usage}grant select on {schema}.{name} to {grantee}"),
        )
    }))
}

/// As people write names: quoted only where SQL would read another name.
fn quote_if_needed(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if starts && name.chars().all(plain) { name.to_owned() } else { quote(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_only_where_needed() {
        assert_eq!(quote_if_needed("orders_2"), "orders_2");
        assert_eq!(quote_if_needed("Orders"), "\"Orders\"");
        assert_eq!(quote_if_needed("2x"), "\"2x\"");
        assert_eq!(quote_if_needed(""), "\"\"");
    }
}
