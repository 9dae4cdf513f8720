//! Range table entries: tables, views, stream tables, subqueries, CTEs and VALUES.

use crate::analyzer::facts::Relation;
use crate::analyzer::node::Node;
use crate::plan::Rel;
use crate::plan::expr::Expr;
use crate::row::{Row, TypeInfo};

use super::from::entries_of;
use super::refusal::{Refusal, Step};
use super::stage::{OUTER, Stage, column_node, rewrite};
use super::{Frame, Level, ROW_ID, Translator, check, inline, range_table_entry, unknown_form};

mod hierarchy;

/// OIDs below are given by initdb.
const FIRST_NORMAL_OID: u32 = 16384;

impl Translator<'_> {
    /// The rows of range table entry `rtindex`, as its block.
    pub(super) fn range_table(&mut self, frame: &Level, rtindex: i64) -> Step<Stage> {
        let entry = range_table_entry(&frame.query, rtindex)?;
        let (stage, attributes) = match entry.int("rtekind")? {
            0 => self.relation(entry)?,
            1 => numbered(self.query_below(frame, entry.node("subquery")?)?),
            3 => {
                let needs = entries_of(&self.function_calls(frame, rtindex)?);
                let rows = match frame.domain().filter(|_| needs.contains(&OUTER)) {
                    Some(domain) => domain.clone(),
                    None => Stage::new(Rel::Constant { rows: vec![Row::empty()] }, Vec::new()),
                };
                return self.with_functions(frame, rtindex, rows, false);
            }
            4 => {
                return Err(Refusal::new(
                    "unsupported.function_in_from",
                    "FROM contains XMLTABLE or JSON_TABLE",
                ));
            }
            5 => numbered(self.values(frame, entry)?),
            6 => self.cte(frame, entry)?,
            _ => return Err(unknown_form("a kind of FROM item")),
        };
        self.with_presence(frame, rtindex, stage.named(rtindex, attributes))
    }

    fn cte(&mut self, frame: &Level, entry: &Node) -> Step<(Stage, Vec<i16>)> {
        if entry.bool("self_reference") {
            return Ok(numbered(self.recursive_reference(entry)?));
        }
        let mut level = frame;
        for _ in 0..entry.int("ctelevelsup")? {
            level = level.parent.as_ref().ok_or_else(|| unknown_form("a CTE of a missing query level"))?;
        }
        let cte = self.cte_node(level, entry)?;
        if cte.bool("cterecursive") {
            return self.recursion(level, cte);
        }
        Ok(numbered(self.query_below(level, cte.node("ctequery")?)?))
    }

    /// Each row of VALUES is a projection of the one empty row; literal ones are constants.
    fn values(&mut self, frame: &Level, entry: &Node) -> Step<Stage> {
        let (mut columns, mut constant, mut inputs) = (None, Vec::new(), Vec::new());
        let mut lists = Vec::new();
        for list in entry.list("values_lists") {
            let mut nodes = Vec::new();
            for value in list.items() {
                let node = self.expand(frame, value.as_node().ok_or_else(|| unknown_form("VALUES"))?)?;
                check::scalar(self.facts(), &node)?;
                nodes.push(node);
            }
            lists.push(nodes);
        }
        let width = lists.first().map_or(0, Vec::len);
        let outer = lists.iter().flatten().any(|n| entries_of(n).contains(&OUTER));
        let outer = if outer { frame.outer_nodes() } else { Vec::new() };
        for mut list in lists {
            let one = match frame.domain().filter(|_| !outer.is_empty()) {
                Some(domain) => domain.clone(),
                None => Stage::new(Rel::Constant { rows: vec![Row::empty()] }, Vec::new()),
            };
            list.extend(outer.iter().cloned());
            let nodes = list.iter().map(|n| one.place(n)).collect::<Step<Vec<_>>>()?;
            if columns.is_none() {
                // What a column is: rows may have other lengths or collations than the first.
                let mut types: Vec<TypeInfo> =
                    self.row_columns(entry)?.into_iter().map(|(_, _, ty)| ty).collect();
                let outer: Step<Vec<TypeInfo>> = nodes.iter().skip(width).map(|n| self.type_of(n)).collect();
                types.extend(outer?);
                columns = Some(types);
            }
            let (stage, exprs) = self.compute(one, &nodes)?;
            match exprs.iter().map(literal).collect::<Option<Vec<&Row>>>() {
                Some(literals) => constant.push(Row::from_datums(literals.iter().map(|r| r.get(0)))),
                None => inputs.push(Rel::Project { input: Box::new(stage.rel), exprs }),
            }
        }
        if !constant.is_empty() {
            inputs.insert(0, Rel::Constant { rows: constant });
        }
        let rel = if inputs.len() == 1 { inputs.remove(0) } else { Rel::UnionAll { inputs } };
        Ok(Stage::new(rel, columns.unwrap_or_default()).with_outer(width))
    }

    fn relation(&mut self, entry: &Node) -> Step<(Stage, Vec<i16>)> {
        let oid = entry.oid("relid")?;
        let facts = self.facts();
        let relation =
            facts.relations.get(&oid).ok_or_else(|| unknown_form("a relation that is not in the catalog"))?;
        if entry.optional_node("tablesample").is_some() {
            return Err(Refusal::new(
                "unsupported.tablesample",
                format!("TABLESAMPLE reads other rows of {} each time", full_name(relation)),
            ));
        }
        if relation.kind == 'v' {
            return self.view(relation);
        }
        if let Some(stream_table) = relation.stream_table.as_ref().filter(|s| s.incremental) {
            if relation.has_children && entry.bool("inh") {
                let name = full_name(relation);
                return Err(Refusal::new(
                    "unsupported.inheritance",
                    format!("tables inherit from the stream table {name}"),
                ));
            }
            self.upstreams.push(stream_table.view);
            let visible: Vec<_> = relation.columns.iter().filter(|c| c.name != ROW_ID).collect();
            let columns = (0..visible.len()).collect();
            let stage = Stage::new(
                Rel::StreamTable { view: stream_table.view, columns },
                visible.iter().map(|c| c.ty.clone()).collect(),
            );
            return Ok((stage, visible.iter().map(|c| c.attnum).collect()));
        }
        check_source(relation)?;
        if relation.kind == 'p' || entry.bool("inh") && relation.has_children {
            return self.hierarchy(relation, entry.bool("inh"));
        }
        self.table(relation)
    }

    fn view(&mut self, relation: &Relation) -> Step<(Stage, Vec<i16>)> {
        let differs = self.inputs.owner != Some(relation.owner);
        if (relation.security_barrier || relation.security_invoker) && differs {
            return Err(Refusal::new(
                "unsupported.security_view",
                format!(
                    "the view {} has security_barrier or security_invoker and another owner",
                    full_name(relation)
                ),
            ));
        }
        let query = self.inputs.views.get(&relation.oid);
        let query = query.ok_or_else(|| unknown_form("a view without a query"))?;
        Ok(numbered(self.query(&Frame::top(&inline::correlated_ctes(query)?))?))
    }

    /// A base table; generated columns, which the stream does not carry, are computed from the others.
    fn table(&mut self, relation: &Relation) -> Step<(Stage, Vec<i16>)> {
        let attributes: Vec<i16> = relation.columns.iter().map(|c| c.attnum).collect();
        let columns: Vec<TypeInfo> = relation.columns.iter().map(|c| c.ty.clone()).collect();
        let stored: Vec<usize> = (0..columns.len()).filter(|&i| !is_generated(relation, i)).collect();
        let source =
            Rel::Source { source: relation.oid, attributes: stored.iter().map(|&i| attributes[i]).collect() };
        if stored.len() == columns.len() {
            return Ok((Stage::new(source, columns), attributes));
        }
        let stage = Stage::new(source, stored.iter().map(|&i| columns[i].clone()).collect());
        let mut nodes = Vec::with_capacity(columns.len());
        for (i, ty) in columns.iter().enumerate() {
            if let Some(position) = stored.iter().position(|s| *s == i) {
                nodes.push(column_node(position, ty));
                continue;
            }
            let expr = self.inputs.generated.get(&(relation.oid, attributes[i]));
            let expr = expr.ok_or_else(|| unknown_form("a generated column without an expression"))?;
            nodes.push(rewrite(expr, &mut |n| {
                if n.tag != "VAR" {
                    return Ok(None);
                }
                let attribute = n.int("varattno")?;
                let position = stored.iter().position(|&s| i64::from(attributes[s]) == attribute);
                let position = position.ok_or_else(|| {
                    let name = format!("{}.{}", full_name(relation), relation.columns[i].name);
                    Refusal::new(
                        "unsupported.generated_column",
                        format!("the generated column {name} is not a function of stored columns"),
                    )
                })?;
                Ok(Some(column_node(position, &columns[stored[position]])))
            })?);
        }
        let (stage, exprs) = self.compute(stage, &nodes)?;
        Ok((Stage::new(Rel::Project { input: Box::new(stage.rel), exprs }, columns), attributes))
    }
}

pub(super) fn is_generated(relation: &Relation, column: usize) -> bool {
    matches!(relation.columns[column].generated, 's' | 'v')
}

/// Output columns of a query are attributes 1, 2, ...
fn numbered(stage: Stage) -> (Stage, Vec<i16>) {
    let attributes = (1..).take(stage.visible()).collect();
    (stage, attributes)
}

fn literal(expr: &Expr) -> Option<&Row> {
    match expr {
        Expr::Literal(row) => Some(row),
        _ => None,
    }
}

fn full_name(relation: &Relation) -> String {
    format!("{}.{}", relation.schema, relation.name)
}

/// Whether a relation's changes can be captured so that the result is exact.
fn check_source(relation: &Relation) -> Step<()> {
    let name = full_name(relation);
    let refuse = |code, reason: String| Err(Refusal::new(code, reason));
    match relation.kind {
        'm' => {
            return refuse(
                "unsupported.materialized_view",
                format!("{name} is a materialized view, whose REFRESH is not in the change stream"),
            );
        }
        'f' => {
            return refuse(
                "unsupported.foreign_table",
                format!("{name} is a foreign table, whose changes are not in this server's WAL"),
            );
        }
        'r' | 'p' => {}
        _ => return refuse("unsupported.relation", format!("{name} is not a table")),
    }
    if relation.oid < FIRST_NORMAL_OID || relation.schema == "information_schema" {
        return refuse(
            "unsupported.system_catalog",
            format!("{name} is a system catalog, whose changes are not published"),
        );
    }
    if relation.persistence == 't' {
        return refuse("unsupported.temporary_table", format!("{name} is a temporary table"));
    }
    if relation.row_security {
        return refuse(
            "unsupported.row_security",
            format!("{name} has row-level security, which the change stream does not apply"),
        );
    }
    Ok(())
}
