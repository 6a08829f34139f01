//! Conversions, seen from outside: folds of one source, which convert and do nothing else.

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};

use super::*;

const PLAIN: Layout = Layout { shift: 0, skew: 0, in_place: None, streaming: false };

fn conversion(dtype: DataType, from: Vec<u8>, partial: bool) -> Case {
    let width = if partial { 4 } else { dtype.size() };
    let count = from.len() / width;
    let args = FoldArgs { world: 1 };
    let from = vec![(from, partial)];
    Case { dtype, op: OpKind::Sum, count, from, dests: 1, partial: !partial, scales: vec![0], args }
}

/// Widens all elements, on every level. The last one is repeated, to have a tail.
fn check_widening(dtype: DataType, elements: impl Iterator<Item = (u16, f32)> + Clone) {
    let size = dtype.size();
    let bytes = elements.clone().flat_map(|(bits, _)| bits.to_le_bytes().into_iter().take(size));
    let expected: Vec<u8> = elements.flat_map(|(_, number)| number.to_le_bytes()).collect();
    let case = conversion(dtype, bytes.collect(), false);
    for level in Level::here() {
        case.compare(&expected, &case.run(level, PLAIN)[0], &format!("{level:?}"));
    }
}

#[test]
fn every_element_is_widened_as_half_and_float8_do() {
    let halves = (0..=u16::MAX).chain([0x3C01]);
    check_widening(DataType::F16, halves.clone().map(|bits| (bits, f16::from_bits(bits).to_f32())));
    check_widening(
        DataType::F16,
        halves.clone().map(|bits| (bits, f16::from_bits(bits).to_f32_const())),
    );
    check_widening(DataType::Bf16, halves.map(|bits| (bits, bf16::from_bits(bits).to_f32())));
    let bytes = (0..=u8::MAX).chain([0x11]);
    let e4m3 = bytes.clone().map(|bits| (bits.into(), F8E4M3::from_bits(bits).to_f32()));
    check_widening(DataType::F8E4M3, e4m3);
    let e5m2 = bytes.map(|bits| (bits.into(), F8E5M2::from_bits(bits).to_f32()));
    check_widening(DataType::F8E5M2, e5m2);
}

/// All upper halves of an f32, each with lower halves on, beside and far from the places where
/// rounding changes, for all four types.
fn f32s() -> Vec<f32> {
    const LOW: [u32; 13] = [
        0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFE,
        0xFFFF,
    ];
    let mut random = Random(3);
    let mut numbers = Vec::new();
    for high in 0..=u32::from(u16::MAX) {
        let any = random.next() as u32 & 0xFFFF;
        let low = LOW.into_iter().chain([any]);
        numbers.extend(low.map(|low| f32::from_bits(high << 16 | low)));
    }
    numbers.push(1.0);
    numbers
}

fn check_narrowing(dtype: DataType, narrow: impl Fn(f32) -> u16) {
    let numbers = f32s();
    let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let narrowed = |&number: &f32| narrow(number).to_le_bytes().into_iter().take(dtype.size());
    let expected: Vec<u8> = numbers.iter().flat_map(narrowed).collect();
    let case = conversion(dtype, bytes, true);
    for level in Level::here() {
        case.compare(&expected, &case.run(level, PLAIN)[0], &format!("{level:?}"));
    }
}

#[test]
fn f16_is_narrowed_as_half_does() {
    check_narrowing(DataType::F16, |number| f16::from_f32(number).to_bits());
    check_narrowing(DataType::F16, |number| f16::from_f32_const(number).to_bits());
}

#[test]
fn bf16_is_narrowed_as_half_does() {
    check_narrowing(DataType::Bf16, |number| bf16::from_f32(number).to_bits());
}

#[test]
fn f8e4m3_is_narrowed_as_float8_does() {
    check_narrowing(DataType::F8E4M3, |number| F8E4M3::from_f32(number).to_bits().into());
}

#[test]
fn f8e5m2_is_narrowed_as_float8_does() {
    check_narrowing(DataType::F8E5M2, |number| F8E5M2::from_f32(number).to_bits().into());
}

/// The documented rule, in numbers, in case the crate should change.
#[test]
fn eight_bit_floats_saturate() {
    assert_eq!(F8E4M3::narrow(1e9).to_f32(), 448.0);
    assert_eq!(F8E4M3::narrow(f32::NEG_INFINITY).to_f32(), -448.0);
    assert_eq!(F8E5M2::narrow(f32::INFINITY).to_f32(), 57344.0);
    assert!(F8E5M2::from_bits(0x7C).widen().is_infinite());
    assert!(F8E4M3::narrow(f32::NAN).to_f32().is_nan());
    assert!(F8E5M2::narrow(f32::NAN).to_f32().is_nan());
}

/// Minus zero is what a sum can be given without changing; so this is every element's way through
/// arithmetic, which for some types has conversions of its own.
#[test]
fn every_element_survives_a_sum() {
    for dtype in [DataType::F16, DataType::Bf16, DataType::F8E4M3, DataType::F8E5M2] {
        let count = 1 << (8 * dtype.size());
        let elements =
            (0..count as u32).flat_map(|i| i.to_le_bytes().into_iter().take(dtype.size()));
        let zeros = (-0.0_f32).to_le_bytes().repeat(count);
        let mut case = conversion(dtype, elements.collect(), false);
        case.from.push((zeros, true));
        case.partial = false;
        case.check(PLAIN);
    }
}
