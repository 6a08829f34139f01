//! Masks of lanes.

use super::warp::LANES;

/// The lanes of a mask: whoever polls is often one alone, and need not look at 32.
pub fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros() as usize;
        (mask != 0).then(|| {
            mask &= mask - 1;
            lane
        })
    })
}

const BIT: [u32; LANES] = {
    let mut bit = [0; LANES];
    let mut l = 0;
    while l < LANES {
        bit[l] = 1 << l;
        l += 1;
    }
    bit
};

/// The mask of the lanes for which `f` holds. A table and a tree, because from them the compiler makes a comparison of
/// vectors; from the plain loop it makes some 200 instructions.
#[inline(always)]
pub fn mask_where(f: impl Fn(usize) -> bool) -> u32 {
    let mut bits = [0; LANES];
    for l in 0..LANES {
        bits[l] = if f(l) { BIT[l] } else { 0 };
    }
    let (mut half, mut quarter, mut eighth) = ([0; 16], [0; 8], [0; 4]);
    for l in 0..16 {
        half[l] = bits[l] | bits[l + 16];
    }
    for l in 0..8 {
        quarter[l] = half[l] | half[l + 8];
    }
    for l in 0..4 {
        eighth[l] = quarter[l] | quarter[l + 4];
    }
    eighth[0] | eighth[1] | eighth[2] | eighth[3]
}
