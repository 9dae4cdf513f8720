//! Dates, times and intervals: the server's ISO text as comparable integers.
//!
//! Invariant: two texts of one type map to integers that compare as the server compares the values. The text is that
//! of `DateStyle = ISO`, `IntervalStyle = postgres`, `TimeZone = UTC` (pinned on every session, also the stream's).
//! Sources: `EncodeDateOnly`, `EncodeDateTime`, `EncodeInterval` in `utils/adt/datetime.c`, `interval_cmp_value` in
//! `utils/adt/timestamp.c`.

const DAY: i64 = 86_400_000_000;
const HOUR: i64 = 3_600_000_000;
const MINUTE: i64 = 60_000_000;
const SECOND: i64 = 1_000_000;

/// A `date` in days since 2000-01-01; infinities are the ends of `i32`, as the server stores them.
pub fn date_days(text: &[u8]) -> Option<i32> {
    match text {
        b"infinity" => return Some(i32::MAX),
        b"-infinity" => return Some(i32::MIN),
        _ => {}
    }
    let (body, before_christ) = strip_era(text);
    let (days, rest) = calendar_date(body, before_christ)?;
    if rest.is_empty() { i32::try_from(days).ok() } else { None }
}

/// A `time` in microseconds since midnight; 24:00:00 is the largest.
pub fn time_micros(text: &[u8]) -> Option<i64> {
    let (micros, rest) = clock(text)?;
    rest.is_empty().then_some(micros)
}

/// A `timestamp`, or a `timestamptz` printed in UTC, in microseconds since 2000-01-01 00:00; infinities are the ends
/// of `i64`.
pub fn timestamp_micros(text: &[u8]) -> Option<i64> {
    match text {
        b"infinity" => return Some(i64::MAX),
        b"-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (body, before_christ) = strip_era(text);
    let (days, rest) = calendar_date(body, before_christ)?;
    let (micros, zone) = clock(rest.strip_prefix(b" ")?)?;
    if !zone.is_empty() && zone != b"+00" {
        return None;
    }
    days.checked_mul(DAY)?.checked_add(micros)
}

/// `intervalstyle = postgres` text as microseconds with 30-day months and 24-hour days, the server's equality
/// (`interval_cmp_value`). Infinities (version 17 on) are the ends of `i128`. `None` if the text is not an interval.
pub fn interval_micros(text: &[u8]) -> Option<i128> {
    match text {
        b"infinity" => return Some(i128::MAX),
        b"-infinity" => return Some(i128::MIN),
        b"" => return None,
        _ => {}
    }
    let (mut months, mut days, mut micros) = (0i128, 0i128, 0i128);
    let mut words = text.split(|&b| b == b' ');
    while let Some(word) = words.next() {
        if word.contains(&b':') {
            micros += interval_clock(word)?;
            continue;
        }
        let value = signed(word)?;
        match words.next()? {
            b"year" | b"years" => months += 12 * value,
            b"mon" | b"mons" => months += value,
            b"day" | b"days" => days += value,
            _ => return None,
        }
    }
    Some((months * 30 + days) * i128::from(DAY) + micros)
}

fn interval_clock(word: &[u8]) -> Option<i128> {
    let (negative, body) = match word {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, word),
    };
    // The most negative interval has a magnitude that `i64` does not hold.
    let (hours, rest) = number(body)?;
    let (below, rest) = minutes_and_seconds(rest)?;
    if !rest.is_empty() {
        return None;
    }
    let magnitude = i128::from(hours) * i128::from(HOUR) + i128::from(below);
    Some(if negative { -magnitude } else { magnitude })
}

fn signed(word: &[u8]) -> Option<i128> {
    let (negative, body) = match word {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, word),
    };
    let (value, rest) = number(body)?;
    if !rest.is_empty() {
        return None;
    }
    Some(if negative { -i128::from(value) } else { i128::from(value) })
}

/// Splits ` BC` off.
fn strip_era(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(body) => (body, true),
        None => (text, false),
    }
}

/// `YYYY-MM-DD` at the start, in days since 2000-01-01, and what follows. The year has four digits or more.
fn calendar_date(text: &[u8], before_christ: bool) -> Option<(i64, &[u8])> {
    let (year, rest) = number(text)?;
    let (month, rest) = number(rest.strip_prefix(b"-")?)?;
    let (day, rest) = number(rest.strip_prefix(b"-")?)?;
    if year == 0 || year > 10_000_000 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // 1 BC is the year 0 of the proleptic calendar.
    let year = if before_christ { 1 - year } else { year };
    Some((days_from_2000(year, month, day), rest))
}

/// Days of the proleptic Gregorian calendar since 2000-01-01.
fn days_from_2000(year: i64, month: i64, day: i64) -> i64 {
    // Years start in March, so that the leap day is their last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (cycle, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_cycle = year * 365 + year / 4 - year / 100 + day_of_year;
    // 730_425 days lie between 0000-03-01 and 2000-01-01.
    cycle * 146_097 + day_of_cycle - 730_425
}

/// `HH:MM:SS[.ffffff]` at the start, in microseconds, and what follows.
fn clock(text: &[u8]) -> Option<(i64, &[u8])> {
    let (hours, rest) = number(text)?;
    let (below, rest) = minutes_and_seconds(rest)?;
    Some((hours.checked_mul(HOUR)?.checked_add(below)?, rest))
}

fn minutes_and_seconds(text: &[u8]) -> Option<(i64, &[u8])> {
    let (minutes, rest) = number(text.strip_prefix(b":")?)?;
    let (seconds, mut rest) = number(rest.strip_prefix(b":")?)?;
    if minutes > 59 || seconds > 60 {
        return None;
    }
    let mut micros = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
        if !(1..=6).contains(&digits) {
            return None;
        }
        let (value, after) = number(fraction)?;
        micros = value * 10i64.pow(6 - digits as u32);
        rest = after;
    }
    Some((minutes * MINUTE + seconds * SECOND + micros, rest))
}

/// Digits at the start, at least one, and what follows.
fn number(text: &[u8]) -> Option<(i64, &[u8])> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    if !(1..=18).contains(&digits) {
        return None;
    }
    let (head, rest) = text.split_at(digits);
    Some((head.iter().fold(0, |value, b| value * 10 + i64::from(b - b'0')), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_days_since_2000() {
        for (text, days) in [
            ("2000-01-01", 0),
            ("2000-03-01", 60),
            ("1999-12-31", -1),
            ("1970-01-01", -10957),
            ("4714-11-24 BC", -2451545),
            ("5874897-12-31", 2145031948),
            ("0001-12-31 BC", -730120),
            ("infinity", i32::MAX),
            ("-infinity", i32::MIN),
        ] {
            assert_eq!(date_days(text.as_bytes()), Some(days), "{text}");
        }
        for bad in ["", "2000-01", "2000-13-01", "20000101", "2000-01-01 00:00:00", "now"] {
            assert_eq!(date_days(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn timestamps_are_microseconds_since_2000() {
        assert_eq!(timestamp_micros(b"2000-01-01 00:00:00"), Some(0));
        assert_eq!(timestamp_micros(b"2000-01-02 00:00:01.5+00"), Some(DAY + 1_500_000));
        assert_eq!(timestamp_micros(b"1999-12-31 23:59:59.999999"), Some(-1));
        assert_eq!(timestamp_micros(b"4714-11-24 00:00:00+00 BC"), Some(-2451545 * DAY));
        assert_eq!(timestamp_micros(b"294276-12-31 23:59:59.999999"), Some(9223371331199999999));
        assert_eq!(timestamp_micros(b"infinity"), Some(i64::MAX));
        assert_eq!(timestamp_micros(b"2000-01-01 00:00:00+02"), None);
        assert_eq!(time_micros(b"24:00:00"), Some(DAY));
        assert_eq!(time_micros(b"04:05:06.000007"), Some(4 * HOUR + 5 * MINUTE + 6 * SECOND + 7));
        assert_eq!(time_micros(b"04:05"), None);
    }

    #[test]
    fn intervals_equal_under_the_server_have_equal_microseconds() {
        let same = |a: &str, b: &str| {
            assert_eq!(interval_micros(a.as_bytes()), interval_micros(b.as_bytes()), "{a} {b}")
        };
        same("1 mon", "30 days");
        same("1 year", "12 mons");
        same("1 day", "24:00:00");
        same("-1 days +24:00:00", "00:00:00");
        assert_eq!(
            interval_micros(b"-1 years -2 mons +3 days -04:05:06.7"),
            Some(i128::from(-(14 * 30 - 3) * DAY - 4 * HOUR - 5 * MINUTE - 6_700_000))
        );
        assert_eq!(interval_micros(b"2562047788:00:54.775807"), Some(i128::from(i64::MAX)));
        assert!(interval_micros(b"infinity") > interval_micros(b"178000000 years"));
        for bad in ["", "1", "1 fortnight", "P1Y", "x days", "1 day "] {
            assert_eq!(interval_micros(bad.as_bytes()), None, "{bad}");
        }
    }
}
