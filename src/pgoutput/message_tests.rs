//! Every kind of message, from bytes written by hand or by the encoder.

use super::encode::{self, Cell, text};
use super::messages::*;
use crate::error::ErrorKind;

fn refuse(bytes: &[u8]) -> String {
    let e = parse(bytes).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Protocol);
    e.to_string()
}

#[test]
fn begin_and_commit_are_read_from_bytes_written_by_hand() {
    let begin = b"B\x00\x00\x00\x00\x01\x54\x33\x38\x00\x03\x03\xd7\x09\x2f\xea\xb8\x00\x00\x02\xe0";
    assert_eq!(
        parse(begin).unwrap(),
        Message::Begin(Begin { final_lsn: 0x154_3338, commit_time: 0x0003_03d7_092f_eab8, xid: 736 })
    );
    let commit =
        b"C\x00\x00\x00\x00\x00\x01\x54\x33\x38\x00\x00\x00\x00\x01\x54\x33\x68\xff\xff\xff\xff\xff\xff\xff\xfe";
    assert_eq!(
        parse(commit).unwrap(),
        Message::Commit(Commit { lsn: 0x154_3338, end_lsn: 0x154_3368, commit_time: -2 })
    );
    let mut flagged = commit.to_vec();
    flagged[1] = 1;
    assert_eq!(refuse(&flagged), "logical replication message 'C' at byte 1: unknown flags");
}

#[test]
fn logical_messages_keep_prefix_and_content_as_bytes() {
    let bytes = b"M\x01\0\0\0\0\0\0\0\x09ab\0\0\0\0\x03\x00\xffz";
    let Message::Logical(m) = parse(bytes).unwrap() else { panic!() };
    assert_eq!((m.transactional, m.lsn, m.prefix, m.content), (true, 9, &b"ab"[..], &b"\x00\xffz"[..]));
    let Message::Logical(m) = parse(b"M\x00\0\0\0\0\0\0\0\x09\0\0\0\0\0").unwrap() else { panic!() };
    assert_eq!((m.transactional, m.prefix, m.content), (false, &b""[..], &b""[..]));
    assert!(refuse(b"M\x00\0\0\0\0\0\0\0\x09ab").contains("the prefix has no terminating NUL"));
    assert!(
        refuse(b"M\x00\0\0\0\0\0\0\0\x09a\0\xff\xff\xff\xff").contains("length of the content is negative")
    );
}

#[test]
fn origins_and_types_have_names() {
    assert_eq!(
        parse(b"O\0\0\0\0\0\0\x12\x34else\0").unwrap(),
        Message::Origin(Origin { lsn: 0x1234, name: "else" })
    );
    assert_eq!(
        parse(b"Y\0\0\x40\x01public\0mood\0").unwrap(),
        Message::Type(TypeMessage { oid: 16385, schema: "public", name: "mood" })
    );
    assert_eq!(
        refuse(b"Y\0\0\x40\x01\xff\0mood\0"),
        "logical replication message 'Y' at byte 5: the schema name is not valid UTF-8"
    );
}

#[test]
fn a_relation_lists_its_columns() {
    let bytes = b"R\0\0\0\x07s\0t\0i\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\x00v\0\0\0\x04\x13\0\0\0\x0c";
    let Message::Relation(r) = parse(bytes).unwrap() else { panic!() };
    assert_eq!((r.oid, r.schema, r.name, r.replica_identity, r.len()), (7, "s", "t", 'i', 2));
    let columns: Vec<_> = r.columns().collect();
    assert_eq!(
        columns,
        [
            ColumnMessage { is_key: true, name: "id", type_oid: 23, typmod: -1 },
            ColumnMessage { is_key: false, name: "v", type_oid: 1043, typmod: 12 }
        ]
    );
    assert!(
        refuse(&bytes[..bytes.len() - 1]).ends_with("the column typmod runs past the end of the message")
    );
}

#[test]
fn an_insert_tells_null_empty_text_and_unchanged_toast_apart() {
    let bytes = b"I\0\0\0\x07N\0\x04nt\0\0\0\0ut\0\0\0\x02hi";
    let Message::Insert { relation: 7, new } = parse(bytes).unwrap() else { panic!() };
    let values: Vec<_> = new.values().collect();
    assert_eq!(values, [Value::Null, Value::Text(b""), Value::UnchangedToast, Value::Text(b"hi")]);
    assert_eq!(changed_relation(bytes), Some(7));
    assert_eq!(changed_relation(b"T\0\0\0\x07"), None);
}

#[test]
fn updates_come_without_old_tuple_with_a_key_or_with_a_full_row() {
    let old = [text("1"), Cell::Null];
    let new = [text("2"), Cell::Toast];
    let plain = encode::update(7, None, &new);
    assert!(matches!(parse(&plain).unwrap(), Message::Update { relation: 7, old: None, .. }));
    let key = encode::update(7, Some((b'K', &old)), &new);
    let Message::Update { old: Some(OldTuple::Key(k)), new: n, .. } = parse(&key).unwrap() else { panic!() };
    assert_eq!(k.values().collect::<Vec<_>>(), [Value::Text(b"1"), Value::Null]);
    assert_eq!(n.values().collect::<Vec<_>>(), [Value::Text(b"2"), Value::UnchangedToast]);
    let full = encode::update(7, Some((b'O', &old)), &new);
    assert!(matches!(parse(&full).unwrap(), Message::Update { old: Some(OldTuple::Full(_)), .. }));
    let twice = encode::update(7, Some((b'N', &old)), &new);
    assert!(refuse(&twice).contains("unexpected bytes follow"));
    let mut bad = key.clone();
    bad[17] = b'K';
    assert!(parse(&bad).is_err());
}

#[test]
fn deletes_need_an_old_tuple() {
    let key = encode::delete(7, b'K', &[text("1")]);
    assert!(matches!(parse(&key).unwrap(), Message::Delete { relation: 7, old: OldTuple::Key(_) }));
    let full = encode::delete(7, b'O', &[text("1")]);
    assert!(matches!(parse(&full).unwrap(), Message::Delete { old: OldTuple::Full(_), .. }));
    let new = encode::delete(7, b'N', &[text("1")]);
    assert_eq!(refuse(&new), "logical replication message 'D' at byte 5: a DELETE has no old tuple");
    assert!(refuse(b"I\0\0\0\x07K\0\0").contains("an INSERT has no new tuple"));
}

#[test]
fn a_truncate_lists_relations_and_flags() {
    for (flags, cascade, restart) in [(0, false, false), (1, true, false), (2, false, true), (3, true, true)]
    {
        let bytes = encode::truncate(flags, &[5, 4_000_000_000, 7]);
        let Message::Truncate(t) = parse(&bytes).unwrap() else { panic!() };
        assert_eq!((t.cascade, t.restart_identity), (cascade, restart));
        assert_eq!(t.relations().collect::<Vec<_>>(), [5, 4_000_000_000, 7]);
    }
    let huge = b"T\xff\xff\xff\xff\0\0\0\0\x01";
    assert!(refuse(huge).contains("the relation list runs past the end"));
}

#[test]
fn binary_values_are_refused_by_name_and_offset() {
    let e = parse(b"I\0\0\0\x07N\0\x01b\0\0\0\x01\x01").unwrap_err();
    assert_eq!(e.to_string(), "logical replication message 'I' at byte 8: binary tuples are not requested");
    assert!(e.hint().is_some());
    assert!(refuse(b"I\0\0\0\x07N\0\x01x").contains("unknown column kind"));
    assert!(refuse(b"I\0\0\0\x07N\0\x01t\xff\xff\xff\xfe").contains("negative"));
}

#[test]
fn streaming_and_two_phase_messages_and_nothing_at_all_are_refused() {
    for kind in *b"SEcAbPKrp\0\xff" {
        assert!(refuse(&[kind, 0, 0]).contains("not part of protocol 1"), "{kind}");
    }
    assert_eq!(refuse(b""), "the server sent an empty logical replication message");
}

#[test]
fn bytes_after_a_message_are_refused() {
    let mut bytes = encode::begin(1, 2, 3);
    bytes.push(0);
    assert_eq!(refuse(&bytes), "logical replication message 'B' at byte 21: 1 unexpected bytes follow");
}
