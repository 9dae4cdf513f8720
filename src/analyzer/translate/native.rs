//! Expressions with an exact native form. `None` always means "PostgreSQL computes it".

use crate::analyzer::facts::{Facts, Function};
use crate::analyzer::node::Node;
use crate::plan::expr::{BooleanTest, Comparison, Expr, IntWidth, Kernel, Order};
use crate::row::{Datum, Row, TypeClass, TypeInfo};

use super::kernels::{self, CollationRules};
use super::{constants, stage, types};

/// Compiles a placed expression (Vars are columns of the stage).
pub fn compile(facts: &Facts, node: &Node) -> Option<Expr> {
    Compiler { facts, case_test: None }.expr(node)
}

/// The built-in C function behind an operator or function node.
pub fn builtin(facts: &Facts, oid: u32) -> Option<&Function> {
    facts.functions.get(&oid).filter(|f| f.is_builtin() && f.language == "internal")
}

/// The function that an operator node calls.
pub fn operator_function<'a>(facts: &'a Facts, node: &Node) -> Option<&'a Function> {
    let operator = facts.operators.get(&node.oid("opno").ok()?)?;
    facts.functions.get(&operator.function)
}

/// What a collation (0: none) allows.
pub fn collation_rules(facts: &Facts, collation: u32) -> CollationRules {
    match (collation, facts.collations.get(&collation)) {
        (0, _) => CollationRules { deterministic: true, bytewise: true },
        (_, Some(c)) => CollationRules { deterministic: c.deterministic, bytewise: c.is_c },
        (_, None) => CollationRules { deterministic: false, bytewise: false },
    }
}

/// Casts of integer literals, which the tree holds as calls (`amount > 10` for a numeric amount).
fn fold(kernel: Kernel, args: &[Expr]) -> Option<Expr> {
    let [Expr::Literal(row)] = args else { return None };
    let Datum::Int(i) = row.get(0) else { return None };
    let literal = |d: Datum<'_>| Some(Expr::Literal(Row::from_datums([d])));
    match kernel {
        Kernel::IntToNumeric => literal(Datum::Text(i.to_string().as_bytes())),
        // Larger ones are printed with an exponent.
        Kernel::IntToFloat8 if i.unsigned_abs() < 1_000_000_000_000_000 => {
            literal(Datum::Text(i.to_string().as_bytes()))
        }
        Kernel::IntCast(IntWidth::I8) => literal(Datum::Int(i)),
        Kernel::IntCast(IntWidth::I4) if i32::try_from(i).is_ok() => literal(Datum::Int(i)),
        Kernel::IntCast(IntWidth::I2) if i16::try_from(i).is_ok() => literal(Datum::Int(i)),
        _ => None,
    }
}

struct Compiler<'a> {
    facts: &'a Facts,
    /// The value of `CASE value WHEN ...`.
    case_test: Option<Expr>,
}

impl Compiler<'_> {
    fn expr(&self, node: &Node) -> Option<Expr> {
        match node.tag.as_str() {
            "VAR" => Some(Expr::Column(stage::placed_column(node)?)),
            "CONST" => constants::literal(self.facts, node).map(Expr::Literal),
            "FUNCEXPR" => {
                if node.bool("funcretset") || node.bool("funcvariadic") {
                    return None;
                }
                self.function(builtin(self.facts, node.oid("funcid").ok()?)?, node)
            }
            "OPEXPR" => {
                let function = operator_function(self.facts, node)?;
                self.function(builtin(self.facts, function.oid)?, node)
            }
            "DISTINCTEXPR" | "NULLIFEXPR" => self.equality_form(node),
            "SCALARARRAYOPEXPR" => self.any_of_list(node),
            "BOOLEXPR" => self.boolean(node),
            "NULLTEST" => {
                if node.bool("argisrow") {
                    return None;
                }
                let arg = Box::new(self.typed(node.node("arg").ok()?)?);
                match node.int("nulltesttype").ok()? {
                    0 => Some(Expr::IsNull(arg)),
                    1 => Some(Expr::IsNotNull(arg)),
                    _ => None,
                }
            }
            "BOOLEANTEST" => {
                use BooleanTest::*;
                const TESTS: [BooleanTest; 6] =
                    [IsTrue, IsNotTrue, IsFalse, IsNotFalse, IsUnknown, IsNotUnknown];
                let test = *TESTS.get(usize::try_from(node.int("booltesttype").ok()?).ok()?)?;
                Some(Expr::BooleanTest { arg: Box::new(self.expr(node.node("arg").ok()?)?), test })
            }
            "CASEEXPR" => self.case(node),
            "CASETESTEXPR" => self.case_test.clone(),
            "COALESCEEXPR" => Some(Expr::Coalesce(self.list(node)?)),
            "RELABELTYPE" => self.relabel(node),
            "COLLATEEXPR" => self.collate(node),
            _ => None,
        }
    }

    fn ty(&self, node: &Node) -> Option<TypeInfo> {
        types::type_of(self.facts, node).ok()
    }

    /// NULL tests of composite values look inside; types without a class may be such.
    fn typed(&self, node: &Node) -> Option<Expr> {
        let oid = self.ty(node)?.oid;
        let base = self.facts.types.get(&oid).and_then(|t| self.facts.types.get(&t.base));
        if base.is_none_or(|t| t.typtype == 'c' || t.typtype == 'p') {
            return None;
        }
        self.expr(node)
    }

    fn list(&self, node: &Node) -> Option<Vec<Expr>> {
        node.nodes("args").ok()?.into_iter().map(|n| self.expr(n)).collect()
    }

    fn function(&self, function: &Function, node: &Node) -> Option<Expr> {
        let args = node.nodes("args").ok()?;
        if !function.strict || args.iter().any(|a| self.ty(a).is_none_or(|t| t.class == TypeClass::Other)) {
            return None;
        }
        if function.source == "numeric" && args.len() == 2 {
            let typmod = args.get(1).filter(|n| n.tag == "CONST" && !n.bool("constisnull"))?;
            let kernel = Kernel::NumericTypmod(constants::int4(typmod)?);
            return Some(Expr::Call { kernel, args: vec![self.expr(args.first()?)?] });
        }
        if function.source == "numeric_float8" {
            let Expr::Literal(row) = self.expr(args.first()?)? else { return None };
            let Datum::Text(text) = row.get(0) else { return None };
            let text = constants::float8_text(std::str::from_utf8(text).ok()?.parse().ok()?)?;
            return Some(Expr::Literal(Row::from_datums([Datum::Text(text.as_bytes())])));
        }
        let rules = collation_rules(self.facts, node.oid("inputcollid").ok()?);
        let kernel = kernels::kernel(&function.source, rules)?;
        let args: Vec<Expr> = args.into_iter().map(|n| self.expr(n)).collect::<Option<_>>()?;
        Some(fold(kernel, &args).unwrap_or(Expr::Call { kernel, args }))
    }

    fn equality_order(&self, node: &Node) -> Option<Order> {
        let function = builtin(self.facts, operator_function(self.facts, node)?.oid)?;
        let rules = collation_rules(self.facts, node.oid("inputcollid").ok()?);
        match kernels::comparison(&function.source, rules)? {
            (order, Comparison::Eq) => Some(order),
            _ => None,
        }
    }

    fn equality_form(&self, node: &Node) -> Option<Expr> {
        let order = self.equality_order(node)?;
        let [left, right]: [Expr; 2] = self.list(node)?.try_into().ok()?;
        let nodes = node.nodes("args").ok()?;
        if nodes.iter().any(|a| self.ty(a).is_none_or(|t| t.class == TypeClass::Other)) {
            return None;
        }
        let (left, right) = (Box::new(left), Box::new(right));
        match node.tag.as_str() {
            "DISTINCTEXPR" => Some(Expr::Distinct { order, left, right }),
            _ => Some(Expr::NullIf { order, left, right }),
        }
    }

    /// `x = ANY (ARRAY[...])` and `x <> ALL (ARRAY[...])`: what IN and NOT IN over a list become.
    fn any_of_list(&self, node: &Node) -> Option<Expr> {
        let function = builtin(self.facts, operator_function(self.facts, node)?.oid)?;
        let args = node.nodes("args").ok()?;
        let (scalar, list) = (*args.first()?, *args.get(1)?);
        if list.tag != "ARRAYEXPR" || list.bool("multidims") || !function.strict {
            return None;
        }
        let elements = list.nodes("elements").ok()?;
        let known = |n: &Node| self.ty(n).is_some_and(|t| t.class != TypeClass::Other);
        if elements.is_empty() || !known(scalar) || !elements.iter().all(|n| known(n)) {
            return None;
        }
        let rules = collation_rules(self.facts, node.oid("inputcollid").ok()?);
        let kernel = kernels::kernel(&function.source, rules)?;
        let scalar = self.expr(scalar)?;
        let compare = |n: &Node| Some(Expr::Call { kernel, args: vec![scalar.clone(), self.expr(n)?] });
        let tests: Vec<Expr> = elements.into_iter().map(compare).collect::<Option<_>>()?;
        Some(if node.bool("useOr") { Expr::Or(tests) } else { Expr::And(tests) })
    }

    fn boolean(&self, node: &Node) -> Option<Expr> {
        let args = self.list(node)?;
        match node.text("boolop")?.as_str() {
            "and" => Some(Expr::And(args)),
            "or" => Some(Expr::Or(args)),
            "not" => args.into_iter().next().map(|a| Expr::Not(Box::new(a))),
            _ => None,
        }
    }

    fn case(&self, node: &Node) -> Option<Expr> {
        let case_test = match node.optional_node("arg") {
            Some(arg) => Some(self.expr(arg)?),
            None => None,
        };
        let tests = Compiler { facts: self.facts, case_test };
        let mut branches = Vec::new();
        for when in node.nodes("args").ok()? {
            let test = tests.expr(when.node("expr").ok()?)?;
            branches.push((test, self.expr(when.node("result").ok()?)?));
        }
        let otherwise = match node.optional_node("defresult") {
            Some(n) => self.expr(n)?,
            None => Expr::Literal(Row::from_datums([Datum::Null])),
        };
        Some(Expr::Case { branches, otherwise: Box::new(otherwise) })
    }

    /// A change of type without a change of bytes. The image stays too, within one class and among text types.
    fn relabel(&self, node: &Node) -> Option<Expr> {
        let arg = node.node("arg").ok()?;
        let (from, to) = (self.ty(arg)?, self.ty(node)?);
        let text = |t: &TypeInfo| matches!(t.class, TypeClass::Text | TypeClass::Varchar | TypeClass::Bpchar);
        let same = match from.class {
            TypeClass::Other => from.oid == to.oid || self.base(from.oid) == self.base(to.oid),
            class => class == to.class || (text(&from) && text(&to)),
        };
        if same { Some(self.coarser(self.expr(arg)?, &from, &to)) } else { None }
    }

    fn collate(&self, node: &Node) -> Option<Expr> {
        let arg = node.node("arg").ok()?;
        Some(self.coarser(self.expr(arg)?, &self.ty(arg)?, &self.ty(node)?))
    }

    /// The same image under an equality that knows fewer differences (without blanks at the end, without case) is another
    /// column: it does not inherit that its values are unique.
    fn coarser(&self, expr: Expr, from: &TypeInfo, to: &TypeInfo) -> Expr {
        let blanks = to.class == TypeClass::Bpchar && from.class != TypeClass::Bpchar;
        if blanks || from.deterministic && !to.deterministic {
            return Expr::Call { kernel: Kernel::Relabel, args: vec![expr] };
        }
        expr
    }

    fn base(&self, oid: u32) -> u32 {
        self.facts.types.get(&oid).map_or(oid, |t| t.base)
    }
}
