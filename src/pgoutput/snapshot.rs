//! Transaction visibility: which transactions a hydration has already read.
//!
//! Invariant: [`Snapshot::is_visible`] answers exactly as `pg_visible_in_snapshot` does, and [`widen_xid`] gives the
//! xid its right epoch on both sides of a wrap (hazard A12). Place in the data's way: between assembled transactions
//! and the dataflow; a transaction is fed exactly if its xid is not visible.
//!
//! Source: `src/backend/utils/adt/xid8funcs.c`.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// A `pg_snapshot` with 64-bit transaction ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Everything below had finished.
    pub xmin: u64,
    /// Nothing from here on had started.
    pub xmax: u64,
    /// In progress between the two; ascending, without duplicates. Top-level xids only.
    pub xip: Vec<u64>,
}

impl Snapshot {
    /// Whether the transaction had finished when the snapshot was taken. `xid` is a top-level 64-bit xid
    /// ([`widen_xid`]); aborted ones are "visible" too, but never delivered.
    pub fn is_visible(&self, xid: u64) -> bool {
        if xid < self.xmin {
            return true;
        }
        xid < self.xmax && self.xip.binary_search(&xid).is_err()
    }
}

impl FromStr for Snapshot {
    type Err = Error;

    /// Parses the text of `pg_current_snapshot()`: `xmin:xmax:xip,...`. Protocol error otherwise.
    fn from_str(text: &str) -> Result<Snapshot> {
        parse(text).ok_or_else(|| {
            Error::new(
                ErrorKind::Protocol,
                format!("{:?} is not a pg_snapshot", text.chars().take(60).collect::<String>()),
            )
        })
    }
}

fn parse(text: &str) -> Option<Snapshot> {
    let mut parts = text.split(':');
    let xmin = number(parts.next()?)?;
    let xmax = number(parts.next()?)?;
    let list = parts.next()?;
    if parts.next().is_some() || xmin == 0 || xmax < xmin {
        return None;
    }
    let mut xip: Vec<u64> = Vec::new();
    if !list.is_empty() {
        for item in list.split(',') {
            let xid = number(item)?;
            let last = xip.last().copied();
            if xid < xmin || xid >= xmax || last.is_some_and(|l| xid < l) {
                return None;
            }
            if last != Some(xid) {
                xip.push(xid);
            }
        }
    }
    Some(Snapshot { xmin, xmax, xip })
}

fn number(text: &str) -> Option<u64> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (i, xid) in self.xip.iter().enumerate() {
            write!(f, "{}{xid}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The 64-bit xid nearest to `near` whose low 32 bits are `xid`. `near` is the xmax of the snapshot that it is to be
/// compared with: open transactions are less than 2^31 away from it, so the nearest value is the right one.
pub fn widen_xid(xid: u32, near: u64) -> u64 {
    // The low 32 bits of `near`; the difference to them is taken as signed, as `TransactionIdPrecedes` does.
    let difference = xid.wrapping_sub(near as u32).cast_signed();
    let wide = near.wrapping_add_signed(difference.into());
    // Before the first epoch and after the last there is nothing: take the neighbouring one.
    if difference < 0 && wide > near {
        wide.wrapping_add(1 << 32)
    } else if difference > 0 && wide < near {
        wide.wrapping_sub(1 << 32)
    } else {
        wide
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EPOCH: u64 = 1 << 32;

    #[test]
    fn an_xid_just_before_the_wrap_keeps_the_old_epoch() {
        // Hazard A12: snapshot 4294967306:4294967306:, Begin xid 4294967290.
        let snapshot: Snapshot = "4294967306:4294967306:".parse().unwrap();
        let wide = widen_xid(4_294_967_290, snapshot.xmax);
        assert_eq!(wide, 4_294_967_290);
        assert!(snapshot.is_visible(wide));
    }

    #[test]
    fn an_xid_just_after_the_wrap_gets_the_new_epoch() {
        let snapshot: Snapshot = "4294967290:4294967295:".parse().unwrap();
        let wide = widen_xid(7, snapshot.xmax);
        assert_eq!(wide, EPOCH + 7);
        assert!(!snapshot.is_visible(wide));
    }

    #[test]
    fn widening_near_the_ends_of_the_64_bit_range_stays_in_range() {
        assert_eq!(widen_xid(u32::MAX, 5), u64::from(u32::MAX));
        assert_eq!(widen_xid(3, u64::MAX), u64::MAX - u64::from(u32::MAX) + 3);
        assert_eq!(widen_xid(750, 742), 750);
        assert_eq!(widen_xid(742, 742), 742);
    }

    #[test]
    fn visibility_is_that_of_pg_visible_in_snapshot() {
        let s: Snapshot = "10:20:12,15,15".parse().unwrap();
        assert_eq!(s.xip, [12, 15]);
        let visible: Vec<u64> = (8..23).filter(|&x| s.is_visible(x)).collect();
        assert_eq!(visible, [8, 9, 10, 11, 13, 14, 16, 17, 18, 19]);
    }

    #[test]
    fn text_that_the_server_would_refuse_is_refused() {
        for bad in [
            "", "1:2", "2:1:", "0:1:", "1:2:3", "1:5:0", "1:9:5,4", "1:9:,", "1:9:4,", "1:9:x", "+1:2:",
            "1:2::", "1:2:1:",
        ] {
            let e = bad.parse::<Snapshot>().unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Protocol, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn widening_finds_the_xid_again_within_half_an_epoch(near in EPOCH..1 << 60, away in -0x7fff_ffff_i64..0x7fff_ffff) {
            let real = near.wrapping_add_signed(away);
            prop_assert_eq!(widen_xid(real as u32, near), real);
        }

        #[test]
        fn widening_keeps_the_low_bits(xid: u32, near: u64) {
            prop_assert_eq!(widen_xid(xid, near) as u32, xid);
        }

        #[test]
        fn a_snapshot_reads_what_it_prints(xmin in 1u64..1 << 62, gaps in proptest::collection::vec(1u64..9, 0..20), tail in 1u64..5) {
            let mut at = xmin - 1;
            let xip: Vec<u64> = gaps.iter().map(|g| { at += g; at }).collect();
            let s = Snapshot { xmin, xmax: at + tail, xip };
            prop_assert_eq!(s.to_string().parse::<Snapshot>().unwrap(), s);
        }

        #[test]
        fn any_text_is_a_snapshot_or_an_error(text in "[0-9:,]{0,30}|.{0,30}") {
            let _ = text.parse::<Snapshot>();
        }
    }
}
