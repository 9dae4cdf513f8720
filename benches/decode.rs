//! From bytes to rows: pgoutput messages and COPY lines of five columns.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgtrickle::pgoutput::{Assembler, WantedAttribute};
use pgtrickle::row::TypeClass;
use pgtrickle::row::copy::CopyDecoder;

const RELATION: u32 = 16_400;
/// Name, type, class; the first column is the key.
const COLUMNS: [(&str, u32, TypeClass); 5] = [
    ("id", 20, TypeClass::Int8),
    ("customer_id", 20, TypeClass::Int8),
    ("amount", 1700, TypeClass::Numeric),
    ("status", 25, TypeClass::Text),
    ("note", 25, TypeClass::Text),
];
const ROWS: usize = 1_000;

fn values(i: usize) -> [String; 5] {
    let cents = (i * 37) % 100_000;
    [
        (1_000_000 + i).to_string(),
        (i % 50_000).to_string(),
        format!("{}.{:02}", cents / 100, cents % 100),
        "open".to_owned(),
        format!("note {i}"),
    ]
}

fn describe() -> Vec<u8> {
    let mut out = vec![b'R'];
    out.extend(RELATION.to_be_bytes());
    out.extend(b"app\0orders\0d");
    out.extend((COLUMNS.len() as u16).to_be_bytes());
    for (i, (name, oid, _)) in COLUMNS.iter().enumerate() {
        out.push(u8::from(i == 0));
        out.extend(name.as_bytes());
        out.push(0);
        out.extend(oid.to_be_bytes());
        out.extend((-1i32).to_be_bytes());
    }
    out
}

fn change(kind: u8, i: usize) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(RELATION.to_be_bytes());
    out.push(b'N');
    out.extend((COLUMNS.len() as u16).to_be_bytes());
    for value in values(i) {
        out.push(b't');
        out.extend((value.len() as u32).to_be_bytes());
        out.extend(value.as_bytes());
    }
    out
}

fn assembler(columns: usize) -> Assembler {
    let mut assembler = Assembler::new(1 << 30);
    let wanted = |(name, type_oid, class): &(&str, u32, TypeClass)| WantedAttribute {
        name: (*name).to_owned(),
        type_oid: *type_oid,
        class: *class,
    };
    assembler.register(RELATION, COLUMNS[..columns].iter().map(wanted).collect());
    assembler.begin(1, 1, 0).unwrap();
    assembler.change(&describe()).unwrap();
    assembler.commit(1, 1, 0).unwrap();
    assembler
}

fn pgoutput(c: &mut Criterion) {
    let mut group = c.benchmark_group("pgoutput");
    group.throughput(Throughput::Elements(ROWS as u64));
    for (name, kind, columns) in [
        ("insert of 5 columns", b'I', 5),
        ("update of 5 columns", b'U', 5),
        ("update, 3 of 5 wanted", b'U', 3),
    ] {
        let messages: Vec<Vec<u8>> = (0..ROWS).map(|i| change(kind, i)).collect();
        let mut assembler = assembler(columns);
        group.bench_function(name, |b| {
            b.iter(|| {
                assembler.begin(1, 1, 0).unwrap();
                for message in &messages {
                    assembler.change(black_box(message)).unwrap();
                }
                assembler.commit(1, 1, 0).unwrap()
            });
        });
    }
    group.finish();
}

fn copy(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy");
    group.throughput(Throughput::Elements(ROWS as u64));
    let lines: Vec<String> = (0..ROWS).map(|i| values(i).join("\t") + "\n").collect();
    let mut decoder = CopyDecoder::new(COLUMNS.iter().map(|(_, _, class)| *class).collect());
    group.bench_function("line of 5 columns", |b| {
        b.iter(|| {
            for line in &lines {
                black_box(decoder.decode(black_box(line.as_bytes())).unwrap());
            }
        });
    });
    group.finish();
}

criterion_group!(benches, pgoutput, copy);
criterion_main!(benches);
