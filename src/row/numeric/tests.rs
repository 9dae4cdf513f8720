use proptest::prelude::*;

use super::*;

fn n(text: &str) -> Numeric {
    Numeric::parse(text.as_bytes()).unwrap()
}

fn show(result: Result<Numeric, Fault>) -> String {
    match result {
        Ok(value) => value.to_text(),
        Err(fault) => fault.payload().to_owned(),
    }
}

#[test]
fn text_comes_back_unchanged() {
    let long = format!("{}.{}", "9".repeat(60), "0".repeat(50));
    for text in [
        "0",
        "0.00",
        "-0.001",
        "12.340",
        "NaN",
        "Infinity",
        "-Infinity",
        "-170141183460469231731687303715884105728",
        &long,
    ] {
        assert_eq!(n(text).to_text(), text);
    }
    for bad in ["", "-", ".", "1e5", "1.2.3", " 1", "+1", "inf", "--1"] {
        assert_eq!(Numeric::parse(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn quotients_have_the_scale_of_the_server() {
    for (a, b, want) in [
        ("1", "3", "0.33333333333333333333"),
        ("10", "3", "3.3333333333333333"),
        ("2", "3", "0.66666666666666666667"),
        ("100000", "3", "33333.333333333333"),
        ("1.00", "4", "0.25000000000000000000"),
        ("-1", "0.0003", "-3333.3333333333333333"),
        ("0", "7.5", "0.00000000000000000000"),
        ("1", "0", "22012:division by zero"),
        ("NaN", "0", "NaN"),
        ("Infinity", "0", "22012:division by zero"),
        ("Infinity", "-2", "-Infinity"),
        ("5.25", "-Infinity", "0"),
        ("Infinity", "Infinity", "NaN"),
    ] {
        assert_eq!(show(n(a).div(&n(b))), want, "{a} / {b}");
    }
}

#[test]
fn special_values_follow_the_server() {
    assert_eq!(show(n("Infinity").add(&n("-Infinity"))), "NaN");
    assert_eq!(show(n("Infinity").sub(&n("Infinity"))), "NaN");
    assert_eq!(show(n("0.00").mul(&n("-Infinity"))), "NaN");
    assert_eq!(show(n("-2").mul(&n("-Infinity"))), "Infinity");
    assert_eq!(n("NaN").compare(&n("Infinity")), Ordering::Greater);
    assert_eq!(n("1.0").compare(&n("1.000")), Ordering::Equal);
}

#[test]
fn typmods_round_and_overflow() {
    let typmod = |p: i32, s: i32| ((p << 16) | (s & 0x7ff)) + 4;
    assert_eq!(show(n("12.345").apply_typmod(typmod(4, 2))), "12.35");
    assert_eq!(show(n("99.995").apply_typmod(typmod(4, 2))), "22003:numeric field overflow");
    assert_eq!(show(n("12345").apply_typmod(typmod(3, -2))), "12300");
    assert_eq!(show(n("0.00123").apply_typmod(typmod(2, 4))), "0.0012");
    assert_eq!(show(n("0.01").apply_typmod(typmod(2, 4))), "22003:numeric field overflow");
    assert_eq!(show(n("Infinity").apply_typmod(typmod(4, 2))), "22003:numeric field overflow");
    assert_eq!(show(n("NaN").apply_typmod(typmod(4, 2))), "NaN");
    assert_eq!(show(n("12.345").apply_typmod(-1)), "12.345");
}

#[test]
fn values_beyond_the_format_overflow() {
    let huge = n(&"9".repeat(131_072));
    assert_eq!(show(huge.add(&n("1"))), "22003:value overflows numeric format");
    assert_eq!(huge.sub(&n("1")).map(|v| v.to_text().len()), Ok(131_072));
}

#[test]
fn rounding_goes_half_away_from_zero() {
    assert_eq!(show(n("-2.5").round(0)), "-3");
    assert_eq!(show(n("1250").round(-2)), "1300");
    assert_eq!(show(n("4").round(-1)), "0");
    assert_eq!(show(n("1.5").round(3)), "1.500");
    assert_eq!(n("9223372036854775807.4").to_i64(), Some(i64::MAX));
    assert_eq!(n("9223372036854775807.5").to_i64(), None);
    assert_eq!(n("-9223372036854775808.4").to_i64(), Some(i64::MIN));
}

fn numeric() -> impl Strategy<Value = Numeric> {
    (prop_oneof![any::<i64>().prop_map(i128::from), any::<i128>()], 0u16..40, 0u32..30)
        .prop_map(|(v, scale, up)| Numeric::Finite { unscaled: Unscaled::Small(v).scale_up(up), scale })
}

proptest! {
    #[test]
    fn addition_commutes_and_subtraction_undoes_it(a in numeric(), b in numeric()) {
        let sum = a.add(&b).unwrap();
        prop_assert_eq!(&sum, &b.add(&a).unwrap());
        prop_assert_eq!(sum.sub(&b).unwrap().compare(&a), Ordering::Equal);
        prop_assert_eq!(a.sub(&b).unwrap(), b.sub(&a).unwrap().neg());
    }

    #[test]
    fn text_of_any_value_reads_back(a in numeric()) {
        prop_assert_eq!(Numeric::parse(a.to_text().as_bytes()), Some(a));
    }

    #[test]
    fn a_product_divided_by_a_factor_is_the_other(a in numeric(), b in -1000i64..1000) {
        prop_assume!(b != 0);
        let product = a.mul(&Numeric::from(b)).unwrap();
        let back = product.div(&Numeric::from(b)).unwrap();
        // The scale of the quotient covers all digits of a here.
        if let (Numeric::Finite { scale, .. }, Some(want)) = (&back, a.scale()) && *scale >= want {
            prop_assert_eq!(back.compare(&a), Ordering::Equal);
        }
    }
}
