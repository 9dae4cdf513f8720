//! Types of expressions, as `nodes/nodeFuncs.c` (`exprType`, `exprTypmod`, `exprCollation`) gives them.

use crate::analyzer::facts::Facts;
use crate::analyzer::node::Node;
use crate::row::{TypeClass, TypeInfo};

use super::refusal::{Refusal, Step};

/// `pg_type.oid` of boolean.
pub const BOOL: u32 = 16;
const INT4: u32 = 23;

/// Result type of an expression node.
pub fn type_of(facts: &Facts, node: &Node) -> Step<TypeInfo> {
    let (ty, typmod, collation) = match node.tag.as_str() {
        "VAR" => ("vartype", "vartypmod", "varcollid"),
        "CONST" => ("consttype", "consttypmod", "constcollid"),
        "FUNCEXPR" => {
            return Ok(info(
                facts,
                node.oid("funcresulttype")?,
                function_typmod(node),
                node.oid("funccollid")?,
            ));
        }
        "OPEXPR" | "NULLIFEXPR" => ("opresulttype", "", "opcollid"),
        "RELABELTYPE" => ("resulttype", "resulttypmod", "resultcollid"),
        "COERCEVIAIO" => ("resulttype", "", "resultcollid"),
        "ARRAYCOERCEEXPR" => ("resulttype", "resulttypmod", "resultcollid"),
        "COERCETODOMAIN" => ("resulttype", "resulttypmod", "resultcollid"),
        "CONVERTROWTYPEEXPR" => ("resulttype", "", ""),
        "FIELDSELECT" => ("resulttype", "resulttypmod", "resultcollid"),
        "CASETESTEXPR" => ("typeId", "typeMod", "collation"),
        "SUBSCRIPTINGREF" => ("refrestype", "reftypmod", "refcollid"),
        "ARRAYEXPR" => ("array_typeid", "", "array_collid"),
        "ROWEXPR" | "NAMEDROW" => ("row_typeid", "", ""),
        "SUBPLAN" => ("resulttype", "resulttypmod", "resultcollid"),
        "PARAM" => ("paramtype", "paramtypmod", "paramcollid"),
        "SUBLINK" => return super::subquery::type_of(facts, node),
        "AGGREF" => ("aggtype", "", "aggcollid"),
        "WINDOWFUNC" => ("wintype", "", "wincollid"),
        "GROUPINGFUNC" => return Ok(info(facts, INT4, -1, 0)),
        "CASEEXPR" => {
            let mut branches = Vec::new();
            for when in node.nodes("args")? {
                branches.push(type_of(facts, when.node("result")?)?);
            }
            if let Some(otherwise) = node.optional_node("defresult") {
                branches.push(type_of(facts, otherwise)?);
            }
            let ty = node.oid("casetype")?;
            return Ok(info(facts, ty, common_typmod(ty, &branches), node.oid("casecollid")?));
        }
        "COALESCEEXPR" | "MINMAXEXPR" => {
            let args: Step<Vec<_>> = node.nodes("args")?.iter().map(|n| type_of(facts, n)).collect();
            let min_max = node.tag == "MINMAXEXPR";
            let ty = node.oid(if min_max { "minmaxtype" } else { "coalescetype" })?;
            let collation = node.oid(if min_max { "minmaxcollid" } else { "coalescecollid" })?;
            return Ok(info(facts, ty, common_typmod(ty, &args?), collation));
        }
        "BOOLEXPR" | "NULLTEST" | "BOOLEANTEST" | "DISTINCTEXPR" | "SCALARARRAYOPEXPR" | "ROWCOMPAREEXPR" => {
            return Ok(boolean(facts));
        }
        "COLLATEEXPR" => {
            let arg = type_of(facts, node.node("arg")?)?;
            return Ok(info(facts, arg.oid, arg.typmod, node.oid("collOid")?));
        }
        tag => {
            return Err(Refusal::new(
                "unsupported.expression",
                format!("the query contains an expression of an unsupported kind ({tag})"),
            ));
        }
    };
    let typmod = match typmod {
        "" => -1,
        field => i32::try_from(node.int(field)?).unwrap_or(-1),
    };
    let collation = if collation.is_empty() { 0 } else { node.oid(collation)? };
    Ok(info(facts, node.oid(ty)?, typmod, collation))
}

/// A type with its class (that of the base type, for a domain).
pub fn info(facts: &Facts, oid: u32, typmod: i32, collation: u32) -> TypeInfo {
    let base = facts.types.get(&oid).map_or(oid, |t| t.base);
    let typtype = facts.types.get(&base).map_or('b', |t| t.typtype);
    let deterministic = collation == 0 || facts.collations.get(&collation).is_some_and(|c| c.deterministic);
    TypeInfo { oid, typmod, collation, deterministic, class: TypeClass::of(base, typtype) }
}

pub fn boolean(facts: &Facts) -> TypeInfo {
    info(facts, BOOL, -1, 0)
}

/// The type's name for messages.
pub fn type_name(facts: &Facts, oid: u32) -> String {
    match facts.types.get(&oid) {
        Some(t) if t.schema == "pg_catalog" => t.name.clone(),
        Some(t) => format!("{}.{}", t.schema, t.name),
        None => format!("type {oid}"),
    }
}

/// A length coercion function carries the typmod as its constant second argument (`exprIsLengthCoercion`).
fn function_typmod(node: &Node) -> i32 {
    let cast = matches!(node.field("funcformat").as_int(), Some(1 | 2));
    let args = node.list("args");
    let second = args.get(1).and_then(|v| v.as_node()).filter(|n| n.tag == "CONST");
    match second {
        Some(n) if cast && n.oid("consttype").ok() == Some(23) && !n.bool("constisnull") => {
            super::constants::int4(n).unwrap_or(-1)
        }
        _ => -1,
    }
}

fn common_typmod(ty: u32, branches: &[TypeInfo]) -> i32 {
    match branches.first() {
        Some(first) if branches.iter().all(|b| b.oid == ty && b.typmod == first.typmod) => first.typmod,
        _ => -1,
    }
}
