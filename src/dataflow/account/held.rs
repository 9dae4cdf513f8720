//! What an operator holds, charged in steps that are worth counting.

use super::Charge;

/// What one operator on one worker holds; taken back when it is dropped.
pub(in crate::dataflow) struct Held {
    charge: Charge,
    rows: i64,
    bytes: i64,
    /// What is charged of it.
    charged: (i64, i64),
}

impl Held {
    pub fn new(charge: Charge) -> Held {
        Held { charge, rows: 0, bytes: 0, charged: (0, 0) }
    }

    /// Charged at the latest with the next [`Held::settle`].
    pub fn add(&mut self, rows: i64, bytes: i64) {
        self.rows += rows;
        self.bytes += bytes;
        if (self.bytes - self.charged.1).abs() >= UNCHARGED {
            self.settle();
        }
    }

    pub fn settle(&mut self) {
        let (rows, bytes) = (self.rows - self.charged.0, self.bytes - self.charged.1);
        if rows != 0 || bytes != 0 {
            self.charged = (self.rows, self.bytes);
            self.charge.add(rows, bytes);
        }
    }

    /// Holds exactly this from now on.
    pub fn set(&mut self, rows: i64, bytes: i64) {
        (self.rows, self.bytes) = (rows, bytes);
        self.settle();
    }
}

/// Bytes that may wait to be charged: counting each row would cost more than holding it.
const UNCHARGED: i64 = 1 << 16;

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0, 0);
    }
}
