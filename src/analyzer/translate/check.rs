//! What may not be in an expression at all, native or not: functions whose result is not a function of the
//! row, set-returning functions, domains with constraints.

use crate::analyzer::facts::{Facts, Function};
use crate::analyzer::node::Node;
use crate::analyzer::settings::{self, Dependence};

use super::refusal::{Refusal, Step};
use super::types;

/// Scalar expression nodes whose meaning is covered by the functions, operators and types they name.
const KNOWN: &[&str] = &[
    "VAR",
    "SUBPLAN",
    "CONST",
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
    "RELABELTYPE",
    "COLLATEEXPR",
    "COERCEVIAIO",
    "ARRAYCOERCEEXPR",
    "ARRAYEXPR",
    "ROWEXPR",
    "ROWCOMPAREEXPR",
    "SUBSCRIPTINGREF",
    "FIELDSELECT",
    "NAMEDARGEXPR",
    "CONVERTROWTYPEEXPR",
    "NAMEDROW",
];

/// Refuses `node` if anything in it keeps its value from being a function of the row.
pub fn scalar(facts: &Facts, node: &Node) -> Step<()> {
    let mut result = Ok(());
    node.walk(&mut |n| {
        if result.is_ok() {
            result = one(facts, n);
        }
    });
    result
}

fn one(facts: &Facts, node: &Node) -> Step<()> {
    let tag = node.tag.as_str();
    match tag {
        "WINDOWFUNC" => Err(super::refused_window()),
        "AGGREF" | "GROUPINGFUNC" => Err(Refusal::new(
            "unsupported.nested_aggregate",
            "the query has an aggregate where only its own query level could compute it",
        )),
        "SQLVALUEFUNCTION" => Err(Refusal::new(
            "unsupported.stable_function",
            "the query uses the current time, date, user or schema, which changes without any change of a row",
        )),
        "NEXTVALUEEXPR" => Err(volatile("nextval")),
        // A column of a subquery, in the test of IN, ANY and ALL.
        "PARAM" if node.field("paramkind").as_int() == Some(2) => Ok(()),
        "PARAM" => Err(Refusal::new("unsupported.parameter", "the query has a parameter")),
        "COERCETODOMAIN" => {
            let name = types::type_name(facts, node.oid("resulttype")?);
            Err(Refusal::new(
                "unsupported.domain_cast",
                format!("the query casts to the domain {name}, whose constraints may change or fail"),
            )
            .hint("cast to the domain's base type instead"))
        }
        "FUNCEXPR" => {
            let oid = node.oid("funcid")?;
            if node.bool("funcretset") {
                return Err(set_returning(facts, oid));
            }
            function(facts, oid, &node.nodes("args")?)
        }
        "OPEXPR" | "DISTINCTEXPR" | "NULLIFEXPR" | "SCALARARRAYOPEXPR" => {
            operator(facts, node.oid("opno")?, &node.nodes("args")?)
        }
        "ROWCOMPAREEXPR" => {
            for opno in node.list("opnos") {
                let oid = opno.as_int().and_then(|o| u32::try_from(o).ok()).unwrap_or(0);
                operator(facts, oid, &[])?;
            }
            Ok(())
        }
        "COERCEVIAIO" => {
            let from = types::type_of(facts, node.node("arg")?)?;
            let to = types::type_of(facts, node)?;
            if settings::of_conversion(facts, from.oid, to.oid) == Dependence::More {
                return Err(Refusal::new(
                    "unsupported.stable_function",
                    format!(
                        "the cast from {} to {} can change with time or the catalog, without any change of a row",
                        types::type_name(facts, from.oid),
                        types::type_name(facts, to.oid)
                    ),
                )
                .hint("use a function with a fixed format, e.g. to_date(text, 'YYYY-MM-DD')"));
            }
            Ok(())
        }
        _ if KNOWN.contains(&tag) => Ok(()),
        _ => Err(Refusal::new(
            "unsupported.expression",
            format!("the query contains an expression of an unsupported kind ({tag})"),
        )),
    }
}

fn operator(facts: &Facts, oid: u32, args: &[&Node]) -> Step<()> {
    let operator = facts.operators.get(&oid).ok_or_else(|| missing("an operator"))?;
    function(facts, operator.function, args)
}

fn function(facts: &Facts, oid: u32, args: &[&Node]) -> Step<()> {
    let function = facts.functions.get(&oid).ok_or_else(|| missing("a function"))?;
    match function.volatility {
        'i' => Ok(()),
        's' if settings::of_function(facts, function, args) != Dependence::More => Ok(()),
        's' => Err(Refusal::new(
            "unsupported.stable_function",
            format!(
                "{} is stable: its result can change with time, the catalog or other tables and without any change of a row",
                describe(facts, function)
            ),
        )
        .hint("functions whose result depends on the row and settings alone are maintained")),
        _ => Err(volatile(&describe(facts, function))),
    }
}

fn describe(facts: &Facts, function: &Function) -> String {
    let args: Vec<String> = function.arguments.iter().map(|a| types::type_name(facts, *a)).collect();
    let schema =
        if function.schema == "pg_catalog" { String::new() } else { format!("{}.", function.schema) };
    format!("{schema}{}({})", function.name, args.join(", "))
}

fn volatile(what: &str) -> Refusal {
    Refusal::new(
        "unsupported.volatile_function",
        format!("{what} is volatile: it gives another result on each call"),
    )
}

fn set_returning(facts: &Facts, oid: u32) -> Refusal {
    let name = facts.functions.get(&oid).map_or_else(|| "a function".to_owned(), |f| describe(facts, f));
    Refusal::new("unsupported.set_returning_function", format!("{name} returns a set of rows"))
}

fn missing(what: &str) -> Refusal {
    Refusal::new("unsupported.tree", format!("{what} that the query names is not in the catalog (any more)"))
}
