//! What an expression depends on besides its inputs, and whether it can run users' code.
//!
//! Invariant: in doubt the worse answer; a node or object that is not known is volatile and not built in.

use super::deparse::type_of;
use super::facts::Facts;
use super::node::{Node, Value};
use super::oids::{FIRST_NORMAL, Oids};

/// Nodes that compute only through the functions they name, or nothing at all.
const PURE: &[&str] = &[
    "VAR",
    "CONST",
    "PARAM",
    "FUNCEXPR",
    "OPEXPR",
    "DISTINCTEXPR",
    "NULLIFEXPR",
    "SCALARARRAYOPEXPR",
    "BOOLEXPR",
    "NULLTEST",
    "BOOLEANTEST",
    "CASEEXPR",
    "CASEWHEN",
    "CASETESTEXPR",
    "COALESCEEXPR",
    "MINMAXEXPR",
    "ARRAYEXPR",
    "ROWEXPR",
    "NAMEDROW",
    "ROWCOMPAREEXPR",
    "SUBSCRIPTINGREF",
    "FIELDSELECT",
    "RELABELTYPE",
    "COERCEVIAIO",
    "ARRAYCOERCEEXPR",
    "COERCETODOMAIN",
    "COERCETODOMAINVALUE",
    "CONVERTROWTYPEEXPR",
    "COLLATEEXPR",
    "NAMEDARGEXPR",
    "AGGREF",
    "WINDOWFUNC",
    "GROUPINGFUNC",
    "TARGETENTRY",
    "SORTGROUPCLAUSE",
    "SORTITEM",
    "OVER",
];

/// Depend on settings or the session, never on more.
const STABLE: &[&str] = &[
    "SQLVALUEFUNCTION",
    "XMLEXPR",
    "JSONVALUEEXPR",
    "JSONFORMAT",
    "JSONRETURNING",
    "JSONCONSTRUCTOREXPR",
    "JSONISPREDICATE",
    "JSONEXPR",
    "JSONBEHAVIOR",
];

/// `i`, `s` or `v` (`provolatile`): the worst of everything the expression calls, operators, casts through text and
/// the checks of domains included (the server itself leaves those checks out).
pub fn volatility(node: &Node, facts: &Facts) -> char {
    let mut worst = 'i';
    node.walk(&mut |n| worst = worse(worst, own(n, facts)));
    worst
}

fn worse(a: char, b: char) -> char {
    let rank = |c| match c {
        'i' => 0,
        's' => 1,
        _ => 2,
    };
    if rank(a) >= rank(b) { a } else { b }
}

fn own(node: &Node, facts: &Facts) -> char {
    if STABLE.contains(&node.tag.as_str()) {
        return 's';
    }
    if !PURE.contains(&node.tag.as_str()) {
        return 'v';
    }
    let mut oids = Oids::default();
    oids.add(&Node { tag: node.tag.clone(), fields: scalars(node) });
    let function = |oid: &u32| facts.functions.get(oid).map_or('v', |f| f.volatility);
    let operator = |oid: &u32| facts.operators.get(oid).map_or('v', |o| function(&o.function));
    let mut worst = oids.functions.iter().map(function).fold('i', worse);
    if node.field("opfuncid").as_int().unwrap_or(0) == 0 {
        // The operators behind an aggregate's ORDER BY and DISTINCT are here too: comparisons.
        worst = oids.operators.iter().map(operator).fold(worst, worse);
    }
    match node.tag.as_str() {
        "COERCEVIAIO" => {
            let output = node.node("arg").and_then(type_of).ok();
            let output = output.and_then(|t| facts.types.get(&t)).map(|t| t.output);
            let input = node.oid("resulttype").ok().and_then(|t| facts.types.get(&t)).map(|t| t.input);
            let io = [input, output].map(|f| f.map_or('v', |f| function(&f)));
            worse(worst, worse(io[0], io[1]))
        }
        "COERCETODOMAIN" => worse(worst, domain(node, facts)),
        _ => worst,
    }
}

fn scalars(node: &Node) -> Vec<(String, Value)> {
    let fields = node.fields.iter().filter(|(_, v)| match v {
        Value::Node(_) => false,
        Value::List(items) => items.iter().all(|i| i.as_int().is_some()),
        _ => true,
    });
    fields.cloned().collect()
}

fn domain(node: &Node, facts: &Facts) -> char {
    let mut worst = 'i';
    let mut ty = node.oid("resulttype").ok();
    while let Some(oid) = ty.filter(|oid| *oid != 0) {
        let Some(facts_of_type) = facts.types.get(&oid) else { return 'v' };
        worst = facts_of_type.checks.iter().map(|c| volatility(c, facts)).fold(worst, worse);
        ty = Some(facts_of_type.parent);
    }
    worst
}

/// Whether evaluating the expression can run nothing but built-in code over its inputs: all functions, operators,
/// collations and types are those of initdb. Enums, and arrays, rows, ranges and domains made of such types, count as
/// built in; volatile functions and those that run queries given as text or table names do not.
pub fn builtin_only(node: &Node, facts: &Facts) -> bool {
    let mut oids = Oids::default();
    oids.add(node);
    let function = |oid: &u32| {
        facts.functions.get(oid).is_some_and(|f| {
            f.is_builtin() && f.volatility != 'v' && !f.name.contains("to_xml") && f.name != "ts_rewrite"
        })
    };
    let operator =
        |oid: &u32| *oid < FIRST_NORMAL && facts.operators.get(oid).is_some_and(|o| function(&o.function));
    oids.functions.iter().all(function)
        && oids.operators.iter().all(operator)
        && oids.collations.iter().all(|c| *c < FIRST_NORMAL)
        && oids.types.iter().all(|t| builtin_type(*t, facts, 0))
        && volatility(node, facts) != 'v'
}

fn builtin_type(oid: u32, facts: &Facts, depth: usize) -> bool {
    if oid < FIRST_NORMAL {
        return true;
    }
    let Some(ty) = facts.types.get(&oid).filter(|_| depth < 32) else { return false };
    match ty.typtype {
        'e' => true,
        'd' => ty.checks.iter().all(|c| builtin_only(c, facts)) && builtin_type(ty.parent, facts, depth + 1),
        'b' if ty.category == 'A' && ty.length == -1 => builtin_type(ty.element, facts, depth + 1),
        'c' => facts
            .relations
            .get(&ty.relation)
            .is_some_and(|r| r.columns.iter().all(|c| builtin_type(c.ty.oid, facts, depth + 1))),
        _ => false,
    }
}
