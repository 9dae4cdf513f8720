//! A plan under construction: a relational operator, the types of its columns, and where range table entries are in it.

use crate::analyzer::node::{Node, Value};
use crate::plan::Rel;
use crate::row::TypeInfo;

use super::refusal::{Refusal, Step};

/// In place of a range table index: what a query refers to outside of it.
pub const OUTER: i64 = -1;
/// In place of a range table index: the row on the left of a join with a subquery.
pub const LEFT: i64 = -2;
/// In place of a range table index: the columns of a subquery.
pub const ANSWER: i64 = -3;

/// Where the columns of one range table entry lie in the rows of a [`Stage`].
#[derive(Debug, Clone)]
pub struct Block {
    /// 1-based index into the query's range table.
    pub rtindex: i64,
    /// First column.
    pub start: usize,
    /// The attribute numbers, in column order (dropped columns leave gaps).
    pub attributes: Vec<i16>,
}

/// An operator with what the next one needs to know about its rows. Columns outside all blocks are computed ones.
#[derive(Debug, Clone)]
pub struct Stage {
    pub rel: Rel,
    pub columns: Vec<TypeInfo>,
    pub blocks: Vec<Block>,
}

impl Stage {
    pub fn new(rel: Rel, columns: Vec<TypeInfo>) -> Stage {
        Stage { rel, columns, blocks: Vec::new() }
    }

    /// Makes the first columns those of range table entry `rtindex`; outer references stay where they are.
    pub fn named(mut self, rtindex: i64, attributes: Vec<i16>) -> Stage {
        self.blocks.retain(|b| b.rtindex == OUTER);
        self.blocks.push(Block { rtindex, start: 0, attributes });
        self
    }

    pub fn column(&self, rtindex: i64, attribute: i64) -> Option<usize> {
        self.blocks.iter().filter(|b| b.rtindex == rtindex).find_map(|block| {
            let offset = block.attributes.iter().position(|&a| i64::from(a) == attribute)?;
            Some(block.start + offset)
        })
    }

    /// Makes the columns from `start` on the values of references to outer query levels.
    pub fn with_outer(mut self, start: usize) -> Stage {
        self.blocks.retain(|b| b.rtindex != OUTER);
        if start < self.columns.len() {
            let attributes = (1..).take(self.columns.len() - start).collect();
            self.blocks.push(Block { rtindex: OUTER, start, attributes });
        }
        self
    }

    /// Makes all columns those of [`LEFT`].
    pub fn named_left(mut self) -> Stage {
        let attributes = (1..).take(self.columns.len()).collect();
        self.blocks = vec![Block { rtindex: LEFT, start: 0, attributes }];
        self
    }

    fn outer_block(&self) -> Option<&Block> {
        self.blocks.iter().find(|b| b.rtindex == OUTER)
    }

    /// Number of columns before those of outer references, where these are the last ones.
    pub fn visible(&self) -> usize {
        self.outer_block().map_or(self.columns.len(), |b| b.start)
    }

    /// The columns that hold outer references.
    pub fn outer_columns(&self) -> Vec<usize> {
        self.outer_block().map_or_else(Vec::new, |b| (b.start..b.start + b.attributes.len()).collect())
    }

    /// The blocks of `left`, then those of `right` behind its columns. Outer references that both have are the left's.
    pub fn joined_blocks(left: &Stage, right: &Stage) -> Vec<Block> {
        let width = left.columns.len();
        let both = |b: &&Block| b.rtindex != OUTER || left.outer_block().is_none();
        let shifted = right.blocks.iter().filter(both).map(|b| Block { start: b.start + width, ..b.clone() });
        left.blocks.iter().cloned().chain(shifted).collect()
    }

    /// `node` with its Vars pointing to columns of this stage: `varno` 1, `varattno` the column plus one.
    pub fn place(&self, node: &Node) -> Step<Node> {
        rewrite(node, &mut |n| {
            if n.tag != "VAR" {
                return Ok(None);
            }
            let (rtindex, attribute) = (n.int("varno")?, n.int("varattno")?);
            let column = self.column(rtindex, attribute).ok_or_else(|| {
                Refusal::new("unsupported.tree", "a column reference points outside of its query level")
            })?;
            let position = i64::try_from(column + 1).unwrap_or(i64::MAX);
            Ok(Some(with_fields(n, &[("varno", 1), ("varattno", position)])))
        })
    }
}

/// A copy of `node` with integer fields replaced.
pub fn with_fields(node: &Node, values: &[(&str, i64)]) -> Node {
    let mut copy = node.clone();
    for (name, value) in &mut copy.fields {
        if let Some((_, new)) = values.iter().find(|(n, _)| n == name) {
            *value = Value::Int(*new);
        }
    }
    copy
}

/// A Var of the current stage for column `column`.
pub fn column_node(column: usize, ty: &TypeInfo) -> Node {
    var_node(1, column, ty)
}

/// A Var for attribute `column` + 1 of entry `rtindex`.
pub fn var_node(rtindex: i64, column: usize, ty: &TypeInfo) -> Node {
    let int = |i: i64| Value::Int(i);
    let fields = vec![
        ("varno".to_owned(), int(rtindex)),
        ("varattno".to_owned(), int(i64::try_from(column + 1).unwrap_or(i64::MAX))),
        ("vartype".to_owned(), int(i64::from(ty.oid))),
        ("vartypmod".to_owned(), int(i64::from(ty.typmod))),
        ("varcollid".to_owned(), int(i64::from(ty.collation))),
        ("varlevelsup".to_owned(), int(0)),
    ];
    Node { tag: "VAR".to_owned(), fields }
}

/// The column that a placed Var stands for.
pub fn placed_column(node: &Node) -> Option<usize> {
    if node.tag != "VAR" {
        return None;
    }
    let attribute = node.field("varattno").as_int()?;
    usize::try_from(attribute).ok()?.checked_sub(1)
}

/// Copies a tree; where `replace` gives a node, that one stands for the subtree.
pub fn rewrite(node: &Node, replace: &mut impl FnMut(&Node) -> Step<Option<Node>>) -> Step<Node> {
    if let Some(new) = replace(node)? {
        return Ok(new);
    }
    let mut fields = Vec::with_capacity(node.fields.len());
    for (name, value) in &node.fields {
        fields.push((name.clone(), rewrite_value(value, replace)?));
    }
    Ok(Node { tag: node.tag.clone(), fields })
}

fn rewrite_value(value: &Value, replace: &mut impl FnMut(&Node) -> Step<Option<Node>>) -> Step<Value> {
    Ok(match value {
        Value::Node(n) => Value::Node(Box::new(rewrite(n, replace)?)),
        Value::List(items) => {
            Value::List(items.iter().map(|v| rewrite_value(v, replace)).collect::<Step<Vec<_>>>()?)
        }
        other => other.clone(),
    })
}

/// Fields that `equal()` (`nodes/equalfuncs.c`) does not compare, or that differ between copies of one expression.
const NOT_COMPARED: &[&str] = &[
    "location",
    "list_start",
    "list_end",
    "funcformat",
    "relabelformat",
    "coerceformat",
    "coercionformat",
    "convertformat",
    "row_format",
    "opfuncid",
    "aggpresorted",
    "aggtranstype",
    "aggno",
    "aggtransno",
];

/// Whether two expressions are the same to the server (`equal()`).
pub fn same(a: &Node, b: &Node) -> bool {
    let compared = |n: &&(String, Value)| !NOT_COMPARED.contains(&n.0.as_str());
    let (mut left, mut right) = (a.fields.iter().filter(compared), b.fields.iter().filter(compared));
    if a.tag != b.tag {
        return false;
    }
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some((n, v)), Some((m, w))) if n == m && same_value(v, w) => {}
            _ => return false,
        }
    }
}

fn same_value(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Node(a), Value::Node(b)) => same(a, b),
        (Value::List(a), Value::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_value(a, b))
        }
        _ => a == b,
    }
}
