//! Numeric to and from the server's text (`numeric_out`).

use num_bigint::BigInt;

use super::{Finite, MAX_STORED_SCALE, NaN, NegInf, Numeric, POWERS, PosInf, Unscaled};

/// Digits that fit a `u64` without a check.
const WORD_DIGITS: usize = 18;

impl Numeric {
    /// Reads what the server prints: `-12.340`, `NaN`, `Infinity`, `-Infinity`. `None` for anything else.
    pub fn parse(text: &[u8]) -> Option<Numeric> {
        let (negative, body) = match text {
            [b'-', rest @ ..] => (true, rest),
            _ => (false, text),
        };
        let mut word = 0u64;
        let mut point = None;
        if body.len() <= WORD_DIGITS && !body.is_empty() {
            for (i, &b) in body.iter().enumerate() {
                match b {
                    b'0'..=b'9' => word = word * 10 + u64::from(b - b'0'),
                    b'.' if point.is_none() => point = Some(i),
                    _ => return special(text),
                }
            }
            let scale = point.map_or(0, |p| body.len() - p - 1);
            if point.is_some() && body.len() == 1 {
                return None;
            }
            let value = if negative { -i128::from(word) } else { i128::from(word) };
            return Some(Finite { unscaled: Unscaled::Small(value), scale: scale as u16 });
        }
        parse_long(negative, body)
    }

    /// Appends the text that the server prints.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            NaN => out.extend_from_slice(b"NaN"),
            PosInf => out.extend_from_slice(b"Infinity"),
            NegInf => out.extend_from_slice(b"-Infinity"),
            Finite { unscaled, scale } => {
                if unscaled.signum() < 0 {
                    out.push(b'-');
                }
                write_magnitude(unscaled, usize::from(*scale), out);
            }
        }
    }

    /// [`Numeric::write`] into a new string.
    pub fn to_text(&self) -> String {
        let mut out = Vec::new();
        self.write(&mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

fn special(text: &[u8]) -> Option<Numeric> {
    match text {
        b"NaN" => Some(NaN),
        b"Infinity" => Some(PosInf),
        b"-Infinity" => Some(NegInf),
        _ => None,
    }
}

fn parse_long(negative: bool, body: &[u8]) -> Option<Numeric> {
    let mut digits = Vec::with_capacity(body.len());
    let mut point = None;
    for (i, &b) in body.iter().enumerate() {
        match b {
            b'0'..=b'9' => digits.push(b),
            b'.' if point.is_none() => point = Some(i),
            _ => return None,
        }
    }
    let scale = point.map_or(0, |p| body.len() - p - 1);
    if digits.is_empty() || scale > MAX_STORED_SCALE as usize {
        return None;
    }
    let mut unscaled = if digits.len() < POWERS.len() {
        Unscaled::Small(digits.iter().fold(0i128, |value, b| value * 10 + i128::from(b - b'0')))
    } else {
        Unscaled::from_big(BigInt::parse_bytes(&digits, 10)?)
    };
    if negative {
        unscaled = unscaled.neg();
    }
    Some(Finite { unscaled, scale: scale as u16 })
}

/// Room for the digits of 2^127.
const SMALL_DIGITS: usize = 39;

fn write_magnitude(unscaled: &Unscaled, scale: usize, out: &mut Vec<u8>) {
    let mut buffer = [0u8; SMALL_DIGITS];
    let big;
    let digits: &[u8] = match unscaled {
        Unscaled::Small(value) => {
            let start = write_digits(value.unsigned_abs(), &mut buffer);
            &buffer[start..]
        }
        Unscaled::Big(value) => {
            big = value.magnitude().to_str_radix(10);
            big.as_bytes()
        }
    };
    let whole = digits.len().saturating_sub(scale);
    if whole == 0 {
        out.push(b'0');
    }
    out.extend_from_slice(&digits[..whole]);
    if scale > 0 {
        out.push(b'.');
        out.extend(std::iter::repeat_n(b'0', scale.saturating_sub(digits.len())));
        out.extend_from_slice(&digits[whole..]);
    }
}

/// Writes the digits to the end of the buffer and returns where they start; nothing for zero.
fn write_digits(mut value: u128, buffer: &mut [u8; SMALL_DIGITS]) -> usize {
    let mut at = buffer.len();
    // Division of 128 bits is slow; most values need none of it.
    while value > u128::from(u64::MAX) {
        at -= 1;
        buffer[at] = b'0' + (value % 10) as u8;
        value /= 10;
    }
    let mut word = value as u64;
    while word > 0 {
        at -= 1;
        buffer[at] = b'0' + (word % 10) as u8;
        word /= 10;
    }
    at
}
