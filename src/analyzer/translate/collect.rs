//! Calls that PostgreSQL computes over whole groups: batches of them, and equality that only the server knows.

use crate::analyzer::deparse::{self, Scope};
use crate::analyzer::facts::Function;
use crate::analyzer::node::{Node, Value};
use crate::analyzer::settings::{self, Dependence};
use crate::analyzer::verify::GroupOriginals;
use crate::analyzer::volatility;
use crate::plan::expr::Expr;
use crate::plan::{GroupBatch, GroupForm, GroupKey, Rel, RemoteBatch, RemoteExpr, RemoteInput};
use crate::row::TypeInfo;
use crate::row::key::KeyForm;

use super::compute::{Remote, input_of};
use super::refusal::{Refusal, Step};
use super::stage::{Stage, column_node, placed_column, rewrite};
use super::{Translator, check, types, unknown_form};

/// `pg_type.oid` of int4.
const INT4: u32 = 23;

impl Translator<'_> {
    /// `nodes` (whole calls, or expressions with set-returning functions in them) computed over the groups of `keys`.
    /// Columns: those of the keys or of the stage (see [`GroupForm`]; the stage gets more of them where there are subqueries
    /// in the nodes), then one per node; returned is where these begin.
    pub(super) fn collected(
        &mut self,
        stage: Stage,
        keys: Vec<GroupKey>,
        form: GroupForm,
        nodes: &[Node],
    ) -> Step<(Stage, usize)> {
        let (stage, nodes) = self.attach(stage, nodes)?;
        let used = used_columns(&nodes);
        let (mut exprs, mut originals) = (Vec::with_capacity(nodes.len()), Vec::with_capacity(nodes.len()));
        let scope = Scope { facts: self.facts(), inputs: &input_of };
        for node in &nodes {
            let node = at_inputs(node, &used, &stage)?;
            let sql = deparse::expression(&as_scalar(&node), scope)
                .map_err(|e| Refusal::new("unsupported.expression", e.context()))?;
            let plain = as_scalar(&node);
            // The owner's function runs under the settings of the stream table's creation, the sidecar under its own.
            let builtin_only = volatility::builtin_only(&plain, self.facts())
                && !settings::reads_settings(self.facts(), &plain);
            exprs.push(RemoteExpr { sql, result: self.type_of(&node)?, builtin_only });
            originals.push(node);
        }
        let originals = Some(GroupOriginals { exprs: originals, functions: None });
        let stage =
            self.group(stage, keys, form, Sql { used, exprs, tail: String::new(), originals, spread: 1 })?;
        let first = stage.columns.len() - nodes.len();
        Ok((stage, first))
    }

    /// The operator for statements that are made; `sql.used` are the columns that `c1`, `c2` ... stand for.
    pub(super) fn group(
        &mut self,
        stage: Stage,
        keys: Vec<GroupKey>,
        form: GroupForm,
        sql: Sql,
    ) -> Step<Stage> {
        let Sql { used, exprs, tail, originals, spread } = sql;
        let inputs = self.remote_inputs(&stage, &used)?;
        let mut columns: Vec<TypeInfo> = match form.keeps_rows() {
            true => stage.columns.clone(),
            false => keys.iter().map(|k| stage.columns[k.column].clone()).collect(),
        };
        columns.extend(exprs.iter().map(|e| e.result.clone()));
        let batch = GroupBatch { inputs, exprs, tail, form, spread, owner_function: None };
        self.prove(Remote::Groups { batch: batch.clone(), originals });
        let blocks = if form.keeps_rows() { stage.blocks } else { Vec::new() };
        Ok(Stage { rel: Rel::Group { input: Box::new(stage.rel), keys, batch }, columns, blocks })
    }

    /// The given columns as inputs of a statement.
    pub(super) fn remote_inputs(&self, stage: &Stage, used: &[usize]) -> Step<Vec<RemoteInput>> {
        let mut inputs = Vec::with_capacity(used.len());
        for &column in used {
            let ty = &stage.columns[column];
            if matches!(ty.oid, deparse::RECORD | deparse::RECORD_ARRAY) {
                return Err(Refusal::new(
                    "unsupported.anonymous_row",
                    "a row without a type of its own would have to be kept: PostgreSQL can't read its text back",
                )
                .hint("cast it to a type made with CREATE TYPE"));
            }
            let type_name = deparse::type_name(self.facts(), ty.oid, ty.typmod)?;
            let collate = deparse::collate_clause(self.facts(), ty.oid, ty.collation)?;
            inputs.push(RemoteInput { column, type_name, collate });
        }
        Ok(inputs)
    }

    /// [`Translator::columns_for`], with columns that have the types of the nodes: `x COLLATE "c"` is the column `x`, but is
    /// compared under another collation.
    pub(super) fn typed_columns(&mut self, stage: Stage, nodes: &[Node]) -> Step<(Stage, Vec<usize>)> {
        let (mut stage, mut columns) = self.columns_for(stage, nodes)?;
        let mut exprs: Vec<Expr> = (0..stage.columns.len()).map(Expr::Column).collect();
        for (column, node) in columns.iter_mut().zip(nodes) {
            let (held, wanted) = (&stage.columns[*column], self.type_of(node)?);
            if (held.oid, held.collation) != (wanted.oid, wanted.collation) {
                exprs.push(Expr::Column(*column));
                *column = stage.columns.len();
                stage.columns.push(wanted);
            }
        }
        if exprs.iter().enumerate().any(|(i, e)| *e != Expr::Column(i)) {
            stage.rel = Rel::Project { input: Box::new(stage.rel), exprs };
        }
        Ok((stage, columns))
    }

    /// The form in which a type's image tells equal values, if there is one. Some types without native operations print
    /// equal values, and only those, in one way.
    pub(super) fn form_of(&self, ty: &TypeInfo) -> Option<KeyForm> {
        KeyForm::of(ty)
            .or_else(|| (ty.deterministic && self.prints_once(ty.oid, 0)).then_some(KeyForm::Image))
    }

    /// Whether equal values of the type have one text: not so numeric (1.0, 1.00), float (0, -0), char(n), interval, and
    /// what holds them.
    fn prints_once(&self, oid: u32, depth: usize) -> bool {
        // bit, varbit, inet, cidr, macaddr, macaddr8, timetz, money, pg_lsn, tid, xid, cid, xid8, tsvector;
        // ranges and multiranges of int4, int8, date, timestamp, timestamptz.
        const ONCE: &[u32] = &[
            1560, 1562, 869, 650, 829, 774, 1266, 790, 3220, 27, 28, 29, 5069, 3614, 3904, 3926, 3912, 3908,
            3910, 4451, 4536, 4535, 4533, 4534,
        ];
        // bool, bytea, name, int8, int2, int4, text, oid, varchar, date, time, timestamp, timestamptz, uuid.
        const ELEMENTS: &[u32] = &[16, 17, 19, 20, 21, 23, 25, 26, 1043, 1082, 1083, 1114, 1184, 2950];
        let Some(ty) = self.facts().types.get(&oid).and_then(|t| self.facts().types.get(&t.base)) else {
            return false;
        };
        if ONCE.contains(&ty.oid) || (depth > 0 && (ELEMENTS.contains(&ty.oid) || ty.typtype == 'e')) {
            return true;
        }
        depth < 8
            && ty.typtype == 'b'
            && ty.category == 'A'
            && ty.length == -1
            && self.prints_once(ty.element, depth + 1)
    }

    /// A column that is equal by `KeyForm` where `column` is by its type: itself, or one of the equal values for all of
    /// them. `hashable`: as the server says of the clause that compares.
    pub(super) fn key_column(
        &mut self,
        stage: Stage,
        column: usize,
        hashable: bool,
    ) -> Step<(Stage, GroupKey)> {
        let ty = stage.columns[column].clone();
        if let Some(form) = self.form_of(&ty) {
            return Ok((stage, GroupKey { column, form }));
        }
        let builtin_only = volatility::builtin_only(&column_node(0, &ty), self.facts());
        let (mut stage, mut keys) = (stage, Vec::new());
        if hashable {
            let inputs = self.remote_inputs(&stage, &[column])?;
            let result = types::info(self.facts(), INT4, -1, 0);
            let sql = "pg_catalog.hash_record(row(x.c1))".to_owned();
            let exprs = vec![RemoteExpr { sql, result: result.clone(), builtin_only }];
            keys.push(GroupKey { column: stage.columns.len(), form: KeyForm::Image });
            stage.columns.push(result);
            let batch = RemoteBatch { inputs, exprs, owner_function: None };
            stage.rel = Rel::Evaluate { input: Box::new(stage.rel), batch };
        }
        let sql = "pg_catalog.first_value(x.c1) OVER (PARTITION BY x.g, x.c1 ORDER BY x.o)".to_owned();
        let exprs = vec![RemoteExpr { sql, result: ty, builtin_only }];
        let position = stage.columns.len();
        let sql = Sql { used: vec![column], exprs, tail: String::new(), originals: None, spread: 1 };
        let stage = self.group(stage, keys, GroupForm::Windows, sql)?;
        Ok((stage, GroupKey { column: position, form: KeyForm::Image }))
    }

    /// [`Translator::key_column`] of several columns.
    pub(super) fn key_columns(
        &mut self,
        mut stage: Stage,
        columns: &[(usize, bool)],
    ) -> Step<(Stage, Vec<GroupKey>)> {
        let mut keys = Vec::with_capacity(columns.len());
        for &(column, hashable) in columns {
            let key;
            (stage, key) = self.key_column(stage, column, hashable)?;
            keys.push(key);
        }
        Ok((stage, keys))
    }

    /// Refuses an aggregate or window call whose value is not a function of its group's rows.
    pub(super) fn check_call(&self, node: &Node) -> Step<()> {
        let field = if node.tag == "AGGREF" { "aggfnoid" } else { "winfnoid" };
        let oid = node.oid(field)?;
        let function =
            self.facts().functions.get(&oid).ok_or_else(|| unknown_form("an aggregate without a name"))?;
        let mut parts: Vec<&Node> = Vec::new();
        for part in node.nodes("args")?.into_iter().chain(node.nodes("aggdirectargs")?) {
            parts.push(if part.tag == "TARGETENTRY" { part.node("expr")? } else { part });
        }
        let results = parts.clone();
        parts.extend(node.optional_node("aggfilter"));
        if let Some(over) = node.optional_node("over") {
            for item in over.nodes("order")? {
                parts.push(item.node("expr")?);
            }
            parts.extend(["startOffset", "endOffset"].iter().filter_map(|f| over.optional_node(f)));
        }
        parts.into_iter().try_for_each(|p| check::scalar(self.facts(), p))?;
        match function.volatility {
            'i' => Ok(()),
            's' if settings::of_function(self.facts(), function, &results) != Dependence::More => Ok(()),
            's' => Err(refuse(function, "stable: its result can change without any change of a row")),
            _ => Err(refuse(function, "volatile: it gives another result on each call")),
        }
    }
}

/// Statement parts of a group.
pub(super) struct Sql {
    pub used: Vec<usize>,
    pub exprs: Vec<RemoteExpr>,
    pub tail: String,
    /// `None`: made here, not from the query's tree.
    pub originals: Option<GroupOriginals>,
    /// [`GroupBatch::spread`].
    pub spread: u32,
}

fn refuse(function: &Function, why: &str) -> Refusal {
    Refusal::new("unsupported.aggregate", format!("the aggregate {} is {why}", function.name))
}

/// Columns that placed nodes read, in the order met.
pub(super) fn used_columns(nodes: &[Node]) -> Vec<usize> {
    let mut used = Vec::new();
    for node in nodes {
        node.walk(&mut |n| {
            if let Some(column) = placed_column(n).filter(|c| !used.contains(c)) {
                used.push(column);
            }
        });
    }
    used
}

/// `node` over the inputs of a statement.
pub(super) fn at_inputs(node: &Node, used: &[usize], stage: &Stage) -> Step<Node> {
    rewrite(node, &mut |n| {
        let position = placed_column(n).and_then(|c| used.iter().position(|u| *u == c));
        Ok(position.map(|p| column_node(p, &stage.columns[used[p]])))
    })
}

/// The node with calls of set-returning functions as if they returned one value.
pub(super) fn as_scalar(node: &Node) -> Node {
    fn value(v: &Value) -> Value {
        match v {
            Value::Node(n) => Value::Node(Box::new(as_scalar(n))),
            Value::List(items) => Value::List(items.iter().map(value).collect()),
            other => other.clone(),
        }
    }
    let field = |(name, v): &(String, Value)| match name.as_str() {
        "funcretset" | "opretset" => (name.clone(), Value::Bool(false)),
        _ => (name.clone(), value(v)),
    };
    Node { tag: node.tag.clone(), fields: node.fields.iter().map(field).collect() }
}

/// Whether a set-returning function is called in the expression.
pub(super) fn returns_set(node: &Node) -> bool {
    let mut found = false;
    node.walk(&mut |n| found |= n.bool("funcretset") || n.bool("opretset"));
    found
}
