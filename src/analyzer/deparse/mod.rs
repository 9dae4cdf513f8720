//! Analysed expressions back to SQL that means the same whatever the session's `search_path` is.
//!
//! Purpose: text for the expressions that PostgreSQL evaluates. Everything is named by OID: functions and types with
//! their schema, operators as `OPERATOR(s.op)`, implicit casts and collations spelled out. Invariant: what this makes
//! is only ever used after [`super::verify`] has seen the server analyse it to the same tree; an unknown node is
//! `Unsupported`. Place in the data's way: control path; the text runs in the evaluation sessions.

mod calls;
mod constants;
mod forms;
mod names;
mod numeric;
mod rows;
mod types;

pub use names::{collate_clause, operator_name, quote_identifier, quote_literal, type_name};
pub(super) use rows::{RECORD, RECORD_ARRAY};
pub(super) use types::length_coercion;
pub use types::{collation_of, type_of, typmod_of};

use super::facts::Facts;
use super::node::{Node, Value};
use crate::error::{Error, Result};

/// Says which input column (0-based) stands for a node. It is asked for every node, outermost first, so that not only
/// a Var but also an aggregate or a group expression can be an input. A Var it does not know is an error.
pub type Inputs<'a> = &'a (dyn Fn(&Node) -> Option<usize> + Sync);

/// What an expression is read against.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    pub facts: &'a Facts,
    pub inputs: Inputs<'a>,
}

/// SQL of one scalar expression over `x.c1`, `x.c2` ... (input column `i` is `x.c{i + 1}`).
pub fn expression(node: &Node, scope: Scope<'_>) -> Result<String> {
    scope.expression(node)
}

/// Whether the constant can be written from its bytes alone; if not, [`super::literals`] looks for its text.
pub fn is_decodable(constant: &Node, facts: &Facts) -> bool {
    constants::constant(constant, facts).is_ok()
}

fn unsupported_tag(tag: &str) -> Error {
    let what = match tag {
        "SQLVALUEFUNCTION" => "CURRENT_DATE, CURRENT_USER and their like give other values later".to_owned(),
        "NEXTVALUEEXPR" => "a sequence's next value can't be maintained".to_owned(),
        "SUBLINK" => "a subquery inside an expression".to_owned(),
        "AGGREF" | "WINDOWFUNC" | "GROUPINGFUNC" => format!("an aggregate or window function ({tag}) inside"),
        tag => format!("expression node {tag}"),
    };
    Error::unsupported(format!("the expression can't be given to PostgreSQL for single rows: {what}"))
}

impl Scope<'_> {
    fn expression(&self, node: &Node) -> Result<String> {
        if let Some(input) = (self.inputs)(node) {
            return Ok(format!("x.c{}", input + 1));
        }
        if node.bool("funcretset") || node.bool("opretset") {
            return Err(Error::unsupported("a set-returning function in an expression"));
        }
        match node.tag.as_str() {
            "VAR" => Err(Error::unsupported(format!(
                "the expression reads column {} of range table entry {}, which is not among its inputs",
                node.int("varattno")?,
                node.int("varno")?
            ))),
            "CONST" => constants::constant(node, self.facts),
            "FUNCEXPR" => self.function(node),
            "OPEXPR" => self.operator(node),
            "DISTINCTEXPR" => self.equality(node, "(", " IS DISTINCT FROM ", ")"),
            "NULLIFEXPR" => self.equality(node, "NULLIF(", ", ", ")"),
            "SCALARARRAYOPEXPR" => self.array_operator(node),
            "BOOLEXPR" => self.boolean(node),
            "NULLTEST" => self.null_test(node),
            "BOOLEANTEST" => self.boolean_test(node),
            "CASEEXPR" => self.case(node),
            "COALESCEEXPR" => Ok(format!("COALESCE({})", self.list(node, "args")?)),
            "MINMAXEXPR" => self.min_max(node),
            "ARRAYEXPR" => self.array(node),
            "ROWEXPR" => self.row(node),
            "NAMEDROW" => self.named_row(node),
            "ROWCOMPAREEXPR" => self.row_comparison(node),
            "SUBSCRIPTINGREF" => self.subscript(node),
            "FIELDSELECT" => self.field(node),
            "RELABELTYPE" => self.cast(node.node("arg")?, node.oid("resulttype")?, typmod_of(node)),
            "COERCEVIAIO" | "CONVERTROWTYPEEXPR" => self.cast(node.node("arg")?, node.oid("resulttype")?, -1),
            "ARRAYCOERCEEXPR" => self.array_cast(node),
            "COERCETODOMAIN" => self.domain(node),
            "COLLATEEXPR" => Ok(format!(
                "({} COLLATE {})",
                self.expression(node.node("arg")?)?,
                names::collation(self.facts, node.oid("collOid")?)?
            )),
            "NAMEDARGEXPR" => self.named_argument(node),
            "AGGREF" if node.field("agglevelsup") == &Value::Int(0) => self.aggregate(node),
            "WINDOWFUNC" if node.optional_node("over").is_some() => self.window(node),
            tag => Err(unsupported_tag(tag)),
        }
    }

    fn list(&self, node: &Node, field: &str) -> Result<String> {
        Ok(self.items(node, field)?.join(", "))
    }

    fn items(&self, node: &Node, field: &str) -> Result<Vec<String>> {
        node.nodes(field)?.into_iter().map(|n| self.expression(n)).collect()
    }

    /// An item of a list that may hold NULL (an omitted slice bound).
    fn optional(&self, value: &Value) -> Result<String> {
        value.as_node().map_or_else(|| Ok(String::new()), |n| self.expression(n))
    }
}
