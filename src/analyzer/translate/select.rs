//! The upper part of a query level: window functions, the select list with its set-returning functions, DISTINCT,
//! DISTINCT ON, ORDER BY with LIMIT. In this order, which is the server's.

use crate::analyzer::deparse;
use crate::analyzer::node::{Node, Value};
use crate::analyzer::{volatility, window};
use crate::kernel::{self, Scratch};
use crate::plan::expr::{Comparison, Expr, IntWidth, Kernel, Order};
use crate::plan::{GroupForm, GroupKey, Rel, RemoteExpr, SortKey};
use crate::row::key::KeyForm;
use crate::row::{Datum, Row, TypeInfo};

use super::collect::{Sql, as_scalar, returns_set};
use super::native::{builtin, collation_rules, compile};
use super::refusal::{Refusal, Step};
use super::stage::{Stage, column_node, placed_column, rewrite, same};
use super::{Level, Translator, check, kernels, types, unknown_form};

const INT8: u32 = 20;
/// Parts into which rows are spread that only the server can order.
const SPREAD: u32 = 256;
/// They are spread where no more than so many of them are asked for.
const SPREAD_LIMIT: u64 = 1_000;

/// What the clauses above the select list ask for.
struct Clauses {
    distinct: bool,
    distinct_on: bool,
    offset: u64,
    limit: Option<u64>,
    /// OFFSET and LIMIT whose values are computed with the query.
    computed: Option<(Option<Node>, Option<Node>)>,
    with_ties: bool,
}

impl Clauses {
    fn needs_order(&self) -> bool {
        self.distinct_on || self.computed.is_some() || self.limit.is_some() || self.offset > 0
    }
}

fn reference(entry: &Node) -> i64 {
    entry.field("ressortgroupref").as_int().unwrap_or(0)
}

impl Translator<'_> {
    /// The entries of the target list that are put out, and the junk ones that a clause refers to.
    pub(super) fn entries<'n>(&self, query: &'n Node) -> Step<Vec<&'n Node>> {
        let clauses = self.clauses(query)?;
        let mut wanted: Vec<i64> = Vec::new();
        let mut want = |list: &[Value]| {
            let references = list.iter().filter_map(Value::as_node).map(|c| c.field("tleSortGroupRef"));
            wanted.extend(references.filter_map(Value::as_int));
        };
        for clause in query.nodes("windowClause")? {
            want(clause.list("partitionClause"));
            want(clause.list("orderClause"));
        }
        if clauses.needs_order() {
            want(query.list("sortClause"));
        }
        if clauses.distinct_on {
            want(query.list("distinctClause"));
        }
        let kept = |e: &&Node| !e.bool("resjunk") || wanted.contains(&reference(e));
        Ok(query.nodes("targetList")?.into_iter().filter(kept).collect())
    }

    fn clauses(&self, query: &Node) -> Step<Clauses> {
        let (offset, limit) = (query.optional_node("limitOffset"), query.optional_node("limitCount"));
        let distinct = !query.list("distinctClause").is_empty();
        let distinct_on = query.bool("hasDistinctOn");
        let clauses = Clauses {
            distinct: distinct && !distinct_on,
            distinct_on,
            offset: 0,
            limit: None,
            computed: None,
            with_ties: query.field("limitOption") == &Value::Int(1),
        };
        let value = |node: Option<&Node>| node.map_or(Ok(Some(None)), |n| self.row_count(n));
        match (value(offset)?, value(limit)?) {
            (Some(offset), Some(limit)) => Ok(Clauses { offset: offset.unwrap_or(0), limit, ..clauses }),
            _ => Ok(Clauses { computed: Some((offset.cloned(), limit.cloned())), ..clauses }),
        }
    }

    /// The value of a LIMIT or OFFSET expression, NULL being no bound; `None`: it is computed with the query.
    fn row_count(&self, node: &Node) -> Step<Option<Option<u64>>> {
        let Some(expr) = compile(self.facts(), node) else { return Ok(None) };
        let row = kernel::project(&[expr], &[], &mut Scratch::default());
        match row.get(0) {
            Datum::Null => Ok(Some(None)),
            Datum::Int(i) => u64::try_from(i)
                .map(|i| Some(Some(i)))
                .map_err(|_| Refusal::new("unsupported.limit", "LIMIT and OFFSET must not be negative")),
            _ => Ok(None),
        }
    }

    /// Computes the window calls in `nodes` (the placed entries); they are columns of the returned stage.
    pub(super) fn windows(
        &mut self,
        query: &Node,
        entries: &[&Node],
        mut stage: Stage,
        nodes: Vec<Node>,
    ) -> Step<(Stage, Vec<Node>)> {
        let mut calls: Vec<Node> = Vec::new();
        for node in &nodes {
            node.walk(&mut |n| {
                if n.tag == "WINDOWFUNC" && !calls.iter().any(|c| same(c, n)) {
                    calls.push(n.clone());
                }
            });
        }
        if calls.is_empty() {
            return Ok((stage, nodes));
        }
        // The clauses refer to the target list: a query of the placed entries.
        let target = |(entry, node): (&&Node, &Node)| {
            let fields = vec![
                ("expr".to_owned(), Value::Node(Box::new(node.clone()))),
                ("ressortgroupref".to_owned(), Value::Int(reference(entry))),
            ];
            Value::Node(Box::new(Node { tag: "TARGETENTRY".to_owned(), fields }))
        };
        let placed = Node {
            tag: "QUERY".to_owned(),
            fields: vec![
                ("windowClause".to_owned(), query.field("windowClause").clone()),
                ("targetList".to_owned(), Value::List(entries.iter().zip(&nodes).map(target).collect())),
            ],
        };
        // Calls with the same partitions are computed together.
        type Partition = Vec<(Node, bool)>;
        let mut partitions: Vec<(Partition, Vec<usize>)> = Vec::new();
        for (i, call) in calls.iter().enumerate() {
            let clause = window::clause_of(&placed, call)?;
            let by: Partition = window::sorted_by(&placed, clause.list("partitionClause"))?
                .into_iter()
                .map(|(expr, clause)| (expr.clone(), clause.bool("hashable")))
                .collect();
            let equal =
                |p: &Partition| p.len() == by.len() && p.iter().zip(&by).all(|(a, b)| same(&a.0, &b.0));
            match partitions.iter_mut().find(|(p, _)| equal(p)) {
                Some((_, members)) => members.push(i),
                None => partitions.push((by, vec![i])),
            }
        }
        let mut columns = vec![0; calls.len()];
        for (by, members) in partitions {
            let exprs: Vec<Node> = by.iter().map(|(expr, _)| expr.clone()).collect();
            let positions;
            (stage, positions) = self.typed_columns(stage, &exprs)?;
            let by: Vec<(usize, bool)> = positions.into_iter().zip(by).map(|(c, (_, h))| (c, h)).collect();
            let mut keys;
            (stage, keys) = self.key_columns(stage, &by)?;
            // Per row of the query's domain.
            for node in &nodes[entries.len()..] {
                if let Some(column) = placed_column(node) {
                    keys.push(GroupKey { column, form: KeyForm::by_image(&stage.columns[column]) });
                }
            }
            let mut resolved = Vec::with_capacity(members.len());
            for &i in &members {
                let function = self.facts().functions.get(&calls[i].oid("winfnoid")?);
                let name = function.filter(|f| f.is_builtin()).map(|f| f.name.as_str());
                let call = window::resolved(&placed, &calls[i], name, false)?;
                self.check_call(&call)?;
                resolved.push(call);
            }
            let first;
            (stage, first) = self.collected(stage, keys, GroupForm::Windows, &resolved)?;
            members.iter().enumerate().for_each(|(n, &i)| columns[i] = first + n);
        }
        let replace = |node: &Node| {
            rewrite(node, &mut |n| {
                let call = calls.iter().position(|c| same(c, n)).map(|i| columns[i]);
                Ok(call.map(|c| column_node(c, &stage.columns[c])))
            })
        };
        let nodes = nodes.iter().map(replace).collect::<Step<Vec<Node>>>()?;
        Ok((stage, nodes))
    }

    /// One column per placed entry; functions that return sets multiply the rows, in step.
    pub(super) fn select(&mut self, stage: Stage, nodes: &[Node]) -> Step<Stage> {
        nodes.iter().try_for_each(|n| check::scalar(self.facts(), &as_scalar(n)))?;
        let columns: Vec<TypeInfo> = nodes.iter().map(|n| self.type_of(n)).collect::<Step<_>>()?;
        let (sets, plain): (Vec<Node>, Vec<Node>) = nodes.iter().cloned().partition(returns_set);
        if sets.is_empty() {
            let (stage, exprs) = self.compute(stage, nodes)?;
            return Ok(Stage::new(Rel::Project { input: Box::new(stage.rel), exprs }, columns));
        }
        let (stage, positions) = self.columns_for(stage, &plain)?;
        let (stage, mut set) = self.collected(stage, Vec::new(), GroupForm::Sets, &sets)?;
        let mut positions = positions.into_iter();
        let mut exprs = Vec::with_capacity(nodes.len());
        for node in nodes {
            exprs.push(Expr::Column(match returns_set(node) {
                true => {
                    set += 1;
                    set - 1
                }
                false => positions.next().ok_or_else(|| unknown_form("the select list"))?,
            }));
        }
        Ok(Stage::new(Rel::Project { input: Box::new(stage.rel), exprs }, columns))
    }

    /// DISTINCT, DISTINCT ON, ORDER BY with LIMIT and OFFSET over a stage with one column per entry, then those of outer
    /// references, per row of which everything happens.
    pub(super) fn finish(&mut self, frame: &Level, entries: &[&Node], stage: Stage) -> Step<Stage> {
        let query = &frame.query;
        let clauses = self.clauses(query)?;
        let mut stage = stage;
        let outer = entries.len()..stage.columns.len();
        let mut shown: Vec<usize> = (0..entries.len()).filter(|&i| !entries[i].bool("resjunk")).collect();
        let visible = shown.len();
        shown.extend(outer.clone());
        let mut entries = entries.to_vec();
        if clauses.distinct {
            stage = keep(stage, &shown).with_outer(visible);
            entries.retain(|e| !e.bool("resjunk"));
            stage = self.distinct(query, stage)?;
            shown = (0..stage.columns.len()).collect();
        }
        let per_row: Vec<GroupKey> = (entries.len()..entries.len() + outer.len())
            .map(|column| GroupKey { column, form: KeyForm::by_image(&stage.columns[column]) })
            .collect();
        let column = |clause: &Node| {
            let wanted = clause.field("tleSortGroupRef").as_int();
            let position = entries.iter().position(|e| Some(reference(e)) == wanted);
            position.ok_or_else(|| unknown_form("a clause refers to no column"))
        };
        let mut order = Vec::new();
        if clauses.needs_order() {
            for clause in query.nodes("sortClause")? {
                order.push((column(clause)?, clause));
            }
        }
        if clauses.distinct_on {
            let mut by = Vec::new();
            for clause in query.nodes("distinctClause")? {
                by.push((column(clause)?, clause.bool("hashable")));
            }
            let within: Vec<_> =
                order.iter().filter(|(c, _)| !by.iter().any(|(b, _)| b == c)).copied().collect();
            let mut keys;
            (stage, keys) = self.key_columns(stage, &by)?;
            keys.extend(per_row.iter().cloned());
            stage = self.top(stage, keys, &within, (0, Some(1), false))?;
        }
        if let Some((offset, limit)) = &clauses.computed {
            let bounds = (offset.as_ref(), limit.as_ref(), clauses.with_ties);
            stage = self.within(frame, stage, per_row, &order, bounds)?;
        } else if clauses.limit.is_some() || clauses.offset > 0 {
            if order.is_empty() && clauses.limit != Some(0) {
                self.notice("LIMIT without ORDER BY: the rows that are first by their text are kept");
            }
            stage = self.top(stage, per_row, &order, (clauses.offset, clauses.limit, clauses.with_ties))?;
        }
        Ok(keep(stage, &shown).with_outer(visible))
    }

    /// Equal rows once.
    fn distinct(&mut self, query: &Node, stage: Stage) -> Step<Stage> {
        let targets = query.nodes("targetList")?;
        let targets = targets.into_iter().filter(|t| !t.bool("resjunk"));
        let mut hashable = Vec::new();
        for target in targets {
            let wanted = Some(reference(target));
            let clauses = query.nodes("distinctClause")?;
            let clause = clauses.into_iter().find(|c| c.field("tleSortGroupRef").as_int() == wanted);
            hashable.push(clause.is_some_and(|c| c.bool("hashable")));
        }
        self.distinct_rows(stage, &hashable)
    }

    /// Equal rows once; `hashable` per column.
    pub(super) fn distinct_rows(&mut self, stage: Stage, hashable: &[bool]) -> Step<Stage> {
        let width = stage.columns.len();
        let visible = stage.visible();
        let columns: Vec<(usize, bool)> =
            (0..visible).map(|c| (c, hashable.get(c).copied().unwrap_or(false))).collect();
        let (stage, mut keys) = self.key_columns(stage, &columns)?;
        for column in visible..width {
            keys.push(GroupKey { column, form: KeyForm::by_image(&stage.columns[column]) });
        }
        let kept: Vec<usize> = keys.iter().map(|k| k.column).collect();
        let stage = keep(stage, &kept).with_outer(visible);
        let keys = keys.into_iter().map(|k| k.form).collect();
        Ok(Stage { rel: Rel::Distinct { input: Box::new(stage.rel), keys }, ..stage })
    }

    /// Of each partition the rows `offset .. offset + limit` by `order` (columns with their SORTGROUPCLAUSE).
    pub(super) fn top(
        &mut self,
        stage: Stage,
        partition: Vec<GroupKey>,
        order: &[(usize, &Node)],
        (offset, limit, with_ties): (u64, Option<u64>, bool),
    ) -> Step<Stage> {
        let native: Option<Vec<SortKey>> = order
            .iter()
            .map(|(column, clause)| self.sort_key(*column, &stage.columns[*column], clause))
            .collect();
        if let Some(order) = native {
            let input = Box::new(stage.rel);
            return Ok(Stage {
                rel: Rel::TopK { input, partition, order, offset, limit, with_ties },
                ..stage
            });
        }
        let (used, exprs) = self.ranks(&stage, order, with_ties)?;
        let width = stage.columns.len();
        let compare = |column: usize, comparison: Comparison, bound: u64| Expr::Call {
            kernel: Kernel::Compare(Order::Int, comparison),
            args: vec![Expr::Column(column), int8(bound)],
        };
        let last = width + usize::from(with_ties);
        let end = limit.map(|l| offset.saturating_add(l));
        let mut conditions = vec![compare(width, Comparison::Gt, offset)];
        conditions.extend(end.map(|end| compare(last, Comparison::Le, end)));
        if limit == Some(0) {
            conditions.push(compare(width, Comparison::Le, 0));
        }
        let rows: Vec<usize> = (0..width).collect();
        let mut rank = |stage: Stage, spread: u32, conditions: Vec<Expr>| {
            let (used, exprs) = (used.clone(), exprs.clone());
            let sql = Sql { used, exprs, tail: String::new(), originals: None, spread };
            let stage = self.group(stage, partition.clone(), GroupForm::Windows, sql)?;
            let rel = Rel::Filter { input: Box::new(stage.rel), predicate: Expr::And(conditions) };
            Ok::<_, Refusal>(keep(Stage { rel, ..stage }, &rows))
        };
        // What is not among the first of a part is not among the first of all: a change then has PostgreSQL look at one
        // part and at the first rows of each, not at all rows.
        let stage = match end {
            Some(end) if end <= SPREAD_LIMIT => rank(
                stage,
                SPREAD,
                vec![compare(last, Comparison::Le, end), compare(width, Comparison::Gt, 0)],
            )?,
            _ => stage,
        };
        rank(stage, 1, conditions)
    }

    /// Columns that are sorted by, and the expressions over them that number the rows of a partition by `order`; with ties
    /// also the rank.
    fn ranks(
        &self,
        stage: &Stage,
        order: &[(usize, &Node)],
        with_ties: bool,
    ) -> Step<(Vec<usize>, Vec<RemoteExpr>)> {
        let mut used: Vec<usize> = order.iter().map(|(c, _)| *c).collect();
        used.sort_unstable();
        used.dedup();
        let mut items = Vec::with_capacity(order.len());
        let mut builtin_only = true;
        for (column, clause) in order {
            let ty = &stage.columns[*column];
            let operator = deparse::operator_name(self.facts(), clause.oid("sortop")?)?;
            let place = used.iter().position(|u| u == column).unwrap_or(0) + 1;
            let nulls = if clause.bool("nulls_first") { "FIRST" } else { "LAST" };
            items.push(format!("x.c{place} USING {operator} NULLS {nulls}"));
            builtin_only &= volatility::builtin_only(&column_node(0, ty), self.facts())
                && volatility::builtin_only(clause, self.facts());
        }
        let order = items.join(", ");
        let comma = if items.is_empty() { "" } else { ", " };
        let result = types::info(self.facts(), INT8, -1, 0);
        let expr = |sql: String| RemoteExpr { sql, result: result.clone(), builtin_only };
        let mut exprs =
            vec![expr(format!("pg_catalog.row_number() OVER (PARTITION BY x.g ORDER BY {order}{comma}x.o)"))];
        if with_ties {
            exprs.push(expr(format!("pg_catalog.rank() OVER (PARTITION BY x.g ORDER BY {order})")));
        }
        Ok((used, exprs))
    }

    /// As [`Self::top`] with bounds that are computed: all rows are numbered.
    fn within(
        &mut self,
        frame: &Level,
        stage: Stage,
        partition: Vec<GroupKey>,
        order: &[(usize, &Node)],
        (offset, limit, with_ties): (Option<&Node>, Option<&Node>, bool),
    ) -> Step<Stage> {
        let width = stage.columns.len();
        let (used, exprs) = self.ranks(&stage, order, with_ties)?;
        let blocks = stage.blocks.clone();
        let sql = Sql { used, exprs, tail: String::new(), originals: None, spread: 1 };
        let stage = self.group(stage, partition, GroupForm::Windows, sql)?;
        let (number, last) = (width, width + usize::from(with_ties));
        let mut bounds = Vec::new();
        for node in [offset, limit].into_iter().flatten() {
            bounds.push(stage.place(&self.expand(frame, node)?)?);
        }
        let (stage, columns) = self.columns_for(stage, &bounds)?;
        let mut columns = columns.into_iter().map(Expr::Column);
        let mut bound = |node: Option<&Node>| node.and_then(|_| columns.next());
        let (offset, limit) = (bound(offset), bound(limit));
        let call = |kernel: Kernel, a: Expr, b: Expr| Expr::Call { kernel, args: vec![a, b] };
        let compare =
            |comparison: Comparison, a: Expr, b: Expr| call(Kernel::Compare(Order::Int, comparison), a, b);
        let error = |text: &[u8]| Expr::Literal(Row::from_datums([Datum::Error(text)]));
        let mut branches = Vec::new();
        for (value, text) in [
            (&offset, &b"2201X:OFFSET must not be negative"[..]),
            (&limit, &b"2201W:LIMIT must not be negative"[..]),
        ] {
            if let Some(value) = value {
                branches.push((compare(Comparison::Lt, value.clone(), int8(0)), error(text)));
            }
        }
        let skipped = offset.map(|o| Expr::Coalesce(vec![o, int8(0)])).unwrap_or_else(|| int8(0));
        let mut conditions = vec![compare(Comparison::Gt, Expr::Column(number), skipped.clone())];
        if let Some(limit) = limit {
            let past = call(Kernel::IntSub(IntWidth::I8), Expr::Column(last), skipped);
            let mut within = vec![compare(Comparison::Le, past, limit.clone())];
            if with_ties {
                // What ties with the last row that is skipped is not within zero rows.
                within.push(compare(Comparison::Gt, limit.clone(), int8(0)));
            }
            let within = if within.len() == 1 { within.remove(0) } else { Expr::And(within) };
            conditions.push(Expr::Or(vec![Expr::IsNull(Box::new(limit)), within]));
        }
        let predicate = Expr::Case { branches, otherwise: Box::new(Expr::And(conditions)) };
        let rel = Rel::Filter { input: Box::new(stage.rel), predicate };
        let rows: Vec<usize> = (0..width).collect();
        let stage = keep(Stage { rel, ..stage }, &rows);
        Ok(Stage { blocks, ..stage })
    }

    /// The clause as a native order of a column.
    fn sort_key(&self, column: usize, ty: &TypeInfo, clause: &Node) -> Option<SortKey> {
        let operator = self.facts().operators.get(&clause.oid("sortop").ok()?)?;
        let function = builtin(self.facts(), operator.function)?;
        let rules = collation_rules(self.facts(), ty.collation);
        kernels::order_of(ty.class, rules.bytewise)?;
        let (order, comparison) = kernels::comparison(&function.source, rules)?;
        let descending = match comparison {
            Comparison::Lt => false,
            Comparison::Gt => true,
            _ => return None,
        };
        Some(SortKey { column, order, descending, nulls_first: clause.bool("nulls_first") })
    }
}

fn int8(value: u64) -> Expr {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    Expr::Literal(Row::from_datums([Datum::Int(value)]))
}

/// The stage with the given columns only.
pub(super) fn keep(stage: Stage, columns: &[usize]) -> Stage {
    if columns.len() == stage.columns.len() && columns.iter().enumerate().all(|(i, &c)| i == c) {
        return stage;
    }
    let types = columns.iter().map(|&c| stage.columns[c].clone()).collect();
    let exprs = columns.iter().map(|&c| Expr::Column(c)).collect();
    Stage::new(Rel::Project { input: Box::new(stage.rel), exprs }, types)
}
