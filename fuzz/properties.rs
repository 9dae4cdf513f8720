//! What must hold for any input: shared by the fuzz targets and by the suite `fuzzing`, which tries it within bounds.

use pgtrickle::analyzer::node;
use pgtrickle::pgoutput::{Assembler, Event, Message, WantedAttribute, messages};
use pgtrickle::row::datum::datum_from_text;
use pgtrickle::row::record::{parse_record, write_record};
use pgtrickle::row::{Numeric, TypeClass};

const CLASSES: &[TypeClass] = &[
    TypeClass::Bool,
    TypeClass::Int2,
    TypeClass::Int4,
    TypeClass::Int8,
    TypeClass::Oid,
    TypeClass::Numeric,
    TypeClass::Float4,
    TypeClass::Float8,
    TypeClass::Text,
    TypeClass::Bytea,
    TypeClass::Date,
    TypeClass::Time,
    TypeClass::Timestamp,
    TypeClass::Timestamptz,
    TypeClass::Interval,
    TypeClass::Uuid,
];

/// A stream of messages, cut from the input by two-byte lengths, through parser and assembler: no panic, no endless
/// loop, and no change of a registered relation lost without a word.
pub fn pgoutput_message(data: &[u8]) {
    let mut assembler = Assembler::new(1 << 16);
    let wanted = |name: &str, type_oid, class| WantedAttribute { name: name.into(), type_oid, class };
    assembler.register(0, vec![wanted("a", 23, TypeClass::Int4), wanted("b", 25, TypeClass::Text)]);
    let mut rest = data;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let (message, tail) = tail.split_at(usize::from(u16::from_be_bytes(*length)).min(tail.len()));
        rest = tail;
        if let Ok(Message::Insert { new, .. }) = messages::parse(message) {
            assert_eq!(new.values().count(), new.len());
        }
        match assembler.change(message) {
            Err(_) => assembler.reconnected(),
            Ok(Some(Event::Committed(t))) => {
                let again: Vec<u32> = t.to_reread().collect();
                for relation in &t.touched {
                    assert!(again.contains(relation) || t.changes.iter().any(|c| c.relation == *relation));
                }
            }
            Ok(_) => {}
        }
    }
}

/// A node tree is read or refused.
pub fn node_tree(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(tree) = node::parse(text) {
        let mut nodes = 0usize;
        tree.walk(&mut |_| nodes += 1);
        assert!(nodes <= text.len());
    }
}

/// Two numbers, parted by a line feed: what is read is written as it was meant, and arithmetic can be undone.
pub fn numeric(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n').map(Numeric::parse);
    let Some(Some(a)) = parts.next() else { return };
    let again = Numeric::parse(a.to_text().as_bytes()).expect("what was written is read");
    assert_eq!((again.compare(&a), again.to_text()), (std::cmp::Ordering::Equal, a.to_text()));
    let Some(Some(b)) = parts.next() else { return };
    assert_eq!(a.compare(&b), b.compare(&a).reverse());
    if let Ok(sum) = a.add(&b) {
        assert_eq!(b.add(&a).expect("it is commutative").to_text(), sum.to_text());
        if let (Some(_), Some(_), Ok(back)) = (a.scale(), b.scale(), sum.sub(&b)) {
            assert!(back.compare(&a).is_eq(), "{} + {} - {1}", a.to_text(), b.to_text());
        }
    }
    if let (Ok(product), Ok(other)) = (a.mul(&b), b.mul(&a)) {
        assert_eq!(product.to_text(), other.to_text());
    }
    drop((a.div(&b), a.round(2), a.neg(), a.abs()));
}

/// The first byte chooses a type, the rest is its text; then the same as a record of three such values: what was read and
/// written is read and written the same.
pub fn text_codec(data: &[u8]) {
    let Some((choice, text)) = data.split_first() else { return };
    let class = CLASSES[usize::from(*choice) % CLASSES.len()];
    if let Ok(datum) = datum_from_text(class, text) {
        let mut first = Vec::new();
        assert!(datum.write_text(&mut first), "a value is not null");
        let again = datum_from_text(class, &first).expect("what was written is read");
        let mut second = Vec::new();
        again.write_text(&mut second);
        assert_eq!(first, second, "{class:?}");
    }
    let classes = [class, TypeClass::Text, class];
    if let Ok(row) = parse_record(text, &classes) {
        let mut first = Vec::new();
        write_record(row.iter(), &mut first);
        let again = parse_record(&first, &classes).expect("what was written is read");
        assert_eq!(row, again);
    }
}
