//! Join keys whose equality only the server knows.
//!
//! The distinct values of both sides together are given representatives (equal values have the same one, whose image
//! tells), and each side is joined with the representative of its value: any kind of join is then a native one.

use std::collections::BTreeSet;

use crate::analyzer::node::Node;
use crate::plan::expr::Expr;
use crate::plan::{JoinKey, JoinKind, Rel};
use crate::row::key::KeyForm;
use crate::row::{TypeClass, TypeInfo};

use super::from::sides;
use super::native::{builtin, collation_rules, operator_function};
use super::refusal::Step;
use super::select::keep;
use super::stage::Stage;
use super::{Translator, types};

/// C functions of `=` of types that are made of others; those of plain types are hashed ([`super::hashed`]).
const BUILTIN: &[&str] = &["array_eq", "range_eq", "multirange_eq", "record_eq"];
/// C functions of `=` of types whose text tells equal values, or may do so by its elements.
const BY_TEXT: &[&str] = &[
    "array_eq",
    "range_eq",
    "multirange_eq",
    "network_eq",
    "biteq",
    "macaddr_eq",
    "macaddr8_eq",
    "cash_eq",
    "pg_lsn_eq",
    "timetz_eq",
    "tideq",
    "xideq",
    "cideq",
    "xid8eq",
    "tsvector_eq",
];

/// `left expression = right expression` that the server decides.
pub(super) struct ServerEquality {
    pub left: Node,
    pub right: Node,
    /// The type of both, under the collation of the operator.
    ty: TypeInfo,
}

impl Translator<'_> {
    /// Whether `node` compares, by `=`, values of one type of which equal ones, and only those, have one text.
    pub(super) fn equal_by_text(&self, node: &Node) -> bool {
        let symbol = operator_function(self.facts(), node).and_then(|f| builtin(self.facts(), f.oid));
        let deterministic =
            node.oid("inputcollid").is_ok_and(|c| collation_rules(self.facts(), c).deterministic);
        symbol.is_some_and(|f| BY_TEXT.contains(&f.source.as_str()))
            && deterministic
            && self.one_type(node).is_some_and(|ty| self.form_of(&TypeInfo { deterministic, ..ty }).is_some())
    }

    /// The type of both arguments.
    fn one_type(&self, node: &Node) -> Option<TypeInfo> {
        let [a, b]: [&Node; 2] = node.nodes("args").ok()?.try_into().ok()?;
        let (a, b) = (self.type_of(a).ok()?, self.type_of(b).ok()?);
        (a.oid == b.oid).then_some(a)
    }

    pub(super) fn server_equality(
        &self,
        node: &Node,
        left: &BTreeSet<i64>,
        right: &BTreeSet<i64>,
    ) -> Option<ServerEquality> {
        if node.tag != "OPEXPR" {
            return None;
        }
        let operator = self.facts().operators.get(&node.oid("opno").ok()?)?;
        let function = operator_function(self.facts(), node)?;
        let known = function.is_builtin() && BUILTIN.contains(&function.source.as_str());
        if operator.name != "=" || !known {
            return None;
        }
        let ty = self.one_type(node)?;
        let ty = types::info(self.facts(), ty.oid, -1, node.oid("inputcollid").ok()?);
        if self.form_of(&ty).is_some() {
            return None;
        }
        let (l, r) = sides(node, left, right)?;
        Some(ServerEquality { left: l.clone(), right: r.clone(), ty })
    }

    /// Both sides with a column of representatives, and the key that joins them.
    pub(super) fn joined_by_server(
        &mut self,
        equality: &ServerEquality,
        left: Stage,
        right: Stage,
    ) -> Step<(Stage, Stage, JoinKey)> {
        let (left, l) = self.columns_for(left.clone(), &[left.place(&equality.left)?])?;
        let (right, r) = self.columns_for(right.clone(), &[right.place(&equality.right)?])?;
        let values = |stage: &Stage, column: usize| Rel::Project {
            input: Box::new(stage.rel.clone()),
            exprs: vec![Expr::Column(column)],
        };
        let all = Rel::UnionAll { inputs: vec![values(&left, l[0]), values(&right, r[0])] };
        let all = Rel::Distinct { input: Box::new(all), keys: vec![KeyForm::Exact] };
        let hashable = self.hashes(equality.ty.oid, 0);
        let (map, key) = self.key_column(Stage::new(all, vec![equality.ty.clone()]), 0, hashable)?;
        let map = keep(map, &[0, key.column]);
        let (left, l) = represented(left, l[0], &map);
        let (right, r) = represented(right, r[0], &map);
        let key = JoinKey { left: l, right: r, form: KeyForm::Image, nulls_match: false };
        Ok((left, right, key))
    }

    /// Whether values of the type can be hashed: all that hold only such.
    fn hashes(&self, oid: u32, depth: usize) -> bool {
        let Some(ty) = self.facts().types.get(&oid).and_then(|t| self.facts().types.get(&t.base)) else {
            return false;
        };
        if depth > 8 {
            return false;
        }
        match ty.typtype {
            'e' => true,
            'r' | 'm' => ty.oid < 16384,
            'c' => {
                let relation = self.facts().relations.get(&ty.relation);
                relation.is_some_and(|r| r.columns.iter().all(|c| self.hashes(c.ty.oid, depth + 1)))
            }
            'b' if ty.category == 'A' && ty.length == -1 => self.hashes(ty.element, depth + 1),
            // jsonb, inet and macaddr; then all with a class but "char", which has it too.
            _ => {
                matches!(ty.oid, 3802 | 869 | 829)
                    || matches!(ty.name.as_str(), "citext" | "hstore")
                    || TypeClass::of(ty.oid, ty.typtype) != TypeClass::Other
            }
        }
    }
}

/// The stage with the representative of a column as its last one.
fn represented(stage: Stage, column: usize, map: &Stage) -> (Stage, usize) {
    let on = vec![JoinKey { left: column, right: 0, form: KeyForm::Exact, nulls_match: false }];
    let position = stage.columns.len() + 1;
    let columns = stage.columns.into_iter().chain(map.columns.iter().cloned()).collect();
    let rel = Rel::Join {
        kind: JoinKind::Left,
        left: Box::new(stage.rel),
        right: Box::new(map.rel.clone()),
        on,
        residual: None,
    };
    (Stage { rel, columns, blocks: stage.blocks }, position)
}
