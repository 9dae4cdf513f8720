//! The plan as indented text: what is read, what is native, what PostgreSQL computes, and which columns are a key.
//!
//! For people (`explain` of a stream table) and for tests; nobody parses it.

use std::collections::HashMap;
use std::fmt::Write;

use super::expr::{BooleanTest, Comparison, Expr, IntWidth, Kernel};
use super::{
    Aggregate, AggregateFunction, GroupForm, JoinKind, Plan, Rel, RemoteExpr, RemoteInput, SetOpKind,
    SortKey, SourceId, ViewId,
};
use crate::row::{Datum, Row};

/// Names of what a plan refers to by number.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Qualified name, and column names by attnum.
    pub sources: HashMap<SourceId, (String, HashMap<i16, String>)>,
    /// Qualified name, and names of the output columns.
    pub views: HashMap<ViewId, (String, Vec<String>)>,
}

/// Text of a plan; every line ends with a line feed.
pub fn explain(plan: &Plan, names: &Names) -> String {
    let mut explainer = Explainer { names, computed: 0 };
    let tree = explainer.rel(&plan.rel);
    let mut out = String::new();
    for line in tree.lines {
        let _ = writeln!(out, "{line}");
    }
    let columns: Vec<&str> = plan.columns.iter().map(|c| c.name.as_str()).collect();
    let _ = writeln!(out, "columns: {}", columns.join(", "));
    match &plan.key {
        Some(key) => {
            let key: Vec<&str> = key.iter().filter_map(|&k| columns.get(k).copied()).collect();
            let _ = writeln!(out, "key: {}", key.join(", "));
        }
        None => {
            let _ = writeln!(out, "key: none");
        }
    }
    for notice in &plan.notices {
        let _ = writeln!(out, "notice: {notice}");
    }
    out
}

/// The lines of the plan's operators, in the order of a walk, without indentation.
pub fn operators(plan: &Plan, names: &Names) -> Vec<String> {
    let lines = Explainer { names, computed: 0 }.rel(&plan.rel).lines;
    lines.into_iter().map(|line| line.trim_start().to_owned()).collect()
}

/// The lines of recursions, of UNION and of UNION ALL.
const RECURSIONS: [&str; 2] = ["Recursive", "RecursiveAll"];

/// Whether a line of [`operators`] is that of a recursion.
pub fn is_recursion(line: &str) -> bool {
    RECURSIONS.contains(&line)
}

struct Text {
    lines: Vec<String>,
    /// What each output column is.
    labels: Vec<String>,
}

struct Explainer<'a> {
    names: &'a Names,
    /// Expressions of PostgreSQL so far: they are called `pg1`, `pg2`, ...
    computed: usize,
}

fn nested(head: String, inputs: Vec<Text>, labels: Vec<String>) -> Text {
    let mut lines = vec![head];
    lines.extend(inputs.into_iter().flat_map(|t| t.lines).map(|l| format!("  {l}")));
    Text { lines, labels }
}

impl Explainer<'_> {
    /// Expressions of PostgreSQL, with a label each.
    fn computed(&mut self, exprs: &[RemoteExpr], labels: &mut Vec<String>) -> Vec<String> {
        let mut parts = Vec::new();
        for remote in exprs {
            self.computed += 1;
            labels.push(format!("pg{}", self.computed));
            let owner =
                if remote.builtin_only { "" } else { " (as the owner, under the settings of the creation)" };
            parts.push(format!("pg{} = {}{owner}", self.computed, remote.sql));
        }
        parts
    }

    fn source(&self, source: SourceId, attributes: &[i16]) -> Text {
        let known = self.names.sources.get(&source);
        let name = known.map_or_else(|| format!("relation {source}"), |(n, _)| n.clone());
        let column = |a: &i16| known.and_then(|(_, c)| c.get(a)).cloned().unwrap_or_else(|| format!("#{a}"));
        leaf("Source", &name, attributes.iter().map(column).collect())
    }

    fn rel(&mut self, rel: &Rel) -> Text {
        match rel {
            Rel::Source { source, attributes } => self.source(*source, attributes),
            Rel::StreamTable { view, columns } => {
                let known = self.names.views.get(view);
                let name = known.map_or_else(|| format!("stream table {view}"), |(n, _)| n.clone());
                let column = |c: &usize| {
                    known.and_then(|(_, n)| n.get(*c)).cloned().unwrap_or_else(|| format!("#{c}"))
                };
                leaf("StreamTable", &name, columns.iter().map(column).collect())
            }
            Rel::Constant { rows } => {
                let shown: Vec<String> = rows.iter().map(row).collect();
                let width = super::width(rel);
                let labels = (1..=width).map(|i| format!("column{i}")).collect();
                Text { lines: vec![format!("Constant {}", shown.join(", "))], labels }
            }
            Rel::Filter { input, predicate } => {
                let input = self.rel(input);
                let head = format!("Filter {}", expr(predicate, &input.labels, false));
                let labels = input.labels.clone();
                nested(head, vec![input], labels)
            }
            Rel::Project { input, exprs } => {
                let input = self.rel(input);
                let text = |inner| exprs.iter().map(|e| expr(e, &input.labels, inner)).collect::<Vec<_>>();
                let (shown, labels) = (text(false), text(true));
                nested(format!("Project {}", shown.join(", ")), vec![input], labels)
            }
            Rel::Evaluate { input, batch } => {
                let input = self.rel(input);
                let mut labels = input.labels.clone();
                let parts = self.computed(&batch.exprs, &mut labels);
                let over = over(&batch.inputs, &input.labels);
                nested(format!("Evaluate {}{over}", parts.join(", ")), vec![input], labels)
            }
            Rel::Join { kind, left, right, on, residual } => {
                let (left, right) = (self.rel(left), self.rel(right));
                let mut labels: Vec<String> = left.labels.iter().chain(&right.labels).cloned().collect();
                let equal = |nulls_match| if nulls_match { "IS NOT DISTINCT FROM" } else { "=" };
                let mut conditions: Vec<String> = (on.iter())
                    .map(|k| {
                        let (l, r) = (label(&left.labels, k.left), label(&right.labels, k.right));
                        format!("{l} {} {r}", equal(k.nulls_match))
                    })
                    .collect();
                conditions.extend(residual.iter().map(|r| format!("if {}", expr(r, &labels, false))));
                let kind = match kind {
                    JoinKind::Inner if on.is_empty() => "CrossJoin",
                    JoinKind::Inner => "Join",
                    JoinKind::Left => "LeftJoin",
                    JoinKind::Full => "FullJoin",
                    JoinKind::Semi => "SemiJoin",
                    JoinKind::Anti => "AntiJoin",
                };
                if matches!(kind, "SemiJoin" | "AntiJoin") {
                    labels.truncate(left.labels.len());
                }
                let head = format!("{kind} {}", conditions.join(", "));
                nested(head.trim_end().to_owned(), vec![left, right], labels)
            }
            Rel::Aggregate { input, group, aggregates } => {
                let input = self.rel(input);
                let by: Vec<String> = group.iter().map(|g| label(&input.labels, g.column)).collect();
                let calls: Vec<String> = aggregates.iter().map(|a| aggregate(a, &input.labels)).collect();
                let by_text = if by.is_empty() { String::new() } else { format!(" by {}", by.join(", ")) };
                let head = format!("Aggregate {}{by_text}", calls.join(", "));
                nested(head.replace("  ", " "), vec![input], by.into_iter().chain(calls).collect())
            }
            Rel::Distinct { input, .. } => {
                let input = self.rel(input);
                let labels = input.labels.clone();
                nested("Distinct".to_owned(), vec![input], labels)
            }
            Rel::SetOp { kind, all, left, right, .. } => {
                let (left, right) = (self.rel(left), self.rel(right));
                let kind = match kind {
                    SetOpKind::Intersect => "Intersect",
                    SetOpKind::Except => "Except",
                };
                let labels = left.labels.clone();
                let head = format!("{kind}{}", if *all { "All" } else { "" });
                nested(head, vec![left, right], labels)
            }
            Rel::Group { input, keys, batch } => {
                let input = self.rel(input);
                let by: Vec<String> = keys.iter().map(|k| label(&input.labels, k.column)).collect();
                let mut labels = if batch.form.keeps_rows() { input.labels.clone() } else { by.clone() };
                let parts = self.computed(&batch.exprs, &mut labels);
                let name = match batch.form {
                    GroupForm::Global | GroupForm::Aggregates => "Group",
                    GroupForm::Windows => "Window",
                    GroupForm::Sets => "Sets",
                };
                let mut head = format!("{name} {}{}", parts.join(", "), batch.tail);
                if !by.is_empty() {
                    head += &format!(" by {}", by.join(", "));
                }
                if batch.spread > 1 {
                    head += &format!(" in {} parts", batch.spread);
                }
                head += &over(&batch.inputs, &input.labels);
                nested(head, vec![input], labels)
            }
            Rel::TopK { input, partition, order, offset, limit, with_ties } => {
                let input = self.rel(input);
                let mut head = "TopK".to_owned();
                if let Some(limit) = limit {
                    head += &format!(" {limit}{}", if *with_ties { " with ties" } else { "" });
                }
                if *offset > 0 {
                    head += &format!(" from {offset}");
                }
                let by: Vec<String> = order.iter().map(|k| sort_key(k, &input.labels)).collect();
                if !by.is_empty() {
                    head += &format!(" order {}", by.join(", "));
                }
                let of: Vec<String> = partition.iter().map(|k| label(&input.labels, k.column)).collect();
                if !of.is_empty() {
                    head += &format!(" by {}", of.join(", "));
                }
                let labels = input.labels.clone();
                nested(head, vec![input], labels)
            }
            Rel::Recursive { base, step, distinct, .. } => {
                let (base, step) = (self.rel(base), self.rel(step));
                let labels = base.labels.clone();
                let [once, all] = RECURSIONS;
                let head = if distinct.is_some() { once } else { all };
                nested(head.to_owned(), vec![base, step], labels)
            }
            Rel::RecursiveReference { width, .. } => {
                leaf("Recursion", "so far", (1..=*width).map(|i| format!("r{i}")).collect())
            }
            Rel::UnionAll { inputs } => {
                let inputs: Vec<Text> = inputs.iter().map(|i| self.rel(i)).collect();
                let labels = inputs.first().map(|i| i.labels.clone()).unwrap_or_default();
                nested("UnionAll".to_owned(), inputs, labels)
            }
            Rel::Partitioned { root, attributes, leaves } => {
                let top = self.source(*root, attributes);
                let head = top.lines.first().map(|l| l.replacen("Source", "Partitioned", 1));
                let leaves = leaves.iter().map(|i| self.rel(i)).collect();
                nested(head.unwrap_or_default(), leaves, top.labels)
            }
        }
    }
}

/// Which columns the inputs of a batch are.
fn over(inputs: &[RemoteInput], labels: &[String]) -> String {
    let inputs: Vec<String> =
        inputs.iter().enumerate().map(|(i, r)| format!("c{} = {}", i + 1, label(labels, r.column))).collect();
    if inputs.is_empty() { String::new() } else { format!(" over {}", inputs.join(", ")) }
}

fn sort_key(key: &SortKey, labels: &[String]) -> String {
    let direction = if key.descending { " desc" } else { "" };
    // As the server: NULLs are larger than everything.
    let nulls = match (key.descending, key.nulls_first) {
        (false, true) => " nulls first",
        (true, false) => " nulls last",
        _ => "",
    };
    format!("{}{direction}{nulls}", label(labels, key.column))
}

fn leaf(kind: &str, name: &str, columns: Vec<String>) -> Text {
    let line = format!("{kind} {name} ({})", columns.join(", "));
    let short = name.rsplit('.').next().unwrap_or(name);
    Text { lines: vec![line], labels: columns.iter().map(|c| format!("{short}.{c}")).collect() }
}

fn label(labels: &[String], column: usize) -> String {
    labels.get(column).cloned().unwrap_or_else(|| format!("#{column}"))
}

fn row(row: &Row) -> String {
    let values: Vec<String> = row.iter().map(datum).collect();
    format!("({})", values.join(", "))
}

fn datum(datum: Datum<'_>) -> String {
    match datum {
        Datum::Null => "NULL".to_owned(),
        Datum::Bool(b) => b.to_string(),
        Datum::Int(i) => i.to_string(),
        Datum::Text(t) => format!("'{}'", String::from_utf8_lossy(t).replace('\'', "''")),
        Datum::Error(_) => "error".to_owned(),
    }
}

fn aggregate(call: &Aggregate, labels: &[String]) -> String {
    use AggregateFunction::*;
    let name = match call.function {
        CountStar | Count => "count",
        SumInt8 | SumIntNumeric | SumNumeric | SumFloat4 | SumFloat8 => "sum",
        AvgInt | AvgNumeric | AvgFloat4 | AvgFloat8 => "avg",
        Min(_) => "min",
        Max(_) => "max",
        BoolAnd => "bool_and",
        BoolOr => "bool_or",
        Single => "single",
    };
    let argument = call.argument.map_or_else(|| "*".to_owned(), |c| label(labels, c));
    let distinct = if call.distinct.is_some() { "distinct " } else { "" };
    let filter = call.filter.map(|c| format!(" filter ({})", label(labels, c))).unwrap_or_default();
    format!("{name}({distinct}{argument}){filter}")
}

/// `inner`: the expression is an operand, so that infix forms need parentheses.
fn expr(e: &Expr, labels: &[String], inner: bool) -> String {
    let sub = |e: &Expr| expr(e, labels, true);
    let list = |args: &[Expr], between: &str| args.iter().map(sub).collect::<Vec<_>>().join(between);
    let plain = |args: &[Expr]| args.iter().map(|a| expr(a, labels, false)).collect::<Vec<_>>().join(", ");
    let (text, infix) = match e {
        Expr::Column(c) => (label(labels, *c), false),
        Expr::Literal(row) => (datum(row.get(0)), false),
        Expr::Call { kernel, args } => match infix(*kernel) {
            Some(op) if args.len() == 2 => (list(args, &format!(" {op} ")), true),
            _ => (format!("{}({})", name(*kernel), plain(args)), false),
        },
        Expr::And(args) => (list(args, " AND "), true),
        Expr::Or(args) => (list(args, " OR "), true),
        Expr::Not(arg) => (format!("NOT {}", sub(arg)), true),
        Expr::IsNull(arg) => (format!("{} IS NULL", sub(arg)), true),
        Expr::IsNotNull(arg) => (format!("{} IS NOT NULL", sub(arg)), true),
        Expr::BooleanTest { arg, test } => (format!("{} {}", sub(arg), boolean_test(*test)), true),
        Expr::Case { branches, otherwise } => {
            let branch = |(w, t): &(Expr, Expr)| {
                format!(" WHEN {} THEN {}", expr(w, labels, false), expr(t, labels, false))
            };
            let branches: String = branches.iter().map(branch).collect();
            (format!("CASE{branches} ELSE {} END", expr(otherwise, labels, false)), false)
        }
        Expr::Coalesce(args) => (format!("coalesce({})", plain(args)), false),
        Expr::Distinct { left, right, .. } => {
            (format!("{} IS DISTINCT FROM {}", sub(left), sub(right)), true)
        }
        Expr::NullIf { left, right, .. } => {
            (format!("nullif({}, {})", expr(left, labels, false), expr(right, labels, false)), false)
        }
    };
    if infix && inner { format!("({text})") } else { text }
}

fn boolean_test(test: BooleanTest) -> &'static str {
    match test {
        BooleanTest::IsTrue => "IS TRUE",
        BooleanTest::IsNotTrue => "IS NOT TRUE",
        BooleanTest::IsFalse => "IS FALSE",
        BooleanTest::IsNotFalse => "IS NOT FALSE",
        BooleanTest::IsUnknown => "IS UNKNOWN",
        BooleanTest::IsNotUnknown => "IS NOT UNKNOWN",
    }
}

fn infix(kernel: Kernel) -> Option<&'static str> {
    use Kernel::*;
    Some(match kernel {
        Compare(_, Comparison::Eq) => "=",
        Compare(_, Comparison::Ne) => "<>",
        Compare(_, Comparison::Lt) => "<",
        Compare(_, Comparison::Le) => "<=",
        Compare(_, Comparison::Gt) => ">",
        Compare(_, Comparison::Ge) => ">=",
        IntAdd(_) | NumericAdd | FloatAdd(_) => "+",
        IntSub(_) | NumericSub | FloatSub(_) | DateSub => "-",
        IntMul(_) | NumericMul | FloatMul(_) => "*",
        IntDiv(_) | NumericDiv | FloatDiv(_) => "/",
        IntMod(_) => "%",
        TextConcat => "||",
        TextLike(true) => "LIKE",
        TextLike(false) => "NOT LIKE",
        _ => return None,
    })
}

fn name(kernel: Kernel) -> String {
    use Kernel::*;
    let width = |w: IntWidth| match w {
        IntWidth::I2 => "int2",
        IntWidth::I4 => "int4",
        IntWidth::I8 => "int8",
    };
    match kernel {
        IntNeg(_) | NumericNeg | FloatNeg => "-".to_owned(),
        IntAbs(_) | NumericAbs => "abs".to_owned(),
        IntCast(w) | NumericToInt(w) => width(w).to_owned(),
        IntToNumeric => "numeric".to_owned(),
        NumericRound => "round".to_owned(),
        NumericTypmod(t) => {
            // Precision in the high half, scale (11 bits with sign) in the low one, behind a header of 4.
            format!("numeric({}, {})", ((t - 4) >> 16) & 0xffff, (((t - 4) & 0x7ff) ^ 1024) - 1024)
        }
        IntToFloat8 | Float4To8 => "float8".to_owned(),
        BpcharToText => "rtrim".to_owned(),
        TextLength => "length".to_owned(),
        TextStartsWith => "starts_with".to_owned(),
        Relabel => "relabel".to_owned(),
        other => infix(other).map_or_else(|| format!("{other:?}"), str::to_owned),
    }
}
