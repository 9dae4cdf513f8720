//! Names and quoting.

use crate::analyzer::facts::{Facts, Function, Operator, Type};
use crate::error::{Error, Result};

/// `pg_collation.oid` of "default".
const DEFAULT_COLLATION: u32 = 100;

/// `"name"`, always quoted: case and keywords can't matter.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal that reads the same whatever `standard_conforming_strings` is.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    match quoted.contains('\\') {
        true => format!("E'{}'", quoted.replace('\\', "\\\\")),
        false => format!("'{quoted}'"),
    }
}

fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_identifier(schema), quote_identifier(name))
}

fn gone(what: &str, oid: u32) -> Error {
    Error::unsupported(format!("{what} {oid} is not in the catalog (any more)"))
}

pub(super) fn function_facts(facts: &Facts, oid: u32) -> Result<&Function> {
    facts.functions.get(&oid).ok_or_else(|| gone("function", oid))
}

pub(super) fn function(facts: &Facts, oid: u32) -> Result<String> {
    function_facts(facts, oid).map(|f| qualified(&f.schema, &f.name))
}

pub(super) fn operator_facts(facts: &Facts, oid: u32) -> Result<&Operator> {
    facts.operators.get(&oid).ok_or_else(|| gone("operator", oid))
}

pub(super) fn operator(facts: &Facts, oid: u32) -> Result<String> {
    let operator = operator_facts(facts, oid)?;
    Ok(format!("OPERATOR({}.{})", quote_identifier(&operator.schema), operator.name))
}

/// `OPERATOR("s".op)`, to be written between operands or after USING.
pub fn operator_name(facts: &Facts, oid: u32) -> Result<String> {
    operator(facts, oid)
}

pub(super) fn collation(facts: &Facts, oid: u32) -> Result<String> {
    let collation = facts.collations.get(&oid).ok_or_else(|| gone("collation", oid))?;
    Ok(qualified(&collation.schema, &collation.name))
}

pub(super) fn type_facts(facts: &Facts, oid: u32) -> Result<&Type> {
    facts.types.get(&oid).ok_or_else(|| gone("type", oid))
}

/// A type's schema-qualified name with its typmod, as it can stand after `::`.
pub fn type_name(facts: &Facts, oid: u32, typmod: i32) -> Result<String> {
    let ty = type_facts(facts, oid)?;
    Ok(qualified(&ty.schema, &ty.name) + &typmod_suffix(facts, ty, typmod)?)
}

/// ` COLLATE "s"."c"` that a cast from text needs to have the collation, or nothing. Only the default collation comes by
/// itself: casts carry their argument's collation along, not the type's own (`name` is "C").
pub fn collate_clause(facts: &Facts, ty: u32, collation: u32) -> Result<String> {
    match collation == 0 || (collation == DEFAULT_COLLATION && type_facts(facts, ty)?.collation == collation)
    {
        true => Ok(String::new()),
        false => Ok(format!(" COLLATE {}", self::collation(facts, collation)?)),
    }
}

/// The modifiers as the type's `typmodin` takes them. Types of extensions: as `format_type` printed them.
fn typmod_suffix(facts: &Facts, ty: &Type, typmod: i32) -> Result<String> {
    if typmod < 0 {
        return Ok(String::new());
    }
    let is_array = ty.category == 'A' && ty.length == -1 && ty.element != 0;
    let element = if is_array { ty.element } else { ty.oid };
    let modifiers = match element {
        // varchar, bpchar: length and a header of four bytes.
        1043 | 1042 => format!("({})", typmod - 4),
        // numeric: precision and a scale of eleven bits with sign (unsigned and below 1001 in 14).
        1700 => format!("({}, {})", ((typmod - 4) >> 16) & 0xffff, (((typmod - 4) & 0x7ff) ^ 1024) - 1024),
        // bit, varbit; time, timetz, timestamp, timestamptz.
        1560 | 1562 | 1083 | 1266 | 1114 | 1184 => format!("({typmod})"),
        // interval: field mask and precision; 0xffff is "any precision".
        1186 => match typmod & 0xffff {
            0xffff => format!("({})", (typmod >> 16) & 0x7fff),
            precision => format!("({}, {precision})", (typmod >> 16) & 0x7fff),
        },
        _ => facts.typmods.get(&(ty.oid, typmod)).cloned().ok_or_else(|| {
            Error::unsupported(format!("the modifier {typmod} of type {}.{}", ty.schema, ty.name))
        })?,
    };
    Ok(modifiers)
}
