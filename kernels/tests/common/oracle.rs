//! What an all-reduce gives, bit for bit, by the host device's rules: written here again, with the crates `half` and `float8`.

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};

use super::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    I8,
    U8,
    I32,
    U32,
    I64,
    U64,
    F16,
    Bf16,
    F32,
    F64,
    E4M3,
    E5M2,
}
use Type::*;

pub const TYPES: [Type; 12] = [I8, U8, I32, U32, I64, U64, F16, Bf16, F32, F64, E4M3, E5M2];
pub const OPS: [&str; 6] = ["Sum", "Prod", "Min", "Max", "Avg", "PreMulSum"];

impl Type {
    /// The struct of element.cuh.
    pub fn name(self) -> &'static str {
        match self {
            I8 => "Int8",
            U8 => "Uint8",
            I32 => "Int32",
            U32 => "Uint32",
            I64 => "Int64",
            U64 => "Uint64",
            F16 => "Half",
            Bf16 => "Bfloat16",
            F32 => "Float",
            F64 => "Double",
            E4M3 => "E4M3",
            E5M2 => "E5M2",
        }
    }

    pub fn size(self) -> usize {
        match self {
            I8 | U8 | E4M3 | E5M2 => 1,
            F16 | Bf16 => 2,
            I32 | U32 | F32 => 4,
            I64 | U64 | F64 => 8,
        }
    }

    /// Bits worth a try: zeros of both signs, NaNs quiet and signalling, infinities, the greatest and least numbers.
    fn special(self) -> Vec<u64> {
        match self {
            I8 | U8 | I32 | U32 | I64 | U64 => vec![0, 1, !0, 1 << (8 * self.size() - 1), !0 >> 1],
            F16 => {
                vec![0, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0xFE01, 0x7C01, 0x7BFF, 0xFBFF, 1, 0x3C00]
            }
            Bf16 => {
                vec![0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x7F81, 0x7F7F, 0xFF7F, 1, 0x3F80]
            }
            F32 => vec![
                0,
                0x8000_0000,
                0x7F80_0000,
                0xFF80_0000,
                0x7FC0_0000,
                0xFFC0_0001,
                0x7F80_0001,
                0x7F7F_FFFF,
                1,
                0x3F80_0000,
            ],
            F64 => vec![
                0,
                1 << 63,
                0x7FF << 52,
                0xFFF << 52,
                0x7FF8 << 48,
                0xFFF8_0000_0000_0001,
                (0x7FF << 52) + 1,
                (0x7FF << 52) - 1,
                1,
                0x3FF << 52,
            ],
            E4M3 => vec![0, 0x80, 0x7F, 0xFF, 0x7E, 0xFE, 1, 0x81, 0x38, 8],
            E5M2 => vec![0, 0x80, 0x7C, 0xFC, 0x7D, 0x7E, 0xFF, 0x7B, 0xFB, 1, 0x3C],
        }
    }

    /// An element: a special one, any bits, or a small number.
    pub fn random(self, random: &mut Random) -> u64 {
        let (kind, x) = (random.next() % 8, random.next());
        let special = self.special();
        match kind {
            0 | 1 => special[x as usize % special.len()] & self.mask(),
            2..5 => x & self.mask(),
            _ => self.of_small(x as i8 % 8),
        }
    }

    fn mask(self) -> u64 {
        !0 >> (64 - 8 * self.size())
    }

    fn of_small(self, x: i8) -> u64 {
        match self {
            F64 => f64::from(x).to_bits(),
            F16 | Bf16 | F32 | E4M3 | E5M2 => self.narrow(f32::from(x)),
            _ => x as i64 as u64 & self.mask(),
        }
    }

    fn widen(self, bits: u64) -> f32 {
        match self {
            F16 => f16::from_bits(bits as u16).to_f32(),
            Bf16 => bf16::from_bits(bits as u16).to_f32(),
            E4M3 => F8E4M3::from_bits(bits as u8).to_f32(),
            E5M2 => F8E5M2::from_bits(bits as u8).to_f32(),
            _ => f32::from_bits(bits as u32),
        }
    }

    /// Rounded once; a NaN is the type's one.
    fn narrow(self, x: f32) -> u64 {
        match (self, x.is_nan()) {
            (F16, true) => 0x7E00,
            (Bf16, true) => 0x7FC0,
            (E4M3, true) => 0x7F,
            (E5M2, true) => 0x7E,
            (_, true) => 0x7FC0_0000,
            (F16, _) => u64::from(f16::from_f32(x).to_bits()),
            (Bf16, _) => u64::from(bf16::from_f32(x).to_bits()),
            (E4M3, _) => u64::from(F8E4M3::from_f32(x).to_bits()),
            (E5M2, _) => u64::from(F8E5M2::from_f32(x).to_bits()),
            _ => u64::from(x.to_bits()),
        }
    }

    /// The contributions in rank order, reduced; `factors` are PreMulSum's.
    pub fn reduce(self, op: &str, from: &[u64], factors: &[u64]) -> u64 {
        match self {
            F64 => {
                let all =
                    |bits: &[u64]| bits.iter().map(|&x| f64::from_bits(x)).collect::<Vec<_>>();
                let x = float(op, &all(from), &all(factors), from.len() as f64);
                if x.is_nan() { 0x7FF8 << 48 } else { x.to_bits() }
            }
            F16 | Bf16 | F32 | E4M3 | E5M2 => {
                let all = |bits: &[u64]| bits.iter().map(|&x| self.widen(x)).collect::<Vec<_>>();
                self.narrow(float(op, &all(from), &all(factors), from.len() as f32))
            }
            _ => self.integer(op, from, factors),
        }
    }

    fn integer(self, op: &str, from: &[u64], factors: &[u64]) -> u64 {
        let value = |bits: u64| {
            let shift = 128 - 8 * self.size() as u32;
            let wide = u128::from(bits) << shift;
            if matches!(self, I8 | I32 | I64) {
                wide as i128 >> shift
            } else {
                (wide >> shift) as i128
            }
        };
        let wrapped = |x: i128| value(x as u64 & self.mask());
        let scaled = |r: usize| match op {
            "PreMulSum" => wrapped(value(from[r]).wrapping_mul(value(factors[r]))),
            _ => value(from[r]),
        };
        let combine = |a: i128, b: i128| match op {
            "Prod" => wrapped(a.wrapping_mul(b)),
            "Min" => a.min(b),
            "Max" => a.max(b),
            _ => wrapped(a + b),
        };
        let all = (1..from.len()).fold(scaled(0), |sum, r| combine(sum, scaled(r)));
        let result = if op == "Avg" { all / from.len() as i128 } else { all };
        result as u64 & self.mask()
    }
}

trait Real:
    Copy
    + PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
{
    fn nan(self) -> bool;
    fn negative(self) -> bool;
}
impl Real for f32 {
    fn nan(self) -> bool {
        self.is_nan()
    }
    fn negative(self) -> bool {
        self.is_sign_negative()
    }
}
impl Real for f64 {
    fn nan(self) -> bool {
        self.is_nan()
    }
    fn negative(self) -> bool {
        self.is_sign_negative()
    }
}

fn float<R: Real>(op: &str, from: &[R], factors: &[R], world: R) -> R {
    let scaled = |r: usize| if op == "PreMulSum" { from[r] * factors[r] } else { from[r] };
    // Less, where -0 is less than +0.
    let less = |a: R, b: R| a < b || (a == b && a.negative() && !b.negative());
    let combine = |a: R, b: R| match op {
        "Prod" => a * b,
        "Min" | "Max" if a.nan() || b.nan() => {
            if a.nan() {
                a
            } else {
                b
            }
        }
        "Min" => {
            if less(b, a) {
                b
            } else {
                a
            }
        }
        "Max" => {
            if less(a, b) {
                b
            } else {
                a
            }
        }
        _ => a + b,
    };
    let all = (1..from.len()).fold(scaled(0), |sum, r| combine(sum, scaled(r)));
    if op == "Avg" { all / world } else { all }
}
