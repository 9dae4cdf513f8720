//! Decoded changes as changes of held rows.

use crate::dataflow::RowChange;
use crate::error::{Error, ErrorKind, Result};
use crate::pgoutput::{ChangeKind, NewTuple, OldRow};
use crate::row::Row;

/// Turns a decoded change into one of an instance that holds the first `width` of `decoded` columns.
///
/// `None` for what is not a row change. Errors: a key that the server did not send whole (`Protocol`).
pub fn row_change(
    kind: ChangeKind,
    identity: usize,
    width: usize,
    decoded: usize,
) -> Result<Option<RowChange>> {
    let cut = |row: Row| if width < decoded { Row::from_datums(row.iter().take(width)) } else { row };
    let old_row = |old: OldRow| match old {
        OldRow::Full(row) => Ok(cut(row)),
        OldRow::Key(key) if key.columns.iter().copied().eq(0..identity) => Ok(key.row),
        OldRow::Key(_) => {
            Err(Error::new(ErrorKind::Protocol, "an old key does not match the replica identity"))
        }
    };
    Ok(Some(match kind {
        ChangeKind::Insert { new } => RowChange::Insert(cut(new)),
        ChangeKind::Delete { old } => RowChange::Delete(old_row(old)?),
        ChangeKind::Update { old, new } => {
            let old = old.map(old_row).transpose()?;
            let (new, unchanged) = match new {
                NewTuple::Full(row) => (cut(row), Vec::new()),
                NewTuple::Partial(partial) => {
                    let missing = partial.missing.iter().copied().filter(|&m| m < width).map(|m| m as u16);
                    let unchanged = missing.collect();
                    (cut(partial.row), unchanged)
                }
            };
            RowChange::Update { old, new, unchanged }
        }
        ChangeKind::Truncate { .. } => RowChange::Truncate,
        ChangeKind::Message { .. } => return Ok(None),
    }))
}

/// Memory that a change holds while it waits, in bytes.
pub fn size(change: &RowChange) -> usize {
    let row = |r: &Row| r.byte_len() + 16;
    std::mem::size_of::<RowChange>()
        + match change {
            RowChange::Insert(r) | RowChange::Delete(r) => row(r),
            RowChange::Update { old, new, .. } => row(new) + old.as_ref().map_or(0, row),
            RowChange::Truncate => 0,
        }
}
