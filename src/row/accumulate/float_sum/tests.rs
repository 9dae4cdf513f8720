use proptest::prelude::*;

use super::*;

fn of(inputs: &[f64]) -> FloatSum {
    let mut sum = FloatSum::default();
    for value in inputs {
        sum.add(*value, 1);
    }
    sum
}

#[test]
fn the_sum_is_exact_whatever_cancels() {
    assert_eq!(of(&[1e16, 1.0, -1e16]).sum_f64(), Ok(Some(1.0)));
    assert_eq!(of(&[1e300, 1e-300, -1e300]).sum_f64(), Ok(Some(1e-300)));
    assert_eq!(of(&[0.1, 0.2, -0.1]).sum_f64(), Ok(Some(0.2)));
    assert_eq!(of(&[f64::MAX, f64::MAX, -f64::MAX]).sum_f64(), Ok(Some(f64::MAX)));
    assert_eq!(of(&[f64::MAX, f64::MAX]).sum_f64(), Err(Fault::FLOAT_OVERFLOW));
    assert_eq!(of(&[5e-324, 5e-324]).sum_f64(), Ok(Some(1e-323)));
}

#[test]
fn special_values_come_and_go() {
    let mut sum = of(&[f64::INFINITY, 1.0]);
    assert_eq!(sum.sum_f64(), Ok(Some(f64::INFINITY)));
    sum.add(f64::NAN, 1);
    assert!(sum.avg().is_ok_and(|v| v.is_some_and(f64::is_nan)));
    sum.add(f64::NAN, -1);
    sum.add(f64::INFINITY, -1);
    assert_eq!(sum.sum_f64(), Ok(Some(1.0)));
    sum.add(1.0, -1);
    assert!(sum.is_zero());
    assert_eq!(sum.sum_f64(), Ok(None));
}

#[test]
fn a_sum_is_negative_zero_only_if_all_inputs_are() {
    let bits = |sum: &FloatSum| sum.sum_f64().unwrap().map(f64::to_bits);
    assert_eq!(bits(&of(&[-0.0, -0.0])), Some((-0.0f64).to_bits()));
    assert_eq!(bits(&of(&[-0.0, 0.0])), Some(0.0f64.to_bits()));
    assert_eq!(bits(&of(&[1.0, -1.0])), Some(0.0f64.to_bits()));
}

#[test]
fn float4_rounds_once() {
    let mut sum = FloatSum::default();
    assert!(sum.add_text4(b"0.1", 10));
    assert_eq!(sum.sum_f32(), Ok(Some(1.0)));
    sum.add(f32::MAX.into(), 1);
    assert_eq!(sum.sum_f32(), Ok(Some(f32::MAX)));
    sum.add(f32::MAX.into(), 1);
    assert_eq!(sum.sum_f32(), Err(Fault::FLOAT_OVERFLOW));
}

fn float() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => any::<f64>(),
        4 => (-1_000_000i64..1_000_000).prop_map(|v| v as f64 / 100.0),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(-0.0), Just(5e-324)],
    ]
}

proptest! {
    #[test]
    fn states_depend_only_on_the_net_inputs(
        mut inputs in proptest::collection::vec((float(), -3i64..4), 0..20),
        others in proptest::collection::vec((float(), any::<i64>()), 0..20),
        seed in any::<u64>(),
    ) {
        let build = |v: &[(f64, i64)]| {
            let mut sum = FloatSum::default();
            for (value, times) in v { sum.add(*value, *times); }
            sum
        };
        let plain = build(&inputs);
        let n = inputs.len().max(1);
        inputs.rotate_left(seed as usize % n);
        let mut mixed = build(&others);
        mixed.merge(&build(&inputs));
        for (value, times) in &others { mixed.add(*value, times.wrapping_neg()); }
        prop_assert_eq!(&mixed, &plain);
        let mut gone = plain.clone();
        gone.merge(&plain.multiply(-1));
        prop_assert!(gone.is_zero());
    }

    #[test]
    fn two_values_add_as_the_processor_adds_them(a in any::<f64>(), b in any::<f64>(), c in any::<f32>(), d in any::<f32>()) {
        prop_assume!((a + b).is_finite() && (c + d).is_finite());
        prop_assert_eq!(of(&[a, b]).sum_f64(), Ok(Some(a + b)));
        prop_assert_eq!(of(&[c.into(), d.into()]).sum_f32(), Ok(Some(c + d)));
    }
}
