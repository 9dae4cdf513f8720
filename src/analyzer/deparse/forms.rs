//! The SQL form of each expression node (`get_rule_expr` of the server, but with nothing left implicit).

use super::rows::RECORD;
use super::types::{first, length_coercion};
use super::{Scope, names, type_of, typmod_of};
use crate::analyzer::facts::Type;
use crate::analyzer::node::{Node, Value};
use crate::error::{Error, Result};

fn odd(node: &Node) -> Error {
    Error::unsupported(format!("expression node {} has an unexpected form", node.tag))
}

fn pick<'a>(node: &Node, field: &str, from: &[&'a str]) -> Result<&'a str> {
    let index = usize::try_from(node.int(field)?).ok();
    index.and_then(|i| from.get(i)).copied().ok_or_else(|| odd(node))
}

impl Scope<'_> {
    pub(super) fn cast(&self, arg: &Node, ty: u32, typmod: i32) -> Result<String> {
        Ok(format!("({})::{}", self.expression(arg)?, names::type_name(self.facts, ty, typmod)?))
    }

    /// `funcformat`: 0 call, 1 explicit cast, 2 implicit cast, 3 SQL syntax such as EXTRACT (callable all the same).
    pub(super) fn function(&self, node: &Node) -> Result<String> {
        let args = node.nodes("args")?;
        let is_cast = matches!(node.field("funcformat"), Value::Int(1 | 2));
        if is_cast && args.len() == 1 {
            return self.cast(args[0], node.oid("funcresulttype")?, -1);
        }
        if let Some(typmod) = length_coercion(node).filter(|_| is_explicit(&args)) {
            return self.cast(args[0], node.oid("funcresulttype")?, typmod);
        }
        let mut args = self.items(node, "args")?;
        if let Some(last) = args.last_mut().filter(|_| node.bool("funcvariadic")) {
            *last = format!("VARIADIC {last}");
        }
        Ok(format!("{}({})", names::function(self.facts, node.oid("funcid")?)?, args.join(", ")))
    }

    pub(super) fn operator(&self, node: &Node) -> Result<String> {
        let operator = names::operator(self.facts, node.oid("opno")?)?;
        match self.items(node, "args")?.as_slice() {
            [arg] => Ok(format!("({operator} {arg})")),
            [left, right] => Ok(format!("({left} {operator} {right})")),
            _ => Err(odd(node)),
        }
    }

    /// Constructs that take `=` by name: it can only be the one that every `search_path` finds.
    fn needs_catalog_operator(&self, oid: u32) -> Result<()> {
        let operator = names::operator_facts(self.facts, oid)?;
        match operator.schema == "pg_catalog" {
            true => Ok(()),
            false => Err(Error::unsupported(format!(
                "IS DISTINCT FROM, NULLIF or CASE x WHEN with the operator {}.{}",
                operator.schema, operator.name
            ))
            .with_hint("write the comparison with OPERATOR(schema.=) in a searched CASE")),
        }
    }

    pub(super) fn equality(&self, node: &Node, open: &str, between: &str, close: &str) -> Result<String> {
        self.needs_catalog_operator(node.oid("opno")?)?;
        match self.items(node, "args")?.as_slice() {
            [left, right] => Ok(format!("{open}{left}{between}{right}{close}")),
            _ => Err(odd(node)),
        }
    }

    pub(super) fn array_operator(&self, node: &Node) -> Result<String> {
        let operator = names::operator(self.facts, node.oid("opno")?)?;
        let quantifier = if node.bool("useOr") { "ANY" } else { "ALL" };
        match self.items(node, "args")?.as_slice() {
            [left, right] => Ok(format!("({left} {operator} {quantifier} ({right}))")),
            _ => Err(odd(node)),
        }
    }

    pub(super) fn boolean(&self, node: &Node) -> Result<String> {
        let args = self.items(node, "args")?;
        match (node.text("boolop").as_deref(), args.as_slice()) {
            (Some("not"), [arg]) => Ok(format!("(NOT {arg})")),
            (Some("and"), [_, _, ..]) => Ok(format!("({})", args.join(" AND "))),
            (Some("or"), [_, _, ..]) => Ok(format!("({})", args.join(" OR "))),
            _ => Err(odd(node)),
        }
    }

    pub(super) fn null_test(&self, node: &Node) -> Result<String> {
        let test = pick(node, "nulltesttype", &["NULL", "NOT NULL"])?;
        Ok(format!("({} IS {test})", self.expression(node.node("arg")?)?))
    }

    pub(super) fn boolean_test(&self, node: &Node) -> Result<String> {
        let tests = ["TRUE", "NOT TRUE", "FALSE", "NOT FALSE", "UNKNOWN", "NOT UNKNOWN"];
        let test = pick(node, "booltesttype", &tests)?;
        Ok(format!("({} IS {test})", self.expression(node.node("arg")?)?))
    }

    pub(super) fn case(&self, node: &Node) -> Result<String> {
        let tested = node.optional_node("arg");
        let mut sql = "(CASE".to_owned();
        if let Some(tested) = tested {
            sql += &format!(" {}", self.expression(tested)?);
        }
        for branch in node.nodes("args")? {
            let condition = branch.node("expr")?;
            let condition = if tested.is_some() { self.case_value(condition)? } else { condition };
            sql += &format!(
                " WHEN {} THEN {}",
                self.expression(condition)?,
                self.expression(branch.node("result")?)?
            );
        }
        Ok(format!("{sql} ELSE {} END)", self.expression(node.node("defresult")?)?))
    }

    /// `CASE x WHEN v`: the stored condition is `placeholder = v`, the placeholder perhaps under a cast.
    fn case_value<'a>(&self, condition: &'a Node) -> Result<&'a Node> {
        if condition.tag != "OPEXPR" {
            return Err(odd(condition));
        }
        self.needs_catalog_operator(condition.oid("opno")?)?;
        let args = condition.nodes("args")?;
        let mut placeholder = false;
        args.first().ok_or_else(|| odd(condition))?.walk(&mut |n| placeholder |= n.tag == "CASETESTEXPR");
        match args.as_slice() {
            [_, value] if placeholder => Ok(value),
            _ => Err(odd(condition)),
        }
    }

    pub(super) fn min_max(&self, node: &Node) -> Result<String> {
        let name = pick(node, "op", &["GREATEST", "LEAST"])?;
        Ok(format!("{name}({})", self.list(node, "args")?))
    }

    pub(super) fn array(&self, node: &Node) -> Result<String> {
        match self.list(node, "elements")? {
            none if none.is_empty() => {
                Ok(format!("ARRAY[]::{}", names::type_name(self.facts, node.oid("array_typeid")?, -1)?))
            }
            elements => Ok(format!("ARRAY[{elements}]")),
        }
    }

    pub(super) fn row(&self, node: &Node) -> Result<String> {
        let row = format!("ROW({})", self.list(node, "args")?);
        match node.oid("row_typeid")? {
            RECORD => Ok(row),
            ty => Ok(format!("({row})::{}", names::type_name(self.facts, ty, -1)?)),
        }
    }

    pub(super) fn row_comparison(&self, node: &Node) -> Result<String> {
        let operator = node.list("opnos").first().and_then(Value::as_int);
        let operator = operator.and_then(|o| u32::try_from(o).ok()).ok_or_else(|| odd(node))?;
        let operator = names::operator(self.facts, operator)?;
        Ok(format!("(ROW({}) {operator} ROW({}))", self.list(node, "largs")?, self.list(node, "rargs")?))
    }

    /// `(x)[i]` and `(x)[lower:upper]`; a bound may be omitted.
    pub(super) fn subscript(&self, node: &Node) -> Result<String> {
        if node.field("refassgnexpr") != &Value::Null {
            return Err(odd(node));
        }
        let (lower, upper) = (node.list("reflowerindexpr"), node.list("refupperindexpr"));
        let mut sql = format!("({})", self.expression(node.node("refexpr")?)?);
        for (i, bound) in upper.iter().enumerate() {
            let bound = self.optional(bound)?;
            match lower.get(i) {
                Some(low) => sql += &format!("[{} : {bound}]", self.optional(low)?),
                None => sql += &format!("[{bound}]"),
            }
        }
        Ok(sql)
    }

    pub(super) fn field(&self, node: &Node) -> Result<String> {
        let arg = node.node("arg")?;
        let ty = names::type_facts(self.facts, type_of(arg)?)?;
        let relation = names::type_facts(self.facts, ty.base)?.relation;
        let attnum = node.int("fieldnum")?;
        let columns = self.facts.relations.get(&relation).map(|r| r.columns.as_slice()).unwrap_or_default();
        let column = columns.iter().find(|c| i64::from(c.attnum) == attnum).ok_or_else(|| {
            Error::unsupported(format!("field {attnum} of a value of type {}.{}", ty.schema, ty.name))
        })?;
        Ok(format!("({}).{}", self.expression(arg)?, names::quote_identifier(&column.name)))
    }

    /// A cast written on an ARRAY constructor would move into its elements, so an implicit one is left to the parser.
    pub(super) fn array_cast(&self, node: &Node) -> Result<String> {
        let arg = node.node("arg")?;
        if arg.tag == "ARRAYEXPR" && node.field("coerceformat") == &Value::Int(2) {
            return self.expression(arg);
        }
        self.cast(arg, node.oid("resulttype")?, typmod_of(node))
    }

    /// The cast to a domain brings the domain's own length coercion with it.
    pub(super) fn domain(&self, node: &Node) -> Result<String> {
        let target = node.oid("resulttype")?;
        let mut arg = node.node("arg")?;
        let inherent = self.inherent_typmod(names::type_facts(self.facts, target)?)?;
        if inherent >= 0
            && length_coercion(arg) == Some(inherent)
            && arg.field("funcformat") == &Value::Int(2)
        {
            arg = first(arg)?;
        }
        self.cast(arg, target, -1)
    }

    /// `getBaseTypeAndTypmod`: the first typmod on the way down to the base type.
    fn inherent_typmod<'a>(&'a self, mut ty: &'a Type) -> Result<i32> {
        while ty.parent != 0 {
            if ty.typmod >= 0 {
                return Ok(ty.typmod);
            }
            ty = names::type_facts(self.facts, ty.parent)?;
        }
        Ok(-1)
    }

    pub(super) fn named_argument(&self, node: &Node) -> Result<String> {
        let name = node.text("name").ok_or_else(|| odd(node))?;
        Ok(format!("{} => {}", names::quote_identifier(&name), self.expression(node.node("arg")?)?))
    }
}

/// Whether a length coercion's third argument (isExplicit), if any, is true: only then is `::type(n)` the same call.
fn is_explicit(args: &[&Node]) -> bool {
    match args.get(2).map(|a| a.field("constvalue")) {
        None => true,
        Some(Value::Datum { bytes, .. }) => bytes.first() == Some(&1),
        Some(_) => false,
    }
}
