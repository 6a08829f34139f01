//! A row of elements that repeats with a period, each repetition rotated against the one before.

use warpmesh::DataType;

use super::values::{mix, precision};

/// Elements before the row repeats; a prime, so that no block boundary falls on it.
pub(super) const PERIOD: usize = 4093;
const ROTATION: usize = 1021;

/// The slots of one period, as bytes, twice, so that every rotation is contiguous.
pub(super) struct Pattern {
    size: usize,
    bytes: Vec<u8>,
}

impl Pattern {
    /// `slots` below [`PERIOD`] only where no element beyond them is asked for.
    pub(super) fn new(size: usize, slots: usize, bits: impl Fn(usize) -> u64) -> Self {
        let mut bytes = Vec::with_capacity(2 * slots * size);
        for slot in 0..slots {
            bytes.extend_from_slice(&bits(slot).to_le_bytes()[..size]);
        }
        bytes.extend_from_within(..);
        Self { size, bytes }
    }

    /// Writes the elements from `first` on.
    pub(super) fn write(&self, first: usize, to: &mut [u8]) {
        let mut rest = to;
        let mut index = first;
        while !rest.is_empty() {
            let run = self.run(index, rest.len());
            let (bytes, others) = rest.split_at_mut(run.len());
            bytes.copy_from_slice(run);
            index += run.len() / self.size;
            rest = others;
        }
    }

    /// How many of the elements from `first` on are different in `found`.
    pub(super) fn differing(&self, first: usize, found: &[u8]) -> u64 {
        let mut rest = found;
        let mut index = first;
        let mut different = 0;
        while !rest.is_empty() {
            let run = self.run(index, rest.len());
            let (bytes, others) = rest.split_at(run.len());
            different += differing(run, bytes, self.size);
            index += run.len() / self.size;
            rest = others;
        }
        different
    }

    /// The elements from `index` to the end of its repetition, `most` bytes of them.
    fn run(&self, index: usize, most: usize) -> &[u8] {
        let (repetition, at) = (index / PERIOD, index % PERIOD);
        let rotated = (repetition * ROTATION) % PERIOD;
        let bytes = ((PERIOD - at) * self.size).min(most);
        &self.bytes[(rotated + at) * self.size..][..bytes]
    }
}

fn differing(expected: &[u8], found: &[u8], size: usize) -> u64 {
    if expected == found {
        return 0;
    }
    let pairs = expected.chunks_exact(size).zip(found.chunks_exact(size));
    pairs.filter(|(expected, found)| expected != found).count() as u64
}

/// A number that two buffers share if they have the same bits, and hardly otherwise.
pub fn digest(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let step = |sum: u64, word: [u8; 8]| {
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    };
    let sum = words.iter().fold(bytes.len() as u64, |sum, word| step(sum, *word));
    mix(step(sum, last))
}

/// Floats of full precision with magnitudes from 1/4 to 2: sums round at almost every step.
pub(super) fn fill_rough(dtype: DataType, seed: u64, buffer: &mut [u8]) -> bool {
    let Some(precision) = precision(dtype) else {
        return false;
    };
    let slots = PERIOD.min(buffer.len() / dtype.size());
    let pattern = Pattern::new(dtype.size(), slots, |slot| {
        let random = mix(seed.wrapping_mul(31) ^ slot as u64);
        rough(dtype, precision, random)
    });
    pattern.write(0, buffer);
    true
}

fn rough(dtype: DataType, precision: u32, random: u64) -> u64 {
    let bits = 8 * dtype.size() as u32;
    let fraction = random & ((1 << (precision - 1)) - 1);
    let bias = (1_u64 << (bits - precision - 1)) - 1;
    let exponent = bias - (random >> 60) % 3;
    let sign = (random >> 59 & 1) << (bits - 1);
    sign | exponent << (precision - 1) | fraction
}
