//! Packed rows, accumulators and expression kernels, per row.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgtrickle::kernel::{Scratch, is_true, project};
use pgtrickle::plan::Expr;
use pgtrickle::plan::expr::{Comparison, IntWidth, Kernel, Order};
use pgtrickle::row::accumulate::{FloatSum, IntSum, NumericSum};
use pgtrickle::row::record::write_record;
use pgtrickle::row::{Datum, Row, RowBuilder};

fn row(i: i64) -> Row {
    let amount = format!("{}.{:02}", i % 1000, i % 100);
    let note = format!("note {i}");
    Row::from_datums([
        Datum::Int(1_000_000 + i),
        Datum::Int(i % 50_000),
        Datum::Text(amount.as_bytes()),
        Datum::Text(b"open"),
        Datum::Text(note.as_bytes()),
    ])
}

fn packed(c: &mut Criterion) {
    let mut group = c.benchmark_group("row");
    group.throughput(Throughput::Elements(1));
    let (row, mut builder) = (row(4711), RowBuilder::default());
    let datums = row.unpack();
    group.bench_function("pack 5 columns", |b| {
        b.iter(|| {
            for datum in &datums {
                builder.push(black_box(*datum));
            }
            builder.finish()
        });
    });
    group.bench_function("unpack 5 columns", |b| b.iter(|| black_box(&row).unpack().len()));
    group.bench_function("project 3 of 5 columns", |b| b.iter(|| black_box(&row).project(&[1, 2, 0])));
    group.bench_function("clone", |b| b.iter(|| black_box(&row).clone()));
    group.bench_function("record text", |b| {
        let mut text = Vec::new();
        b.iter(|| {
            text.clear();
            write_record(black_box(&row).iter(), &mut text);
            text.len()
        });
    });
    group.finish();
}

fn sums(c: &mut Criterion) {
    let mut group = c.benchmark_group("sum");
    group.throughput(Throughput::Elements(1));
    let mut numeric = NumericSum::default();
    group.bench_function("numeric of one scale", |b| {
        b.iter(|| numeric.add_text(black_box(b"12345.67"), black_box(1)))
    });
    group.bench_function("numeric result", |b| b.iter(|| numeric.sum().unwrap().unwrap().to_text()));
    let mut int = IntSum::default();
    group.bench_function("int8", |b| b.iter(|| int.add(black_box(12_345), black_box(1))));
    let mut float = FloatSum::default();
    group.bench_function("float8", |b| b.iter(|| float.add_text(black_box(b"12345.67"), black_box(1))));
    group.finish();
}

fn kernels(c: &mut Criterion) {
    let mut group = c.benchmark_group("kernel");
    group.throughput(Throughput::Elements(1));
    let literal = |datum| Expr::Literal(Row::from_datums([datum]));
    let call = |kernel, args| Expr::Call { kernel, args };
    let int =
        call(Kernel::Compare(Order::Int, Comparison::Gt), vec![Expr::Column(1), literal(Datum::Int(100))]);
    let text = call(
        Kernel::Compare(Order::Bytes, Comparison::Eq),
        vec![Expr::Column(3), literal(Datum::Text(b"open"))],
    );
    let numeric = call(
        Kernel::Compare(Order::Numeric, Comparison::Ge),
        vec![Expr::Column(2), literal(Datum::Text(b"10.5"))],
    );
    let add = call(Kernel::IntAdd(IntWidth::I8), vec![Expr::Column(0), literal(Datum::Int(7))]);
    let product = call(Kernel::NumericMul, vec![Expr::Column(2), literal(Datum::Text(b"1.19"))]);
    let row = row(4711);
    let mut scratch = Scratch::default();
    for (name, predicate) in [("int8 >", &int), ("text =", &text), ("numeric >=", &numeric)] {
        group.bench_function(name, |b| {
            b.iter(|| is_true(predicate, &black_box(&row).unpack(), &mut scratch).unwrap());
        });
    }
    for (name, expr) in [("int8 + int8", add), ("numeric * numeric", product)] {
        let exprs = [expr];
        group.bench_function(name, |b| b.iter(|| project(&exprs, &black_box(&row).unpack(), &mut scratch)));
    }
    group.finish();
}

criterion_group!(benches, packed, sums, kernels);
criterion_main!(benches);
