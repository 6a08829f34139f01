//! Arithmetic of the accumulation types, one element at a time.
//!
//! A result that is NaN is always the type's canonical quiet NaN. Without that, its bits would be
//! those of whichever operand the compiler put first, or the machine's own choice for `inf - inf`
//! (x86 sets the sign, Arm does not): different in a vector body and in a tail, and from rank to
//! rank.

/// A type that sums are kept in.
pub(super) trait Number: Copy {
    /// The sum; integers wrap.
    fn plus(self, other: Self) -> Self;
    /// The product; integers wrap.
    fn times(self, other: Self) -> Self;
    /// The lesser; for floats IEEE 754-2019 `minimum`.
    fn least(self, other: Self) -> Self;
    /// The greater; for floats IEEE 754-2019 `maximum`.
    fn greatest(self, other: Self) -> Self;
    /// The quotient; integers round towards zero.
    fn over(self, divisor: u32) -> Self;
}

macro_rules! quotient {
    ($dividend:expr, $divisor:expr, $int:ty) => {{
        let quotient = f64::from($dividend) / f64::from($divisor);
        // SAFETY: divided by 1 or more, it fits where the dividend did.
        unsafe { quotient.to_int_unchecked::<$int>() }
    }};
}

macro_rules! integers {
    ($($int:ty, $quotient:expr;)*) => {$(
        impl Number for $int {
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline(always)]
            fn times(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }

            #[inline(always)]
            fn least(self, other: Self) -> Self {
                if other < self { other } else { self }
            }

            #[inline(always)]
            fn greatest(self, other: Self) -> Self {
                if other > self { other } else { self }
            }

            #[inline(always)]
            fn over(self, divisor: u32) -> Self {
                $quotient(self, divisor)
            }
        }
    )*};
}

// There are vector instructions to divide floats, and none for integers. Numbers of 32 bits divide
// exactly in f64: a quotient v/d that is not whole is at least 1/d away from a whole number, and
// its rounding error is at most 2^-53 * v/d, less than 2^-20 of that. So truncation finds the same
// number. (Casts that saturate are no vector instructions either.)
integers! {
    i8, |v, d| quotient!(v, d, i32) as i8;
    u8, |v, d| quotient!(v, d, i32) as u8;
    i32, |v, d| quotient!(v, d, i32);
    u32, |v, d| quotient!(v, d, u32);
    i64, |v, d| v / i64::from(d);
    u64, |v, d| v / u64::from(d);
}

macro_rules! floats {
    ($($float:ty),*) => {$(
        impl Number for $float {
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                let sum = self + other;
                if sum.is_nan() { Self::NAN } else { sum }
            }

            #[inline(always)]
            fn times(self, other: Self) -> Self {
                let product = self * other;
                if product.is_nan() { Self::NAN } else { product }
            }

            #[inline(always)]
            fn least(self, other: Self) -> Self {
                // Equal numbers have the same bits, but for the zeros' sign.
                let equal = Self::from_bits(self.to_bits() | other.to_bits());
                let lesser = if self < other { self } else { other };
                let number = if self == other { equal } else { lesser };
                if self.is_nan() | other.is_nan() { Self::NAN } else { number }
            }

            #[inline(always)]
            fn greatest(self, other: Self) -> Self {
                let equal = Self::from_bits(self.to_bits() & other.to_bits());
                let greater = if self > other { self } else { other };
                let number = if self == other { equal } else { greater };
                if self.is_nan() | other.is_nan() { Self::NAN } else { number }
            }

            #[inline(always)]
            fn over(self, divisor: u32) -> Self {
                let quotient = self / divisor as Self;
                if quotient.is_nan() { Self::NAN } else { quotient }
            }
        }
    )*};
}

floats!(f32, f64);

/// How two accumulators become one.
pub(super) trait Combine {
    /// Combines them, in this order.
    fn combine<A: Number>(left: A, right: A) -> A;
}

macro_rules! combiners {
    ($($(#[$doc:meta])* $name:ident = $method:ident;)*) => {$(
        $(#[$doc])*
        pub(super) struct $name;

        impl Combine for $name {
            #[inline(always)]
            fn combine<A: Number>(left: A, right: A) -> A {
                left.$method(right)
            }
        }
    )*};
}

combiners! {
    /// By the sum.
    Add = plus;
    /// By the product.
    Multiply = times;
    /// By the lesser.
    Least = least;
    /// By the greater.
    Greatest = greatest;
}
