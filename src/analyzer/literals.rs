//! Texts for constants of types whose bytes are not decoded here (jsonb, arrays, ranges, inet, extension types ...).
//!
//! The server prints such a constant in the view's definition as `'text'::type`. Every string literal of the
//! definition is tried: the one that the server reads to the very same bytes is the constant's text. Exact for any type,
//! and without its format.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::GenericClient;

use super::deparse::{is_decodable, quote_literal, type_name};
use super::load::Loaded;
use super::node::{Node, Value};
use super::{lookup, verify};
use crate::error::{ErrorKind, Result};

const DEFINITIONS: &str = "select coalesce(pg_catalog.pg_get_viewdef(v), '') \
    from pg_catalog.unnest($1::pg_catalog.oid[]) as u(v)";

const EXPRESSIONS: &str = "select coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), '') \
    from pg_catalog.pg_attrdef d where d.adrelid operator(pg_catalog.=) any ($1)";

/// At most this many attempts: each is a round trip.
const MAX_ATTEMPTS: usize = 1000;

/// Puts the texts into `loaded.facts.literals`. `definition` is the defining query's own text
/// (`pg_get_viewdef`), given by the caller because its view may not be committed yet. A constant whose text is not found
/// stays without; only the expression that holds it is refused.
pub async fn find<C: GenericClient + Sync>(
    client: &mut C,
    loaded: &mut Loaded,
    definition: &str,
) -> Result<()> {
    let mut wanted = undecodable(loaded);
    if wanted.is_empty() {
        return Ok(());
    }
    let views: Vec<u32> = loaded.views.keys().copied().collect();
    let relations: Vec<u32> = loaded.generated.keys().map(|(relation, _)| *relation).collect();
    let mut texts = vec![definition.to_owned()];
    for (sql, oids) in [(DEFINITIONS, &views), (EXPRESSIONS, &relations)] {
        if !oids.is_empty() {
            let rows =
                client.query(sql, &[oids]).await.map_err(|e| lookup::failed(e, "read a definition"))?;
            texts.extend(rows.iter().map(|r| r.get::<_, String>(0)));
        }
    }
    let literals: BTreeSet<String> = texts.iter().flat_map(|t| string_literals(t)).collect();
    let mut attempts = Vec::new();
    for ty in wanted.keys() {
        attempts.extend(literals.iter().map(|literal| (*ty, literal.as_str())));
    }
    attempts.truncate(MAX_ATTEMPTS);
    for (ty, literal) in attempts {
        let missing = wanted.get(&ty).is_some_and(|bytes| !bytes.is_empty());
        let Some(name) = type_name(&loaded.facts, ty, -1).ok().filter(|_| missing) else { continue };
        let select = format!("select {}::{name} as c", quote_literal(literal));
        let bytes = match verify::probe(client, &select).await {
            Ok(query) => constant_bytes(&query, ty),
            Err(e) => match e.kind() {
                ErrorKind::Connection
                | ErrorKind::Contention
                | ErrorKind::Privilege
                | ErrorKind::ServerSetup => {
                    return Err(e);
                }
                // The type does not take this text.
                _ => None,
            },
        };
        if let Some(bytes) = bytes.filter(|b| wanted.get_mut(&ty).is_some_and(|w| w.remove(b))) {
            loaded.facts.literals.insert((ty, bytes), literal.to_owned());
        }
    }
    Ok(())
}

fn undecodable(loaded: &Loaded) -> BTreeMap<u32, BTreeSet<Vec<u8>>> {
    let mut wanted: BTreeMap<u32, BTreeSet<Vec<u8>>> = BTreeMap::new();
    let roots = std::iter::once(&loaded.query).chain(loaded.views.values()).chain(loaded.generated.values());
    for root in roots {
        root.walk(&mut |n| {
            if n.tag != "CONST" || is_decodable(n, &loaded.facts) {
                return;
            }
            if let (Ok(ty), Value::Datum { bytes, .. }) = (n.oid("consttype"), n.field("constvalue")) {
                wanted.entry(ty).or_default().insert(bytes.clone());
            }
        });
    }
    wanted
}

fn constant_bytes(query: &Node, ty: u32) -> Option<Vec<u8>> {
    let target = query.nodes("targetList").ok()?.into_iter().next()?;
    let constant =
        target.node("expr").ok().filter(|e| e.tag == "CONST" && e.oid("consttype").ok() == Some(ty))?;
    match constant.field("constvalue") {
        Value::Datum { bytes, .. } => Some(bytes.clone()),
        _ => None,
    }
}

/// The string literals of a statement that the server printed: `'...'` and `E'...'`. Quoted names are passed over.
fn string_literals(sql: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut chars = sql.chars().peekable();
    let mut escapes = false;
    while let Some(c) = chars.next() {
        match c {
            '"' => while chars.next().is_some_and(|c| c != '"') {},
            '\'' => {
                let mut text = String::new();
                while let Some(c) = chars.next() {
                    match c {
                        '\\' if escapes => text.extend(chars.next()),
                        '\'' if chars.peek() == Some(&'\'') => text.extend(chars.next()),
                        '\'' => break,
                        c => text.push(c),
                    }
                }
                found.push(text);
            }
            _ => {}
        }
        escapes = c == 'E';
    }
    found
}

#[cfg(test)]
mod tests {
    use super::string_literals;

    #[test]
    fn literals_are_found_with_their_quotes_resolved() {
        let sql = r#"SELECT "it's", 'a''b'::text, E'c\\d''' , '{"k": 1}'::jsonb AS "E" FROM t"#;
        assert_eq!(string_literals(sql), ["a'b", "c\\d'", r#"{"k": 1}"#]);
    }
}
