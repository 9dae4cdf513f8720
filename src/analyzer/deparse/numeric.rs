//! Text of a numeric constant from its stored form (`utils/adt/numeric.c`, NumericShort and NumericLong).

/// `payload` is the value without its varlena header. `None` if it is too short.
pub(super) fn text(payload: &[u8]) -> Option<String> {
    let word = |i: usize| Some(u16::from_le_bytes(*payload.get(2 * i..)?.first_chunk()?));
    let header = word(0)?;
    let (negative, scale, weight, start) = match header & 0xc000 {
        0xc000 => return special(header),
        0x8000 => {
            let magnitude = (header & 0x3f) as i32;
            let weight = if header & 0x40 != 0 { magnitude - 64 } else { magnitude };
            (header & 0x2000 != 0, ((header & 0x1f80) >> 7) as usize, weight, 1)
        }
        sign => (sign == 0x4000, (header & 0x3fff) as usize, i32::from(word(1)? as i16), 2),
    };
    let count = (payload.len() / 2).checked_sub(start)?;
    // Digit groups of base 10000; group 0 stands before the point, group 1 right after it.
    let group = |position: i32| {
        let index = usize::try_from(position + weight).ok().filter(|i| *i < count);
        index.and_then(|i| word(start + i)).unwrap_or(0)
    };
    let whole: String = (-weight..=0).map(|p| format!("{:04}", group(p))).collect();
    let whole = whole.trim_start_matches('0');
    let mut out = String::from(if negative { "-" } else { "" });
    out += if whole.is_empty() { "0" } else { whole };
    if scale > 0 {
        let groups = i32::try_from(scale.div_ceil(4)).ok()?;
        let fraction: String = (1..=groups).map(|p| format!("{:04}", group(p))).collect();
        out.push('.');
        out += &fraction[..scale];
    }
    Some(out)
}

fn special(header: u16) -> Option<String> {
    let name = match header & 0xf000 {
        0xc000 => "NaN",
        0xd000 => "Infinity",
        0xf000 => "-Infinity",
        _ => return None,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::text;

    fn short(scale: u16, weight: i16, negative: bool, digits: &[u16]) -> Vec<u8> {
        let weight = (weight & 0x3f) as u16 | if weight < 0 { 0x40 } else { 0 };
        let header = 0x8000 | if negative { 0x2000 } else { 0 } | scale << 7 | weight;
        std::iter::once(&header).chain(digits).flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn digits_keep_their_place_and_scale() {
        assert_eq!(text(&short(2, 0, false, &[1, 5000])).as_deref(), Some("1.50"));
        assert_eq!(text(&short(6, 1, true, &[12, 3456, 7])).as_deref(), Some("-123456.000700"));
        assert_eq!(text(&short(6, -2, false, &[120])).as_deref(), Some("0.000001"));
        assert_eq!(text(&short(0, 2, false, &[1])).as_deref(), Some("100000000"));
        assert_eq!(text(&short(0, 0, false, &[])).as_deref(), Some("0"));
        assert_eq!(text(&short(3, 0, false, &[])).as_deref(), Some("0.000"));
        assert_eq!(text(&0xc000u16.to_le_bytes()).as_deref(), Some("NaN"));
        assert_eq!(text(&0xf000u16.to_le_bytes()).as_deref(), Some("-Infinity"));
        assert_eq!(text(&[0x00]), None);
    }
}
