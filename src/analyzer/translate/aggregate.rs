//! GROUP BY, aggregates and HAVING.
//!
//! Group expressions, arguments and filters are computed below the aggregate; expressions of the select list and HAVING
//! then refer to its columns. Group expressions are found in them as the server finds them: by equality of the trees.

use crate::analyzer::node::{Node, Value};
use crate::plan::expr::Expr;
use crate::plan::{Aggregate, AggregateFunction, GroupKey, Rel};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row};

use super::native::collation_rules;
use super::refusal::{Refusal, Step};
use super::stage::{Stage, column_node, rewrite, same};
use super::{Level, Translator, check, kernels, types, unknown_form};

/// An aggregate call with the nodes that it needs computed.
struct Call {
    function: AggregateFunction,
    argument: Option<Node>,
    filter: Option<Node>,
    distinct: Option<KeyForm>,
}

impl Translator<'_> {
    /// The grouped stage (HAVING applied) and the select list over it.
    pub(super) fn aggregate(
        &mut self,
        frame: &Level,
        stage: Stage,
        targets: Vec<Node>,
    ) -> Step<(Stage, Vec<Node>)> {
        let (mut groups, names) = self.group_expressions(frame, &stage)?;
        // Each row of a query's domain has groups of its own.
        for node in frame.outer_nodes() {
            groups.push(stage.place(&node)?);
        }
        let mut outputs = targets;
        let having = frame.query.optional_node("havingQual");
        if let Some(having) = having {
            outputs.push(stage.place(&self.expand(frame, having)?)?);
        }
        let mut calls: Vec<Node> = Vec::new();
        for output in &outputs {
            // Columns that a grouped primary key decides need no grouping of their own; as further group columns they
            // change no group and are at hand.
            rewrite(output, &mut |n| {
                if groups.iter().any(|g| same(g, n)) {
                    return Ok(Some(n.clone()));
                }
                if n.tag == "AGGREF" {
                    if !calls.iter().any(|c| same(c, n)) {
                        calls.push(n.clone());
                    }
                    return Ok(Some(n.clone()));
                }
                if n.tag == "VAR" {
                    groups.push(n.clone());
                }
                Ok(None)
            })?;
        }
        let per_domain = frame.domain().filter(|_| frame.query.list("groupClause").is_empty());
        let (stage, marker) = match per_domain {
            Some(domain) => self.with_empty_groups(stage, domain),
            None => (stage, None),
        };
        let stage = self.grouped(stage, (&groups, &names), &calls, marker)?;
        let replace = |output: &Node| {
            rewrite(output, &mut |n| {
                let group = groups.iter().position(|g| same(g, n));
                let call = || calls.iter().position(|c| same(c, n)).map(|i| groups.len() + i);
                Ok(group.or_else(call).map(|c| column_node(c, &stage.columns[c])))
            })
        };
        let mut outputs = outputs.iter().map(replace).collect::<Step<Vec<Node>>>()?;
        let conditions = match having.and_then(|_| outputs.pop()) {
            Some(node) => split_and(node),
            None => Vec::new(),
        };
        Ok((self.filter(stage, &conditions)?, outputs))
    }

    /// The expressions of GROUP BY and their names.
    fn group_expressions(&self, frame: &Level, stage: &Stage) -> Step<(Vec<Node>, Vec<String>)> {
        let targets = frame.query.nodes("targetList")?;
        let (mut groups, mut names): (Vec<Node>, Vec<String>) = Default::default();
        for clause in frame.query.nodes("groupClause")? {
            let reference = clause.int("tleSortGroupRef")?;
            let target = targets.iter().find(|t| t.field("ressortgroupref").as_int() == Some(reference));
            let target = target.ok_or_else(|| unknown_form("GROUP BY refers to nothing"))?;
            let node = stage.place(&self.expand(frame, target.node("expr")?)?)?;
            if !groups.iter().any(|g| same(g, &node)) {
                check::scalar(self.facts(), &node)?;
                groups.push(node);
                names.push(target.text("resname").unwrap_or_else(|| "?".to_owned()));
            }
        }
        Ok((groups, names))
    }

    /// `groups` past the names are decided by the others: their image groups as well as their equality would.
    ///
    /// `marker`: a boolean column that says which rows the aggregates take in.
    fn grouped(
        &mut self,
        stage: Stage,
        (groups, names): (&[Node], &[String]),
        calls: &[Node],
        marker: Option<usize>,
    ) -> Step<Stage> {
        let mut columns = Vec::with_capacity(groups.len() + calls.len());
        let mut forms = Vec::with_capacity(groups.len());
        for (i, group) in groups.iter().enumerate() {
            let ty = self.type_of(group)?;
            forms.push(match names.get(i) {
                Some(name) => self.key_form(&ty, || format!("GROUP BY compares {name}"))?,
                None => KeyForm::by_image(&ty),
            });
            columns.push(ty);
        }
        let boolean = types::info(self.facts(), BOOL, -1, 0);
        let mut needed: Vec<Node> = groups.to_vec();
        let mut parsed = Vec::with_capacity(calls.len());
        for node in calls {
            let call = self.call(node)?;
            columns.push(self.type_of(node)?);
            let mut place = |n: Option<Node>| {
                n.map(|n| {
                    needed.push(n);
                    needed.len() - 1
                })
            };
            let filter = match marker.map(|m| column_node(m, &boolean)) {
                Some(marker) => Some(both(marker, call.filter)),
                None => call.filter,
            };
            let (argument, filter) = (place(call.argument), place(filter));
            parsed.push(Aggregate { function: call.function, argument, filter, distinct: call.distinct });
        }
        let (stage, positions) = self.columns_for(stage, &needed)?;
        let aggregates = parsed
            .into_iter()
            .map(|a| Aggregate {
                argument: a.argument.map(|i| positions[i]),
                filter: a.filter.map(|i| positions[i]),
                ..a
            })
            .collect();
        let group = positions.iter().zip(forms).map(|(&column, form)| GroupKey { column, form }).collect();
        Ok(Stage::new(Rel::Aggregate { input: Box::new(stage.rel), group, aggregates }, columns))
    }

    /// Without GROUP BY there is a row for each row of the domain, also if it has none here: `stage` with the domain's
    /// rows, and the column that tells them apart.
    fn with_empty_groups(&mut self, stage: Stage, domain: &Stage) -> (Stage, Option<usize>) {
        let width = stage.columns.len();
        let outer = stage.outer_columns();
        let literal = |d| Expr::Literal(Row::from_datums([d]));
        let own = (0..width).map(Expr::Column).chain([literal(Datum::Bool(true))]).collect();
        let padded = (0..width).map(|c| match outer.iter().position(|o| *o == c) {
            Some(reference) => Expr::Column(reference),
            None => literal(Datum::Null),
        });
        let padded = padded.chain([literal(Datum::Bool(false))]).collect();
        let inputs = vec![
            Rel::Project { input: Box::new(stage.rel), exprs: own },
            Rel::Project { input: Box::new(domain.rel.clone()), exprs: padded },
        ];
        let mut columns = stage.columns;
        columns.push(types::info(self.facts(), BOOL, -1, 0));
        (Stage { rel: Rel::UnionAll { inputs }, columns, blocks: stage.blocks }, Some(width))
    }

    fn call(&self, node: &Node) -> Step<Call> {
        if node.int("agglevelsup")? != 0 {
            return Err(unknown_form("an aggregate of an outer query level"));
        }
        let oid = node.oid("aggfnoid")?;
        let function =
            self.facts().functions.get(&oid).ok_or_else(|| unknown_form("an aggregate without a name"))?;
        let name = function.name.as_str();
        let refuse = |detail: &str| {
            Refusal::new(
                "unsupported.aggregate",
                format!("the aggregate {name}{detail} is not maintained incrementally yet"),
            )
        };
        if !function.is_builtin() || node.text("aggkind").as_deref() != Some("n") || node.bool("aggvariadic")
        {
            return Err(refuse(""));
        }
        if !node.list("aggorder").is_empty() {
            return Err(refuse(" with ORDER BY"));
        }
        let filter = node.optional_node("aggfilter").cloned();
        if node.bool("aggstar") {
            return match name {
                "count" => Ok(Call {
                    function: AggregateFunction::CountStar,
                    argument: None,
                    filter,
                    distinct: None,
                }),
                _ => Err(refuse("(*)")),
            };
        }
        let args = node.nodes("args")?;
        let [argument] = args.as_slice() else {
            return Err(refuse(""));
        };
        let argument = argument.node("expr")?.clone();
        let declared = node.list("aggargtypes").first().and_then(Value::as_int);
        let declared = declared.and_then(|t| u32::try_from(t).ok()).unwrap_or(0);
        check::scalar(self.facts(), &argument)?;
        let ty = self.type_of(&argument)?;
        let shown = format!("({})", types::type_name(self.facts(), ty.oid));
        let rules = collation_rules(self.facts(), node.oid("inputcollid")?);
        // `count(1)` counts rows.
        let constant = argument.tag == "CONST" && !argument.bool("constisnull");
        if name == "count" && constant && node.list("aggdistinct").is_empty() {
            return Ok(Call {
                function: AggregateFunction::CountStar,
                argument: None,
                filter,
                distinct: None,
            });
        }
        let function = match name {
            "count" => AggregateFunction::Count,
            "min" | "max" => {
                let order = kernels::order_of(ty.class, rules.bytewise).ok_or_else(|| {
                    let refusal = refuse(&shown);
                    match ty.class.is_string() {
                        true => refusal.hint("min and max of text are maintained under the collation \"C\""),
                        false => refusal,
                    }
                })?;
                match name {
                    "min" => AggregateFunction::Min(order),
                    _ => AggregateFunction::Max(order),
                }
            }
            _ => arithmetic(name, declared).ok_or_else(|| refuse(&shown))?,
        };
        let distinct = match node.list("aggdistinct").is_empty() {
            true => None,
            false => Some(self.key_form(&ty, || format!("{name}(DISTINCT ...) compares values"))?),
        };
        Ok(Call { function, argument: Some(argument), filter, distinct })
    }
}

/// `pg_type.oid` of boolean.
const BOOL: u32 = 16;

/// `marker AND filter`.
fn both(marker: Node, filter: Option<Node>) -> Node {
    let Some(filter) = filter else { return marker };
    let args = [marker, filter].map(|n| Value::Node(Box::new(n)));
    let fields = [("boolop", Value::Token("and".to_owned())), ("args", Value::List(args.to_vec()))];
    let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Node { tag: "BOOLEXPR".to_owned(), fields }
}

/// Aggregates that are told apart by the declared argument type.
fn arithmetic(name: &str, argument: u32) -> Option<AggregateFunction> {
    const INT8: u32 = 20;
    const INT2: u32 = 21;
    const INT4: u32 = 23;
    const FLOAT4: u32 = 700;
    const FLOAT8: u32 = 701;
    const NUMERIC: u32 = 1700;
    Some(match (name, argument) {
        ("sum", INT2 | INT4) => AggregateFunction::SumInt8,
        ("sum", INT8) => AggregateFunction::SumIntNumeric,
        ("sum", NUMERIC) => AggregateFunction::SumNumeric,
        ("sum", FLOAT4) => AggregateFunction::SumFloat4,
        ("sum", FLOAT8) => AggregateFunction::SumFloat8,
        ("avg", INT2 | INT4 | INT8) => AggregateFunction::AvgInt,
        ("avg", NUMERIC) => AggregateFunction::AvgNumeric,
        ("avg", FLOAT4 | FLOAT8) => AggregateFunction::AvgFloat,
        ("bool_and" | "every", BOOL) => AggregateFunction::BoolAnd,
        ("bool_or", BOOL) => AggregateFunction::BoolOr,
        _ => return None,
    })
}

fn split_and(node: Node) -> Vec<Node> {
    if node.tag == "BOOLEXPR" && node.text("boolop").as_deref() == Some("and") {
        return node.list("args").iter().filter_map(Value::as_node).cloned().flat_map(split_and).collect();
    }
    vec![node]
}
