//! Test-only encoder of messages, written from the documentation independently of the parser.

/// A value of a tuple to encode: NULL, unchanged TOAST or text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    Null,
    Toast,
    Text(Vec<u8>),
}

pub(super) fn text(value: &str) -> Cell {
    Cell::Text(value.as_bytes().to_vec())
}

fn c_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.push(0);
}

pub(super) fn begin(final_lsn: u64, commit_time: i64, xid: u32) -> Vec<u8> {
    let mut out = vec![b'B'];
    out.extend(final_lsn.to_be_bytes());
    out.extend(commit_time.to_be_bytes());
    out.extend(xid.to_be_bytes());
    out
}

pub(super) fn commit(lsn: u64, end_lsn: u64, commit_time: i64) -> Vec<u8> {
    let mut out = vec![b'C', 0];
    out.extend(lsn.to_be_bytes());
    out.extend(end_lsn.to_be_bytes());
    out.extend(commit_time.to_be_bytes());
    out
}

pub(super) fn origin(lsn: u64, name: &str) -> Vec<u8> {
    let mut out = vec![b'O'];
    out.extend(lsn.to_be_bytes());
    c_string(&mut out, name.as_bytes());
    out
}

pub(super) fn relation(
    oid: u32,
    schema: &str,
    name: &str,
    identity: char,
    columns: &[(bool, &str, u32, i32)],
) -> Vec<u8> {
    let mut out = vec![b'R'];
    out.extend(oid.to_be_bytes());
    c_string(&mut out, schema.as_bytes());
    c_string(&mut out, name.as_bytes());
    out.push(identity as u8);
    out.extend((columns.len() as u16).to_be_bytes());
    for (is_key, name, type_oid, typmod) in columns {
        out.push(u8::from(*is_key));
        c_string(&mut out, name.as_bytes());
        out.extend(type_oid.to_be_bytes());
        out.extend(typmod.to_be_bytes());
    }
    out
}

pub(super) fn type_name(oid: u32, schema: &str, name: &str) -> Vec<u8> {
    let mut out = vec![b'Y'];
    out.extend(oid.to_be_bytes());
    c_string(&mut out, schema.as_bytes());
    c_string(&mut out, name.as_bytes());
    out
}

fn tuple(out: &mut Vec<u8>, kind: u8, cells: &[Cell]) {
    out.push(kind);
    out.extend((cells.len() as u16).to_be_bytes());
    for cell in cells {
        match cell {
            Cell::Null => out.push(b'n'),
            Cell::Toast => out.push(b'u'),
            Cell::Text(t) => {
                out.push(b't');
                out.extend((t.len() as u32).to_be_bytes());
                out.extend_from_slice(t);
            }
        }
    }
}

pub(super) fn insert(oid: u32, new: &[Cell]) -> Vec<u8> {
    let mut out = vec![b'I'];
    out.extend(oid.to_be_bytes());
    tuple(&mut out, b'N', new);
    out
}

/// `old`: kind (`K` or `O`) and cells.
pub(super) fn update(oid: u32, old: Option<(u8, &[Cell])>, new: &[Cell]) -> Vec<u8> {
    let mut out = vec![b'U'];
    out.extend(oid.to_be_bytes());
    if let Some((kind, cells)) = old {
        tuple(&mut out, kind, cells);
    }
    tuple(&mut out, b'N', new);
    out
}

pub(super) fn delete(oid: u32, kind: u8, old: &[Cell]) -> Vec<u8> {
    let mut out = vec![b'D'];
    out.extend(oid.to_be_bytes());
    tuple(&mut out, kind, old);
    out
}

pub(super) fn truncate(flags: u8, relations: &[u32]) -> Vec<u8> {
    let mut out = vec![b'T'];
    out.extend((relations.len() as u32).to_be_bytes());
    out.push(flags);
    for oid in relations {
        out.extend(oid.to_be_bytes());
    }
    out
}

pub(super) fn logical(transactional: bool, lsn: u64, prefix: &[u8], content: &[u8]) -> Vec<u8> {
    let mut out = vec![b'M', u8::from(transactional)];
    out.extend(lsn.to_be_bytes());
    c_string(&mut out, prefix);
    out.extend((content.len() as u32).to_be_bytes());
    out.extend_from_slice(content);
    out
}
