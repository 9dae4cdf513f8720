use super::*;
use crate::plan::expr::{Comparison, IntWidth, Kernel};
use crate::row::TypeClass;

fn int(value: i64) -> Expr {
    Expr::Literal(Row::from_datums([Datum::Int(value)]))
}

fn text(value: &str) -> Expr {
    Expr::Literal(Row::from_datums([Datum::Text(value.as_bytes())]))
}

fn boolean(value: Option<bool>) -> Expr {
    Expr::Literal(Row::from_datums([value.map_or(Datum::Null, Datum::Bool)]))
}

fn null() -> Expr {
    boolean(None)
}

fn call(kernel: Kernel, args: Vec<Expr>) -> Expr {
    Expr::Call { kernel, args }
}

fn fails() -> Expr {
    call(Kernel::IntDiv(IntWidth::I4), vec![int(1), int(0)])
}

/// The value as text; `NULL` and `!SQLSTATE:message` stand for the others.
fn shown(expr: &Expr) -> String {
    let mut scratch = Scratch::default();
    let row = project(std::slice::from_ref(expr), &[], &mut scratch);
    match row.get(0) {
        Datum::Null => "NULL".to_owned(),
        Datum::Error(e) => format!("!{}", String::from_utf8_lossy(e)),
        datum => {
            let mut out = Vec::new();
            datum.write_text(&mut out);
            String::from_utf8(out).unwrap()
        }
    }
}

const FAILED: &str = "!22012:division by zero";

#[test]
fn and_and_or_stop_where_the_server_stops() {
    let b = boolean;
    assert_eq!(shown(&Expr::And(vec![b(Some(false)), fails()])), "f");
    assert_eq!(shown(&Expr::And(vec![fails(), b(Some(false))])), FAILED);
    assert_eq!(shown(&Expr::And(vec![null(), fails()])), FAILED);
    assert_eq!(shown(&Expr::And(vec![null(), b(Some(false))])), "f");
    assert_eq!(shown(&Expr::And(vec![null(), b(Some(true))])), "NULL");
    assert_eq!(shown(&Expr::Or(vec![b(Some(true)), fails()])), "t");
    assert_eq!(shown(&Expr::Or(vec![null(), b(Some(true))])), "t");
    assert_eq!(shown(&Expr::Or(vec![null(), b(Some(false))])), "NULL");
    assert_eq!(shown(&Expr::Not(Box::new(null()))), "NULL");
}

#[test]
fn case_and_coalesce_do_not_evaluate_what_they_do_not_need() {
    let case = |condition| Expr::Case { branches: vec![(condition, int(1))], otherwise: Box::new(fails()) };
    assert_eq!(shown(&case(boolean(Some(true)))), "1");
    assert_eq!(shown(&case(null())), FAILED);
    assert_eq!(shown(&Expr::Coalesce(vec![null(), int(2), fails()])), "2");
    assert_eq!(shown(&Expr::Coalesce(vec![fails(), int(2)])), FAILED);
    assert_eq!(shown(&Expr::Coalesce(vec![null(), null()])), "NULL");
}

#[test]
fn strict_kernels_prefer_the_first_error_over_null() {
    let add = |a, b| shown(&call(Kernel::IntAdd(IntWidth::I4), vec![a, b]));
    assert_eq!(add(null(), int(1)), "NULL");
    assert_eq!(add(null(), fails()), FAILED);
    assert_eq!(shown(&Expr::IsNull(Box::new(fails()))), FAILED);
    assert_eq!(shown(&Expr::IsNull(Box::new(null()))), "t");
}

#[test]
fn integers_overflow_at_their_width() {
    let two = |kernel, a, b| shown(&call(kernel, vec![int(a), int(b)]));
    assert_eq!(two(Kernel::IntAdd(IntWidth::I2), 32767, 1), "!22003:smallint out of range");
    assert_eq!(two(Kernel::IntMul(IntWidth::I4), 65536, 32768), "!22003:integer out of range");
    assert_eq!(two(Kernel::IntSub(IntWidth::I8), i64::MIN, 1), "!22003:bigint out of range");
    assert_eq!(two(Kernel::IntDiv(IntWidth::I4), i32::MIN.into(), -1), "!22003:integer out of range");
    assert_eq!(two(Kernel::IntDiv(IntWidth::I8), i64::MIN, -1), "!22003:bigint out of range");
    assert_eq!(two(Kernel::IntMod(IntWidth::I8), i64::MIN, -1), "0");
    assert_eq!(two(Kernel::IntMod(IntWidth::I4), -7, 3), "-1");
    assert_eq!(two(Kernel::IntDiv(IntWidth::I4), -7, 2), "-3");
    assert_eq!(shown(&call(Kernel::IntNeg(IntWidth::I2), vec![int(-32768)])), "!22003:smallint out of range");
    assert_eq!(shown(&call(Kernel::IntCast(IntWidth::I2), vec![int(40000)])), "!22003:smallint out of range");
}

#[test]
fn numbers_stay_numbers_between_kernels() {
    let product = call(Kernel::NumericMul, vec![text("1.50"), call(Kernel::IntToNumeric, vec![int(3)])]);
    assert_eq!(shown(&call(Kernel::NumericRound, vec![product.clone(), int(1)])), "4.5");
    assert_eq!(shown(&call(Kernel::NumericDiv, vec![product, text("0.0")])), FAILED);
    assert_eq!(shown(&call(Kernel::NumericToInt(IntWidth::I4), vec![text("-2.5")])), "-3");
    assert_eq!(
        shown(&call(Kernel::NumericToInt(IntWidth::I4), vec![text("NaN")])),
        "!0A000:cannot convert NaN to integer"
    );
    let sum = call(Kernel::FloatAdd(TypeClass::Float8), vec![text("0.1"), text("0.2")]);
    assert_eq!(shown(&sum), "0.30000000000000004");
    assert_eq!(shown(&call(Kernel::FloatNeg, vec![text("0")])), "-0");
    assert_eq!(shown(&call(Kernel::Float4To8, vec![text("0.1")])), "0.10000000149011612");
}

#[test]
fn text_kernels_count_characters() {
    assert_eq!(shown(&call(Kernel::TextLength, vec![text("äöü€")])), "4");
    assert_eq!(shown(&call(Kernel::TextConcat, vec![text("a"), text("b")])), "ab");
    assert_eq!(shown(&call(Kernel::TextLike(false), vec![text("abc"), text("a%")])), "f");
    assert_eq!(shown(&call(Kernel::TextStartsWith, vec![text("abc"), text("ab")])), "t");
    assert_eq!(shown(&call(Kernel::BpcharToText, vec![text("ab  ")])), "ab");
}

#[test]
fn comparisons_follow_the_types() {
    let compare =
        |order, a: &str, c, b: &str| shown(&call(Kernel::Compare(order, c), vec![text(a), text(b)]));
    assert_eq!(compare(Order::Numeric, "1.0", Comparison::Eq, "1.00"), "t");
    assert_eq!(compare(Order::Numeric, "NaN", Comparison::Gt, "Infinity"), "t");
    assert_eq!(compare(Order::Float, "-0", Comparison::Eq, "0"), "t");
    assert_eq!(compare(Order::Float, "NaN", Comparison::Ge, "Infinity"), "t");
    let sum = call(Kernel::FloatAdd(TypeClass::Float4), vec![text("0.05"), text("0.05")]);
    assert_eq!(shown(&call(Kernel::Compare(Order::Float, Comparison::Eq), vec![sum, text("0.1")])), "t");
    assert_eq!(compare(Order::Bpchar, "a ", Comparison::Eq, "a"), "t");
    assert_eq!(compare(Order::Interval, "1 mon", Comparison::Eq, "30 days"), "t");
    assert_eq!(compare(Order::Date, "0044-03-15 BC", Comparison::Lt, "10000-01-01"), "t");
    assert_eq!(shown(&call(Kernel::DateSub, vec![text("2024-03-01"), text("2024-02-28")])), "2");
    assert_eq!(
        shown(&call(Kernel::DateSub, vec![text("infinity"), text("2024-02-28")])),
        "!22008:cannot subtract infinite dates"
    );
}

#[test]
fn distinct_and_nullif_treat_null_as_a_value() {
    let distinct = |a, b| shown(&Expr::Distinct { order: Order::Int, left: Box::new(a), right: Box::new(b) });
    assert_eq!(distinct(null(), null()), "f");
    assert_eq!(distinct(null(), int(1)), "t");
    assert_eq!(distinct(int(1), int(1)), "f");
    let nullif = |a, b| shown(&Expr::NullIf { order: Order::Int, left: Box::new(a), right: Box::new(b) });
    assert_eq!(nullif(int(1), int(1)), "NULL");
    assert_eq!(nullif(int(1), null()), "1");
    assert_eq!(nullif(null(), int(1)), "NULL");
}

#[test]
fn a_filter_keeps_only_true() {
    let mut scratch = Scratch::default();
    assert_eq!(is_true(&boolean(Some(true)), &[], &mut scratch), Ok(true));
    assert_eq!(is_true(&null(), &[], &mut scratch), Ok(false));
    assert_eq!(is_true(&fails(), &[], &mut scratch), Err(b"22012:division by zero".to_vec()));
}

#[test]
fn a_wrong_plan_gives_an_error_value_instead_of_a_panic() {
    let wrong = "!XX000:a native expression met an operand of another type";
    assert_eq!(shown(&Expr::Column(7)), wrong);
    assert_eq!(shown(&call(Kernel::IntAdd(IntWidth::I4), vec![text("x"), int(1)])), wrong);
    assert_eq!(shown(&call(Kernel::NumericAdd, vec![int(1)])), wrong);
    // An integer is not a numeric: its image differs, so the cast must be in the plan.
    assert_eq!(shown(&call(Kernel::NumericAdd, vec![int(1), text("1.0")])), wrong);
    assert_eq!(shown(&call(Kernel::NumericAdd, vec![int(1), int(1)])), wrong);
}
