//! float4 and float8: the server's text (`extra_float_digits` >= 1) and its checked arithmetic.
//!
//! Invariant: [`write_f64`] and [`write_f32`] print the same bytes as `float8out` and `float4out`. The server prints
//! the shortest decimal *strictly* inside the rounding interval (`src/common/d2s.c` never accepts a bound, because
//! some readers do not round half to even), so 1e23 comes out as 9.999999999999999e+22. The standard library accepts
//! bounds of even mantissas and rounds ties between two shortest decimals up where the server takes the even digit;
//! these cases are detected and redone exactly.

use std::fmt::Write;

use num_bigint::BigInt;
use num_traits::{ToPrimitive, Zero};

use super::fault::Fault;

/// Reads `float8out` text.
pub fn parse_f64(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Reads `float4out` text.
pub fn parse_f32(text: &[u8]) -> Option<f32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Appends the text of a float8: exponent form below 1e-04 and from 1e+15 on.
pub fn write_f64(value: f64, out: &mut Vec<u8>) {
    if write_special(value, out) {
        return;
    }
    let (mantissa, exponent) = split(value.abs());
    let mut shortest = Shortest::of(format_args!("{:e}", value.abs()));
    if shortest.is_disputed(mantissa, exponent, mantissa == 1 << 52) {
        shortest = Shortest::strictly_inside(mantissa, exponent, mantissa == 1 << 52).unwrap_or(shortest);
    }
    shortest.write(15, out);
}

/// Appends the text of a float4: exponent form below 1e-04 and from 1e+06 on.
pub fn write_f32(value: f32, out: &mut Vec<u8>) {
    if write_special(value.into(), out) {
        return;
    }
    let bits = value.abs().to_bits();
    let (fraction, biased) = (u64::from(bits & 0x7f_ffff), (bits >> 23) as i32);
    let (mantissa, exponent) =
        if biased == 0 { (fraction, -149) } else { (fraction | 1 << 23, biased - 150) };
    let narrow = fraction == 0 && biased > 1;
    let mut shortest = Shortest::of(format_args!("{:e}", value.abs()));
    if shortest.is_disputed(mantissa, exponent, narrow) {
        shortest = Shortest::strictly_inside(mantissa, exponent, narrow).unwrap_or(shortest);
    }
    shortest.write(6, out);
}

/// `value = mantissa * 2^exponent` for a finite value that is not negative.
pub(crate) fn split(value: f64) -> (u64, i32) {
    let bits = value.to_bits();
    let (fraction, biased) = (bits & 0xf_ffff_ffff_ffff, (bits >> 52 & 0x7ff) as i32);
    if biased == 0 { (fraction, -1074) } else { (fraction | 1 << 52, biased - 1075) }
}

/// Sign, and the values that have no digits.
fn write_special(value: f64, out: &mut Vec<u8>) -> bool {
    if value.is_nan() {
        out.extend_from_slice(b"NaN");
        return true;
    }
    if value.is_sign_negative() {
        out.push(b'-');
    }
    if value.is_infinite() {
        out.extend_from_slice(b"Infinity");
    } else if value == 0.0 {
        out.push(b'0');
    }
    value.is_infinite() || value == 0.0
}

/// A positive decimal `digits * 10^exponent` without trailing zeros.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Shortest {
    digits: u64,
    exponent: i32,
}

/// Text of `{:e}` on the stack: 17 digits, point, exponent.
#[derive(Default)]
struct Scratch {
    bytes: [u8; 32],
    len: usize,
}

impl Write for Scratch {
    fn write_str(&mut self, s: &str) -> std::fmt::Result {
        let end = self.len + s.len();
        self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}

impl Shortest {
    fn of(scientific: std::fmt::Arguments<'_>) -> Shortest {
        let mut text = Scratch::default();
        // 17 digits and a four character exponent always fit.
        let _ = text.write_fmt(scientific);
        let (mut digits, mut fraction, mut exponent) = (0u64, None, 0i32);
        let mut bytes = text.bytes[..text.len].iter();
        for &b in bytes.by_ref() {
            match b {
                b'0'..=b'9' => {
                    digits = digits * 10 + u64::from(b - b'0');
                    fraction = fraction.map(|n: i32| n + 1);
                }
                b'.' => fraction = Some(0),
                _ => break,
            }
        }
        let mut negative = false;
        for &b in bytes {
            match b {
                b'-' => negative = true,
                _ => exponent = exponent * 10 + i32::from(b - b'0'),
            }
        }
        let exponent = if negative { -exponent } else { exponent };
        Shortest { digits, exponent: exponent - fraction.unwrap_or(0) }
    }

    /// Whether the server prints other digits than the standard library for `mantissa * 2^exponent`: the decimal is a
    /// bound of the rounding interval, or the value lies exactly halfway between it and the next lower one and its
    /// last digit is odd. `narrow`: the mantissa is the smallest of its binade, whose lower neighbour is half as far.
    fn is_disputed(self, mantissa: u64, exponent: i32, narrow: bool) -> bool {
        let mantissa = u128::from(mantissa);
        if self.digits % 2 == 1
            && let Some((odd, binary)) = odd_part(2 * u128::from(self.digits) - 1, self.exponent)
        {
            let zeros = mantissa.trailing_zeros();
            if odd == mantissa >> zeros && binary - 1 == exponent + zeros as i32 {
                return true;
            }
        }
        if mantissa % 2 == 1 {
            return false;
        }
        let Some((odd, binary)) = odd_part(self.digits.into(), self.exponent) else { return false };
        (binary == exponent - 1 && odd == 2 * mantissa + 1)
            || (!narrow && binary == exponent - 1 && odd == 2 * mantissa - 1)
            || (narrow && binary == exponent - 2 && odd == 4 * mantissa - 1)
    }

    /// The shortest decimal strictly between the bounds, the closest one of those, even digits on a tie. There always
    /// is one: 17 digits separate any two neighbours.
    fn strictly_inside(mantissa: u64, exponent: i32, narrow: bool) -> Option<Shortest> {
        // All in units of 2^(exponent - 2), then over a common denominator.
        let shift = exponent - 2;
        let value = BigInt::from(mantissa) << 2u32;
        let low = &value - if narrow { 1 } else { 2 };
        let high = &value + 2;
        let (up, down) = (shift.max(0) as u32, (-shift).max(0) as u32);
        let scale = |v: BigInt| v << up;
        let (value, low, high) = (scale(value), scale(low), scale(high));
        let denominator = BigInt::from(1) << down;
        let magnitude = (mantissa as f64).log10() + f64::from(exponent) * std::f64::consts::LOG10_2;
        // Never below the true magnitude: one digit too few in the first round does no harm, one too many would.
        let magnitude = (magnitude + 1e-9).floor() as i32;
        for digits in 1..=18 {
            let unit = magnitude - digits + 1;
            let ten = BigInt::from(10).pow(unit.unsigned_abs());
            // v / 10^unit = numerator / denominator
            let (numerator_scale, denominator) =
                if unit < 0 { (ten, denominator.clone()) } else { (BigInt::from(1), &denominator * ten) };
            let (v, l, h) = (&value * &numerator_scale, &low * &numerator_scale, &high * &numerator_scale);
            let floor = &v / &denominator;
            let inside = |c: &BigInt| {
                let c = c * &denominator;
                l < c && c < h
            };
            let ceiling: BigInt = &floor + 1;
            let rest: BigInt = &v - &floor * &denominator;
            let twice: BigInt = &rest + &rest;
            let up_first = twice > denominator || (twice == denominator && !(&floor % 2u32).is_zero());
            let order = if up_first { [&ceiling, &floor] } else { [&floor, &ceiling] };
            if let Some(found) = order.into_iter().find(|c| inside(c)).and_then(BigInt::to_u64) {
                return Some(Shortest { digits: found, exponent: unit }.without_zeros());
            }
        }
        None
    }

    fn without_zeros(mut self) -> Shortest {
        while self.digits.is_multiple_of(10) && self.digits > 0 {
            self.digits /= 10;
            self.exponent += 1;
        }
        self
    }

    fn write(self, exponent_from: i32, out: &mut Vec<u8>) {
        let mut buffer = [0u8; 20];
        let (mut rest, mut at) = (self.digits, buffer.len());
        while rest > 0 {
            at -= 1;
            buffer[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let digits = &buffer[at..];
        // Exponent of the first digit, as in d.ddd * 10^e.
        let e = self.exponent + digits.len() as i32 - 1;
        if e < -4 || e >= exponent_from {
            out.push(digits[0]);
            if digits.len() > 1 {
                out.push(b'.');
                out.extend_from_slice(&digits[1..]);
            }
            let sign = if e < 0 { '-' } else { '+' };
            // Writing into a vector does not fail.
            let _ = std::io::Write::write_fmt(out, format_args!("e{sign}{:02}", e.abs()));
        } else if e < 0 {
            out.extend_from_slice(b"0.");
            out.extend(std::iter::repeat_n(b'0', (-e - 1) as usize));
            out.extend_from_slice(digits);
        } else {
            let whole = e as usize + 1;
            let shown = whole.min(digits.len());
            out.extend_from_slice(&digits[..shown]);
            out.extend(std::iter::repeat_n(b'0', whole - shown));
            if shown < digits.len() {
                out.push(b'.');
                out.extend_from_slice(&digits[shown..]);
            }
        }
    }
}

/// `digits * 10^exponent` as an odd number times a power of two, `None` if it has no such form or a large one: 5^25
/// exceeds the mantissas of floats and their neighbours, so such a decimal equals none of them.
fn odd_part(digits: u128, exponent: i32) -> Option<(u128, i32)> {
    let fives = exponent.unsigned_abs();
    if fives > 24 {
        return None;
    }
    let power = 5u128.pow(fives);
    let odd = match exponent {
        0.. => digits * power,
        _ if digits.is_multiple_of(power) => digits / power,
        _ => return None,
    };
    let zeros = odd.trailing_zeros();
    Some((odd >> zeros, exponent + zeros as i32))
}

macro_rules! checked_arithmetic {
    ($ty:ty, $add:ident, $sub:ident, $mul:ident, $div:ident) => {
        /// Sum; 22003 where finite operands overflow.
        pub fn $add(a: $ty, b: $ty) -> Result<$ty, Fault> {
            check_overflow!(a + b, a.is_infinite() || b.is_infinite())
        }

        /// Difference; 22003 where finite operands overflow.
        pub fn $sub(a: $ty, b: $ty) -> Result<$ty, Fault> {
            check_overflow!(a - b, a.is_infinite() || b.is_infinite())
        }

        /// Product; 22003 where finite operands overflow or nonzero ones become zero.
        pub fn $mul(a: $ty, b: $ty) -> Result<$ty, Fault> {
            let product = check_overflow!(a * b, a.is_infinite() || b.is_infinite())?;
            if product == 0.0 && a != 0.0 && b != 0.0 { Err(Fault::FLOAT_UNDERFLOW) } else { Ok(product) }
        }

        /// Quotient; 22012 for a zero divisor unless the dividend is NaN.
        pub fn $div(a: $ty, b: $ty) -> Result<$ty, Fault> {
            if b == 0.0 && !a.is_nan() {
                return Err(Fault::DIVISION_BY_ZERO);
            }
            let quotient = check_overflow!(a / b, a.is_infinite())?;
            if quotient == 0.0 && a != 0.0 && !b.is_infinite() {
                Err(Fault::FLOAT_UNDERFLOW)
            } else {
                Ok(quotient)
            }
        }
    };
}

macro_rules! check_overflow {
    ($result:expr, $allowed:expr) => {{
        let result = $result;
        if result.is_infinite() && !($allowed) { Err(Fault::FLOAT_OVERFLOW) } else { Ok(result) }
    }};
}

checked_arithmetic!(f64, add_f64, sub_f64, mul_f64, div_f64);
checked_arithmetic!(f32, add_f32, sub_f32, mul_f32, div_f32);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(value: f64) -> String {
        let mut out = Vec::new();
        write_f64(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn text4(value: f32) -> String {
        let mut out = Vec::new();
        write_f32(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_that_of_float8out() {
        for (value, want) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1e20, "1e+20"),
            (1.5e-7, "1.5e-07"),
            (100000.0, "100000"),
            (123456789012345.0, "123456789012345"),
            (1e15, "1e+15"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e23, "9.999999999999999e+22"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
            (f64::NAN, "NaN"),
            (-1234.5, "-1234.5"),
            (-1.0 / 8.0 - 161457712907686.5, "-161457712907686.62"),
        ] {
            assert_eq!(text(value), want);
        }
        for (value, want) in [
            (1e6f32, "1e+06"),
            (999999.0, "999999"),
            (0.1, "0.1"),
            (1e-5, "1e-05"),
            (16777216.0, "1.6777216e+07"),
        ] {
            assert_eq!(text4(value), want);
        }
    }

    #[test]
    fn arithmetic_reports_the_errors_of_the_server() {
        assert_eq!(add_f64(f64::MAX, f64::MAX), Err(Fault::FLOAT_OVERFLOW));
        assert_eq!(mul_f64(1e-300, 1e-300), Err(Fault::FLOAT_UNDERFLOW));
        assert_eq!(div_f64(1.0, 0.0), Err(Fault::DIVISION_BY_ZERO));
        assert!(div_f64(f64::NAN, 0.0).is_ok_and(f64::is_nan));
        assert_eq!(div_f64(1.0, f64::INFINITY), Ok(0.0));
        assert_eq!(div_f64(f64::INFINITY, 2.0), Ok(f64::INFINITY));
    }

    proptest! {
        #[test]
        fn text_reads_back_to_the_same_bits(bits in any::<u64>(), bits4 in any::<u32>()) {
            let (value, value4) = (f64::from_bits(bits), f32::from_bits(bits4));
            prop_assume!(!value.is_nan() && !value4.is_nan());
            prop_assert_eq!(parse_f64(text(value).as_bytes()).unwrap().to_bits(), bits);
            prop_assert_eq!(parse_f32(text4(value4).as_bytes()).unwrap().to_bits(), bits4);
        }

        #[test]
        fn the_exact_search_agrees_with_the_fast_one(bits in any::<u64>()) {
            let value = f64::from_bits(bits).abs();
            prop_assume!(value.is_finite() && value > 1e-290 && value < 1e290);
            let (mantissa, exponent) = split(value);
            let fast = Shortest::of(format_args!("{value:e}"));
            prop_assume!(!fast.is_disputed(mantissa, exponent, mantissa == 1 << 52));
            prop_assert_eq!(Shortest::strictly_inside(mantissa, exponent, mantissa == 1 << 52), Some(fast));
        }
    }
}
