//! Dates, times and intervals: the server's ISO text as comparable integers.

/// `intervalstyle = postgres` text as microseconds with 30-day months and 24-hour days, the server's equality
/// (`interval_cmp_value`). `None` if the text is not an interval.
pub fn interval_micros(_text: &[u8]) -> Option<i128> {
    None
}
