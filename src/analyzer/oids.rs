//! Which catalog objects a tree names, found by field name without knowledge of the node types.
//!
//! Too many is harmless (an OID that is not in the catalog is left out); too few would end as a clean refusal, because
//! readers ask for facts by OID and refuse what is missing.

use std::collections::BTreeSet;

use super::deparse::length_coercion;
use super::node::{Node, Value};

/// OIDs by catalog.
#[derive(Debug, Default, Clone)]
pub(super) struct Oids {
    pub(super) functions: BTreeSet<u32>,
    pub(super) operators: BTreeSet<u32>,
    pub(super) types: BTreeSet<u32>,
    pub(super) collations: BTreeSet<u32>,
    pub(super) relations: BTreeSet<u32>,
    /// ARRAY(SELECT ...) occurs: the array types of all types are needed too.
    pub(super) arrays: bool,
    /// Types that are not built in, with a typmod that only their own code can print.
    pub(super) typmods: BTreeSet<(u32, i32)>,
}

/// `FirstNormalObjectId`: everything below was made by initdb.
pub(super) const FIRST_NORMAL: u32 = 16384;

const TYPMODS: &[(&str, &str)] = &[
    ("vartype", "vartypmod"),
    ("consttype", "consttypmod"),
    ("resulttype", "resulttypmod"),
    ("refrestype", "reftypmod"),
    ("paramtype", "paramtypmod"),
    ("typeId", "typeMod"),
];

const FUNCTIONS: &[&str] = &[
    "funcid",
    "opfuncid",
    "hashfuncid",
    "negfuncid",
    "aggfnoid",
    "winfnoid",
    "tsmhandler",
    "startInRangeFunc",
    "endInRangeFunc",
];

const OPERATORS: &[&str] = &["opno", "opnos", "eqop", "sortop", "cycle_mark_neop"];

const TYPES: &[&str] = &[
    "vartype",
    "consttype",
    "funcresulttype",
    "opresulttype",
    "resulttype",
    "casetype",
    "coalescetype",
    "minmaxtype",
    "array_typeid",
    "element_typeid",
    "row_typeid",
    "refcontainertype",
    "refelemtype",
    "refrestype",
    "typeId",
    "paramtype",
    "aggtype",
    "wintype",
    "type",
    "typid",
    "colTypes",
    "coltypes",
    "funccoltypes",
    "ctecoltypes",
    "aggargtypes",
    "cycle_mark_type",
];

const COLLATIONS: &[&str] = &[
    "varcollid",
    "constcollid",
    "funccollid",
    "opcollid",
    "inputcollid",
    "inputcollids",
    "collOid",
    "collation",
    "casecollid",
    "array_collid",
    "coalescecollid",
    "minmaxcollid",
    "resultcollid",
    "refcollid",
    "paramcollid",
    "aggcollid",
    "wincollid",
    "colCollations",
    "colcollations",
    "funccolcollations",
    "ctecolcollations",
    "inRangeColl",
];

impl Oids {
    /// Adds everything that `node` and the nodes below it name; relations only of plain range table entries.
    pub(super) fn add(&mut self, node: &Node) {
        node.walk(&mut |n| {
            for (name, value) in &n.fields {
                let name = name.as_str();
                for (names, set) in [
                    (FUNCTIONS, &mut self.functions),
                    (OPERATORS, &mut self.operators),
                    (TYPES, &mut self.types),
                    (COLLATIONS, &mut self.collations),
                ] {
                    if names.contains(&name) {
                        put(set, value);
                    }
                }
            }
            for (ty, typmod) in TYPMODS {
                if let (Some(ty), Some(typmod)) = (n.field(ty).as_int(), n.field(typmod).as_int()) {
                    self.add_typmod(ty as u32, typmod as i32);
                }
            }
            if let (Some(typmod), Some(ty)) = (length_coercion(n), n.field("funcresulttype").as_int()) {
                self.add_typmod(ty as u32, typmod);
            }
            if n.tag == "CTECYCLECLAUSE" {
                // The path is kept as text[].
                self.types.extend([16, 25, 1009]);
            }
            self.arrays |= n.tag == "SUBLINK" && n.field("subLinkType") == &Value::Int(6);
            if n.tag == "RANGETBLENTRY" && n.field("rtekind") == &Value::Int(0) {
                put(&mut self.relations, n.field("relid"));
            }
        });
    }

    pub(super) fn add_typmod(&mut self, ty: u32, typmod: i32) {
        if ty >= FIRST_NORMAL && typmod >= 0 {
            self.typmods.insert((ty, typmod));
        }
    }
}

fn put(set: &mut BTreeSet<u32>, value: &Value) {
    match value {
        Value::Int(i) => set.extend(u32::try_from(*i).ok().filter(|oid| *oid != 0)),
        Value::List(items) => items.iter().for_each(|item| put(set, item)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyzer::node::parse;

    #[test]
    fn oids_are_found_in_fields_and_lists_and_zero_is_none() {
        let tree = parse(
            "({OPEXPR :opno 96 :opfuncid 65 :inputcollid 0} {ROWCOMPAREEXPR :opnos (o 97 98)} \
             {RTE :rtekind 0 :relid 16385} {RTE :rtekind 1 :relid 16386})",
        )
        .expect("parses");
        let mut oids = Oids::default();
        tree.items().iter().filter_map(Value::as_node).for_each(|n| oids.add(n));
        assert_eq!(oids.operators.into_iter().collect::<Vec<_>>(), [96, 97, 98]);
        assert_eq!(oids.functions.into_iter().collect::<Vec<_>>(), [65]);
        assert_eq!(oids.relations.into_iter().collect::<Vec<_>>(), [16385]);
        assert!(oids.collations.is_empty());
    }
}
