//! A stream of messages, cut from the input by two-byte lengths, through parser and assembler: no panic, no endless
//! loop, and no change of a registered relation lost without a word.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgtrickle::pgoutput::{Assembler, Event, Message, WantedAttribute, messages::parse};
use pgtrickle::row::TypeClass;

fuzz_target!(|data: &[u8]| {
    let mut assembler = Assembler::new(1 << 16);
    let wanted = |name: &str, type_oid, class| WantedAttribute { name: name.into(), type_oid, class };
    assembler.register(0, vec![wanted("a", 23, TypeClass::Int4), wanted("b", 25, TypeClass::Text)]);
    let mut rest = data;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let (message, tail) = tail.split_at(usize::from(u16::from_be_bytes(*length)).min(tail.len()));
        rest = tail;
        if let Ok(Message::Insert { new, .. }) = parse(message) {
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
});
