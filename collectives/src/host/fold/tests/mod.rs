mod convert;
mod copying;
mod grid;
mod memory;
mod oracle;
mod shapes;

use super::*;
use memory::Buffer;

/// One call of a fold, but for where its operands lie.
#[derive(Clone, Debug)]
struct Case {
    dtype: DataType,
    op: OpKind,
    count: usize,
    /// Each source's bytes, and whether it is partial.
    from: Vec<(Vec<u8>, bool)>,
    dests: usize,
    partial: bool,
    /// Each source's factor.
    scales: Vec<u64>,
    args: FoldArgs,
}

/// Where operands lie.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Bytes past a cache line's start, for the first operand; the others are a bit further each.
    shift: usize,
    /// Bytes that the shift grows by from one operand to the next.
    skew: usize,
    /// The source, if any, where a destination lies too: the first for even shifts, else the last.
    in_place: Option<usize>,
    streaming: bool,
}

impl Case {
    fn width(&self, partial: bool) -> usize {
        if partial { self.dtype.accumulator_size() } else { self.dtype.size() }
    }

    /// Calls the fold and returns what is at each destination, having checked that nothing around
    /// destinations was written.
    fn run(&self, level: Level, layout: Layout) -> Vec<Vec<u8>> {
        let place = |i: usize, bytes: &[u8]| Buffer::new(bytes, layout.shift + i * layout.skew);
        let sources = self.from.iter().enumerate();
        let mut sources: Vec<Buffer> = sources.map(|(i, (bytes, _))| place(i, bytes)).collect();
        let blank = vec![0xA5; self.count * self.width(self.partial)];
        let dests = (0..self.dests).map(|i| i + self.from.len());
        let mut dests: Vec<Buffer> = dests.map(|i| place(i, &blank)).collect();
        let from: Vec<Source> = sources
            .iter_mut()
            .zip(self.from.iter().zip(&self.scales))
            .map(|(buffer, (&(_, partial), &scale))| Source { at: buffer.at(), partial, scale })
            .collect();
        let dest = |buffer: &mut Buffer| Dest { at: buffer.at(), partial: self.partial };
        let mut to: Vec<Dest> = dests.iter_mut().map(dest).collect();
        // The first destination or the last: what comes before the others, and after them.
        let shared = layout
            .in_place
            .filter(|&source| self.width(self.from[source].1) == self.width(self.partial));
        let in_place = if layout.shift.is_multiple_of(2) { 0 } else { self.dests - 1 };
        if let Some(source) = shared {
            to[in_place].at = from[source].at.cast_mut();
        }
        let fold = fold_at(level, self.dtype, self.op);
        // SAFETY: buffers of the right sizes, distinct but for one destination that is a source of
        // the same width; the machine has the level.
        unsafe { fold(&to, &from, self.count, &self.args, layout.streaming) };
        if let Some(source) = shared {
            std::mem::swap(&mut dests[in_place], &mut sources[source]);
        }
        dests.iter().map(Buffer::bytes).collect()
    }

    /// Runs on every level and compares all destinations with the oracle.
    fn check(&self, layout: Layout) {
        let expected = oracle::expected(self);
        for level in Level::here() {
            for (i, found) in self.run(level, layout).iter().enumerate() {
                self.compare(&expected, found, &format!("{level:?}, {layout:?}, destination {i}"));
            }
        }
    }

    fn compare(&self, expected: &[u8], found: &[u8], what: &str) {
        let width = self.width(self.partial).max(1);
        let differs = |(a, b): (&[u8], &[u8])| a != b;
        let Some(i) = expected.chunks(width).zip(found.chunks(width)).position(differs) else {
            assert_eq!(expected.len(), found.len());
            return;
        };
        let operands: Vec<String> = self
            .from
            .iter()
            .map(|(bytes, partial)| {
                let width = self.width(*partial);
                format!("{:02x?}", &bytes[i * width..][..width])
            })
            .collect();
        panic!(
            "{} {}, element {i} of {}: {:02x?} is not {:02x?} ({what}; little endian operands {})",
            self.dtype,
            self.op.name(),
            self.count,
            &found[i * width..][..width],
            &expected[i * width..][..width],
            operands.join(" "),
        );
    }
}

/// A small generator (splitmix64): the same inputs in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Bytes of `count` elements, or of as many accumulators: a third any bits, the others numbers
    /// that meet: small ones, and the special ones of floats.
    fn numbers(&mut self, dtype: DataType, partial: bool, count: usize) -> Vec<u8> {
        let dtype = if partial && dtype.is_narrow_float() { DataType::F32 } else { dtype };
        let mut bytes = Vec::with_capacity(count * dtype.size());
        for _ in 0..count {
            let any = self.next();
            let bits = match self.below(3) {
                0 => any,
                1 => oracle::small(dtype, (any % 33) as i8 - 16),
                _ => oracle::special(dtype, any),
            };
            bytes.extend_from_slice(&bits.to_le_bytes()[..dtype.size()]);
        }
        bytes
    }

    /// A case with random contents. About a quarter of its sources are partial.
    fn case(&mut self, dtype: DataType, op: OpKind, shape: (usize, usize, usize)) -> Case {
        let (sources, dests, count) = shape;
        let from = (0..sources)
            .map(|_| {
                let partial = self.below(4) == 0;
                (self.numbers(dtype, partial, count), partial)
            })
            .collect();
        let scales = (0..sources)
            .map(|i| match self.below(8) {
                0 => self.next(),
                _ => oracle::small(dtype, 3 - i as i8),
            })
            .collect();
        let world = [1, 2, 3, 8, 1000, u32::MAX][self.below(6)];
        let partial = self.below(3) == 0;
        Case { dtype, op, count, from, dests, partial, scales, args: FoldArgs { world } }
    }
}
