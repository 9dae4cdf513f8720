//! GROUP BY, aggregates and HAVING.
//!
//! Group expressions, arguments and filters are computed below the aggregate; expressions of the select list and HAVING
//! then refer to its columns. Group expressions are found in them as the server finds them: by equality of the trees.

use crate::analyzer::node::{Node, Value};
use crate::plan::expr::Expr;
use crate::plan::{Aggregate, AggregateFunction, GroupForm, GroupKey, Rel};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row};

use super::native::collation_rules;
use super::refusal::Step;
use super::stage::{Stage, column_node, rewrite, same};
use super::types::BOOL;
use super::{Level, Translator, check, grouping_sets, guards, kernels, native, types, unknown_form};

/// An aggregate call with the nodes that it needs computed.
pub(super) struct Call {
    pub function: AggregateFunction,
    pub argument: Option<Node>,
    pub filter: Option<Node>,
    pub distinct: Option<KeyForm>,
}

/// The expressions of GROUP BY.
#[derive(Default)]
struct Groups {
    nodes: Vec<Node>,
    /// Names of those that are written there; the ones behind are decided by them.
    names: Vec<String>,
    hashable: Vec<bool>,
    /// Which one a `tleSortGroupRef` means.
    references: Vec<(i64, usize)>,
}

impl Translator<'_> {
    /// The grouped stage (HAVING applied) and the select list over it.
    pub(super) fn aggregate(
        &mut self,
        frame: &Level,
        stage: Stage,
        targets: Vec<Node>,
    ) -> Step<(Stage, Vec<Node>)> {
        let mut groups = self.group_expressions(frame, &stage)?;
        // Each row of a query's domain has groups of its own.
        for node in frame.outer_nodes() {
            groups.nodes.push(stage.place(&node)?);
            groups.hashable.push(true);
        }
        let mut outputs = targets;
        let having = frame.query.optional_node("havingQual");
        if let Some(having) = having {
            outputs.push(stage.place(&self.expand(frame, having)?)?);
        }
        let (mut calls, mut groupings): (Vec<Node>, Vec<Node>) = Default::default();
        for output in &outputs {
            // Columns that a grouped primary key decides need no grouping of their own; as further group columns they
            // change no group and are at hand.
            rewrite(output, &mut |n| {
                if groups.nodes.iter().any(|g| same(g, n)) {
                    return Ok(Some(n.clone()));
                }
                let list = match n.tag.as_str() {
                    "AGGREF" => &mut calls,
                    "GROUPINGFUNC" => &mut groupings,
                    "VAR" => {
                        groups.nodes.push(n.clone());
                        groups.hashable.push(true);
                        return Ok(None);
                    }
                    _ => return Ok(None),
                };
                if !list.iter().any(|c| same(c, n)) {
                    list.push(n.clone());
                }
                Ok(Some(n.clone()))
            })?;
        }
        let sets = grouping_sets::sets(&frame.query, &groups.references)?;
        let stage = match sets {
            None if groupings.is_empty() => {
                let (stage, calls) = self.also_empty(frame, stage, groups.names.is_empty(), &calls);
                self.grouped(stage, &groups, &calls, None)?
            }
            sets => {
                let everything: Vec<usize> = (0..groups.names.len()).collect();
                let sets = sets.unwrap_or_else(|| vec![everything]);
                let masks = |set: &[usize]| -> Step<Vec<i64>> {
                    groupings.iter().map(|g| grouping_sets::mask(g, &groups.references, set)).collect()
                };
                let mut rows = Vec::new();
                let mut columns = Vec::new();
                for set in &sets {
                    let (stage, calls) = self.also_empty(frame, stage.clone(), set.is_empty(), &calls);
                    let one = self.grouped(stage, &groups, &calls, Some(set))?;
                    let ty = types::info(self.facts(), 23, -1, 0);
                    let one = grouping_sets::marked(one, masks(set)?, ty);
                    columns = one.columns;
                    rows.push(one.rel);
                }
                match rows.len() {
                    1 => Stage::new(rows.remove(0), columns),
                    _ => Stage::new(Rel::UnionAll { inputs: rows }, columns),
                }
            }
        };
        let replace = |output: &Node| {
            rewrite(output, &mut |n| {
                let group = groups.nodes.iter().position(|g| same(g, n));
                let after = groups.nodes.len();
                let call = || calls.iter().position(|c| same(c, n)).map(|i| after + i);
                let mark = || groupings.iter().position(|c| same(c, n)).map(|i| after + calls.len() + i);
                Ok(group.or_else(call).or_else(mark).map(|c| column_node(c, &stage.columns[c])))
            })
        };
        let mut outputs = outputs.iter().map(replace).collect::<Step<Vec<Node>>>()?;
        let conditions = match having.and_then(|_| outputs.pop()) {
            Some(node) => split_and(node),
            None => Vec::new(),
        };
        Ok((self.filter(stage, &conditions)?, outputs))
    }

    fn group_expressions(&self, frame: &Level, stage: &Stage) -> Step<Groups> {
        let targets = frame.query.nodes("targetList")?;
        let mut groups = Groups::default();
        for clause in frame.query.nodes("groupClause")? {
            let reference = clause.int("tleSortGroupRef")?;
            let target = targets.iter().find(|t| t.field("ressortgroupref").as_int() == Some(reference));
            let target = target.ok_or_else(|| unknown_form("GROUP BY refers to nothing"))?;
            let node = stage.place(&self.expand(frame, target.node("expr")?)?)?;
            let known = groups.nodes.iter().position(|g| same(g, &node));
            let index = match known {
                Some(index) => index,
                None => {
                    check::scalar(self.facts(), &node)?;
                    groups.nodes.push(node);
                    groups.names.push(target.text("resname").unwrap_or_else(|| "?".to_owned()));
                    groups.hashable.push(clause.bool("hashable"));
                    groups.nodes.len() - 1
                }
            };
            groups.references.push((reference, index));
        }
        Ok(groups)
    }

    /// The rows of one grouping: all group columns (NULL where they are not in `set`; `None`: all are), then the calls.
    /// Groups past the names are decided by the others: their image groups as well as their equality would.
    fn grouped(
        &mut self,
        stage: Stage,
        groups: &Groups,
        calls: &[Node],
        set: Option<&[usize]>,
    ) -> Step<Stage> {
        let inside = |i: &usize| *i >= groups.names.len() || set.is_none_or(|s| s.contains(i));
        let kept: Vec<usize> = (0..groups.nodes.len()).filter(inside).collect();
        let (stage, calls) = self.attach(stage, calls)?;
        let calls = calls.as_slice();
        let mut parsed = Vec::with_capacity(calls.len());
        for node in calls {
            self.check_call(node)?;
            parsed.push(self.call(node)?);
        }
        let native = parsed.into_iter().collect::<Option<Vec<Call>>>();
        let needed: Vec<Node> = kept.iter().map(|&i| groups.nodes[i].clone()).collect();
        let (mut stage, positions, aggregates) =
            self.arguments(stage, &needed, native.as_deref().unwrap_or_default())?;
        let mut keys = Vec::with_capacity(kept.len());
        for (&i, &column) in kept.iter().zip(&positions) {
            let key;
            (stage, key) = match i < groups.names.len() {
                true => self.key_column(stage, column, groups.hashable[i])?,
                false => {
                    let form = KeyForm::by_image(&stage.columns[column]);
                    (stage, GroupKey { column, form })
                }
            };
            keys.push(key);
        }
        let stage = match native {
            Some(_) => {
                let mut columns: Vec<_> = keys.iter().map(|k| stage.columns[k.column].clone()).collect();
                for node in calls {
                    columns.push(self.type_of(node)?);
                }
                Stage::new(Rel::Aggregate { input: Box::new(stage.rel), group: keys, aggregates }, columns)
            }
            // With one that PostgreSQL computes it may as well compute all: it gets the whole group anyway.
            None => {
                let form = if keys.is_empty() { GroupForm::Global } else { GroupForm::Aggregates };
                self.collected(stage, keys, form, calls)?.0
            }
        };
        if kept.len() == groups.nodes.len() {
            return Ok(stage);
        }
        let mut columns = Vec::with_capacity(groups.nodes.len() + calls.len());
        for node in groups.nodes.iter().chain(calls) {
            columns.push(self.type_of(node)?);
        }
        Ok(grouping_sets::padded(stage, &kept, groups.nodes.len(), columns))
    }

    /// Columns for `nodes`, and calls with columns for their arguments. What PostgreSQL computes for an argument is asked for
    /// alone where a filter decides about it: what fails in one expression of a batch fails in all of them.
    pub(super) fn arguments(
        &mut self,
        stage: Stage,
        nodes: &[Node],
        calls: &[Call],
    ) -> Step<(Stage, Vec<usize>, Vec<Aggregate>)> {
        let by_server = |n: &Node| native::compile(self.facts(), n).is_none();
        let alone: Vec<bool> =
            calls.iter().map(|c| c.filter.is_some() && c.argument.as_ref().is_some_and(by_server)).collect();
        let mut needed = nodes.to_vec();
        for (call, alone) in calls.iter().zip(&alone) {
            needed.extend(call.argument.iter().filter(|_| !alone).chain(&call.filter).cloned());
        }
        let (mut stage, mut positions) = self.typed_columns(stage, &needed)?;
        let rest = positions.split_off(nodes.len());
        let (mut rest, mut aggregates) = (rest.into_iter(), Vec::with_capacity(calls.len()));
        for (call, alone) in calls.iter().zip(alone) {
            let mut argument = call.argument.as_ref().filter(|_| !alone).and_then(|_| rest.next());
            let filter = call.filter.as_ref().and_then(|_| rest.next());
            if let Some(node) = call.argument.as_ref().filter(|_| alone) {
                let columns;
                (stage, columns) = self.typed_columns(stage, std::slice::from_ref(node))?;
                argument = columns.first().copied();
            }
            let (function, distinct) = (call.function, call.distinct);
            aggregates.push(Aggregate { function, argument, filter, distinct });
        }
        Ok((stage, positions, aggregates))
    }

    /// Without group expressions of its own a query has a row for each row of its domain: the stage with those, and the
    /// calls, which do not take them in.
    fn also_empty(
        &mut self,
        frame: &Level,
        stage: Stage,
        without: bool,
        calls: &[Node],
    ) -> (Stage, Vec<Node>) {
        let Some(domain) = frame.domain().filter(|_| without) else { return (stage, calls.to_vec()) };
        let (stage, marker) = self.with_empty_groups(stage, domain);
        let marker = column_node(marker, &types::boolean(self.facts()));
        let marked = |call: &Node| {
            let conditions: Vec<Node> =
                [Some(&marker), call.optional_node("aggfilter")].into_iter().flatten().cloned().collect();
            let filter = guards::all(&conditions).unwrap_or_else(|| marker.clone());
            let mut call = call.clone();
            for (_, value) in call.fields.iter_mut().filter(|(name, _)| name == "aggfilter") {
                *value = Value::Node(Box::new(filter.clone()));
            }
            call
        };
        let calls = calls.iter().map(marked).collect();
        (stage, calls)
    }

    /// Without GROUP BY there is a row for each row of the domain, also if it has none here: `stage` with the domain's
    /// rows, and the column that tells them apart.
    fn with_empty_groups(&mut self, stage: Stage, domain: &Stage) -> (Stage, usize) {
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
        columns.push(types::boolean(self.facts()));
        (Stage { rel: Rel::UnionAll { inputs }, columns, blocks: stage.blocks }, width)
    }

    /// The call's native form; `None`: PostgreSQL computes it.
    pub(super) fn call(&self, node: &Node) -> Step<Option<Call>> {
        if node.int("agglevelsup")? != 0 {
            return Err(unknown_form("an aggregate of an outer query level"));
        }
        let oid = node.oid("aggfnoid")?;
        let function =
            self.facts().functions.get(&oid).ok_or_else(|| unknown_form("an aggregate without a name"))?;
        let name = function.name.as_str();
        let plain = function.is_builtin()
            && node.text("aggkind").as_deref() == Some("n")
            && !node.bool("aggvariadic")
            && node.list("aggorder").is_empty();
        if !plain {
            return Ok(None);
        }
        let filter = node.optional_node("aggfilter").cloned();
        let star = Call {
            function: AggregateFunction::CountStar,
            argument: None,
            filter: filter.clone(),
            distinct: None,
        };
        if node.bool("aggstar") {
            return Ok((name == "count").then_some(star));
        }
        let args = node.nodes("args")?;
        let [argument] = args.as_slice() else { return Ok(None) };
        let argument = argument.node("expr")?.clone();
        let declared = node.list("aggargtypes").first().and_then(Value::as_int);
        let declared = declared.and_then(|t| u32::try_from(t).ok()).unwrap_or(0);
        let ty = self.type_of(&argument)?;
        let rules = collation_rules(self.facts(), node.oid("inputcollid")?);
        // `count(1)` counts rows.
        let constant = argument.tag == "CONST" && !argument.bool("constisnull");
        if name == "count" && constant && node.list("aggdistinct").is_empty() {
            return Ok(Some(star));
        }
        // A whole row is NULL only where an outer join found none.
        if name == "count" && argument.tag == "NAMEDROW" && node.list("aggdistinct").is_empty() {
            let counted = |present: &Node| Call {
                function: AggregateFunction::Count,
                argument: Some(present.clone()),
                filter,
                distinct: None,
            };
            return Ok(Some(argument.optional_node("present").map_or(star, counted)));
        }
        let function = match name {
            "count" => Some(AggregateFunction::Count),
            "min" => kernels::order_of(ty.class, rules.bytewise).map(AggregateFunction::Min),
            "max" => kernels::order_of(ty.class, rules.bytewise).map(AggregateFunction::Max),
            _ => arithmetic(name, declared),
        };
        let distinct = match node.list("aggdistinct").is_empty() {
            true => None,
            false => match self.form_of(&ty) {
                Some(form) => Some(form),
                None => return Ok(None),
            },
        };
        Ok(function.map(|function| Call { function, argument: Some(argument), filter, distinct }))
    }
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
        ("avg", FLOAT4) => AggregateFunction::AvgFloat4,
        ("avg", FLOAT8) => AggregateFunction::AvgFloat8,
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
