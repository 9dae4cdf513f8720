//! Type, length and collation of an analysed expression (`exprType`, `exprTypmod`, `exprCollation` of the server).

use super::unsupported_tag;
use crate::analyzer::node::{Node, Value};
use crate::error::{Error, Result};

const BOOL: u32 = 16;

/// OID of the expression's type.
pub fn type_of(node: &Node) -> Result<u32> {
    let field = match node.tag.as_str() {
        "VAR" => "vartype",
        "CONST" => "consttype",
        "PARAM" => "paramtype",
        "AGGREF" => "aggtype",
        "WINDOWFUNC" => "wintype",
        "FUNCEXPR" => "funcresulttype",
        "OPEXPR" | "DISTINCTEXPR" => "opresulttype",
        // The type of the first argument after coercion.
        "NULLIFEXPR" => return type_of(first(node)?),
        "SCALARARRAYOPEXPR" | "BOOLEXPR" | "NULLTEST" | "BOOLEANTEST" | "ROWCOMPAREEXPR" => return Ok(BOOL),
        "GROUPINGFUNC" => return Ok(23),
        "CASEEXPR" => "casetype",
        "COALESCEEXPR" => "coalescetype",
        "MINMAXEXPR" => "minmaxtype",
        "ARRAYEXPR" => "array_typeid",
        "ROWEXPR" | "NAMEDROW" => "row_typeid",
        "SUBSCRIPTINGREF" => "refrestype",
        "FIELDSELECT" | "RELABELTYPE" | "COERCEVIAIO" | "CONVERTROWTYPEEXPR" | "ARRAYCOERCEEXPR"
        | "COERCETODOMAIN" => "resulttype",
        "COLLATEEXPR" | "NAMEDARGEXPR" => return type_of(node.node("arg")?),
        "SUBPLAN" => "resulttype",
        "CASETESTEXPR" | "COERCETODOMAINVALUE" => "typeId",
        "SQLVALUEFUNCTION" => "type",
        tag => return Err(unsupported_tag(tag)),
    };
    node.oid(field)
}

/// The expression's typmod; -1 where it has none or where the server derives it from several parts.
pub fn typmod_of(node: &Node) -> i32 {
    let field = match node.tag.as_str() {
        "VAR" => "vartypmod",
        "CONST" => "consttypmod",
        "PARAM" => "paramtypmod",
        "RELABELTYPE" | "COERCETODOMAIN" | "ARRAYCOERCEEXPR" | "FIELDSELECT" => "resulttypmod",
        "SUBSCRIPTINGREF" => "reftypmod",
        "CASETESTEXPR" | "COERCETODOMAINVALUE" => "typeMod",
        "FUNCEXPR" => return length_coercion(node).unwrap_or(-1),
        "COLLATEEXPR" | "NAMEDARGEXPR" => {
            return node.optional_node("arg").map_or(-1, typmod_of);
        }
        _ => return -1,
    };
    node.int(field).ok().and_then(|t| i32::try_from(t).ok()).unwrap_or(-1)
}

/// The typmod that a cast function applies (`exprIsLengthCoercion`): shown as a cast, two or three arguments, the
/// second a constant int4.
pub(in crate::analyzer) fn length_coercion(node: &Node) -> Option<i32> {
    let args = node.list("args");
    if !matches!(node.field("funcformat"), Value::Int(1 | 2)) || !matches!(args.len(), 2 | 3) {
        return None;
    }
    let typmod = args[1].as_node().filter(|n| n.tag == "CONST" && n.field("consttype") == &Value::Int(23))?;
    match typmod.field("constvalue") {
        Value::Datum { bytes, .. } => bytes.first_chunk().map(|b| i32::from_le_bytes(*b)),
        _ => None,
    }
}

/// OID of the expression's collation, 0 for none.
pub fn collation_of(node: &Node) -> Result<u32> {
    let field = match node.tag.as_str() {
        "VAR" => "varcollid",
        "CONST" => "constcollid",
        "PARAM" => "paramcollid",
        "AGGREF" => "aggcollid",
        "WINDOWFUNC" => "wincollid",
        "FUNCEXPR" => "funccollid",
        "OPEXPR" | "DISTINCTEXPR" | "NULLIFEXPR" => "opcollid",
        "CASEEXPR" => "casecollid",
        "COALESCEEXPR" => "coalescecollid",
        "MINMAXEXPR" => "minmaxcollid",
        "ARRAYEXPR" => "array_collid",
        "SUBSCRIPTINGREF" => "refcollid",
        "FIELDSELECT" | "RELABELTYPE" | "COERCEVIAIO" | "ARRAYCOERCEEXPR" | "COERCETODOMAIN" => {
            "resultcollid"
        }
        "COLLATEEXPR" => "collOid",
        "NAMEDARGEXPR" => return collation_of(node.node("arg")?),
        "CASETESTEXPR" | "COERCETODOMAINVALUE" => "collation",
        _ => return Ok(0),
    };
    node.oid(field)
}

pub(super) fn first(node: &Node) -> Result<&Node> {
    let arg = node.nodes("args")?.into_iter().next();
    arg.ok_or_else(|| Error::unsupported(format!("{} without arguments", node.tag)))
}
