//! Random shapes: as many operands as there can be, of any length, anywhere.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

prop_compose! {
    fn layout()(
        shift in 0..64_usize,
        skew in 0..64_usize,
        in_place in proptest::option::of(0..64_usize),
        streaming: bool,
    ) -> Layout {
        Layout { shift, skew, in_place, streaming }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_shape_folds_as_the_oracle_says(
        dtype in select(DataType::ALL.to_vec()),
        op in select(OpKind::ALL.to_vec()),
        sources in 1..=64_usize,
        dests in 1..=64_usize,
        count in 0..700_usize,
        mut layout in layout(),
        seed: u64,
    ) {
        layout.in_place = layout.in_place.map(|source| source % sources);
        Random(seed).case(dtype, op, (sources, dests, count)).check(layout);
    }
}
