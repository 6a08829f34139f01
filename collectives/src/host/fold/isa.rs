//! Instruction sets: a 64-byte register, what moves it, and how code is compiled for it.
//!
//! A kernel is written once, as plain loops over elements, and is inlined whole into
//! [`Isa::enter`], which carries the `target_feature`s. There the compiler turns the loops into
//! vector instructions. Only what it does not find by itself is an intrinsic: conversions of f16,
//! masked tails, and stores that bypass the cache.

/// Bytes of a register, and of a cache line.
pub(super) const REG: usize = 64;

/// Elements that [`Isa::widen_f16`] and [`Isa::narrow_f16`] convert.
pub(super) const F16_LANES: usize = 16;

/// Code that can be compiled for any instruction set.
pub(super) trait Kernel {
    /// Runs it. Implementations are `#[inline(always)]`: code that is not inlined into
    /// [`Isa::enter`] is compiled without the instruction set's features.
    ///
    /// # Safety
    /// The machine has `I`'s features; and the kernel's own conditions hold.
    unsafe fn run<I: Isa>(&self);
}

/// An instruction set, or what a baseline target has.
///
/// # Safety
/// [`Isa::Reg`] is [`REG`] bytes without padding, any bits are valid, its alignment is at least 8.
pub(super) unsafe trait Isa {
    /// [`REG`] bytes, in one or several machine registers.
    type Reg: Copy;

    /// Runs `kernel`, compiled with this instruction set's features.
    ///
    /// # Safety
    /// The machine has them; and the kernel's own conditions hold.
    unsafe fn enter<K: Kernel>(kernel: &K);

    /// Reads [`REG`] bytes from any address.
    ///
    /// # Safety
    /// They are readable.
    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self::Reg {
        // SAFETY: readable, says the caller; any bits are a Reg.
        unsafe { at.cast::<Self::Reg>().read_unaligned() }
    }

    /// Writes [`REG`] bytes to any address.
    ///
    /// # Safety
    /// They are writable.
    #[inline(always)]
    unsafe fn store(at: *mut u8, reg: Self::Reg) {
        // SAFETY: writable, says the caller.
        unsafe { at.cast::<Self::Reg>().write_unaligned(reg) }
    }

    /// All bits zero.
    #[inline(always)]
    fn zero() -> Self::Reg {
        // SAFETY: any bits are a Reg.
        unsafe { std::mem::zeroed() }
    }

    /// Reads `bytes` (at most [`REG`]) bytes; the rest is zero.
    ///
    /// # Safety
    /// They are readable, and the machine has the features.
    #[inline(always)]
    unsafe fn load_some(at: *const u8, bytes: usize) -> Self::Reg {
        let mut reg = Self::zero();
        // SAFETY: the bytes are readable, and fit in a Reg; a local is no part of them.
        unsafe { at.copy_to_nonoverlapping((&raw mut reg).cast(), bytes) };
        reg
    }

    /// Writes the first `bytes` (at most [`REG`]) bytes.
    ///
    /// # Safety
    /// They are writable, and the machine has the features.
    #[inline(always)]
    unsafe fn store_some(at: *mut u8, reg: Self::Reg, bytes: usize) {
        // SAFETY: the bytes are writable, and a Reg has as many; a local is no part of them.
        unsafe { at.copy_from_nonoverlapping((&raw const reg).cast(), bytes) };
    }

    /// Writes [`REG`] bytes past the cache, where the machine can; ordered by [`Isa::fence`] only.
    ///
    /// # Safety
    /// They are writable, `at` is aligned to [`REG`], and the machine has the features.
    #[inline(always)]
    unsafe fn stream(at: *mut u8, reg: Self::Reg) {
        // SAFETY: the caller's.
        unsafe { Self::store(at, reg) }
    }

    /// Orders [`Isa::stream`] before what follows. A release store alone does not: on x86 it is a
    /// plain store, which may become visible before a non-temporal one.
    #[inline(always)]
    fn fence() {}

    /// Whether there are instructions that convert f16.
    const HAS_F16: bool = false;

    /// Widens [`F16_LANES`] f16 to f32. A NaN stays and becomes quiet.
    ///
    /// # Safety
    /// They are readable, [`Isa::HAS_F16`], and the machine has the features.
    #[inline(always)]
    unsafe fn widen_f16(at: *const u8) -> Self::Reg {
        unreachable!("no instruction to widen {at:?}")
    }

    /// Narrows [`F16_LANES`] f32 to f16, to nearest even. A NaN stays and becomes quiet.
    ///
    /// # Safety
    /// As many f16 are writable, [`Isa::HAS_F16`], and the machine has the features.
    #[inline(always)]
    unsafe fn narrow_f16(_: Self::Reg, to: *mut u8) {
        unreachable!("no instruction to narrow to {to:?}")
    }
}

/// What every machine of the target has.
pub(super) struct Baseline;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Quarter = [u64; 2];
#[cfg(target_arch = "aarch64")]
type Quarter = std::arch::aarch64::uint8x16_t;
#[cfg(target_arch = "x86_64")]
type Quarter = std::arch::x86_64::__m128i;

// SAFETY: four times 16 bytes.
unsafe impl Isa for Baseline {
    type Reg = [Quarter; 4];

    unsafe fn enter<K: Kernel>(kernel: &K) {
        // SAFETY: the caller's; there are no features to have.
        unsafe { kernel.run::<Self>() }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn stream(at: *mut u8, reg: Self::Reg) {
        for (i, quarter) in reg.into_iter().enumerate() {
            // SAFETY: within the 64 bytes that the caller vouches for; aligned as they are.
            unsafe { std::arch::x86_64::_mm_stream_si128(at.cast::<Quarter>().add(i), quarter) }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn fence() {
        // SAFETY: SSE is part of x86_64.
        unsafe { std::arch::x86_64::_mm_sfence() }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Isa, Kernel, REG};

    /// AVX2 and F16C.
    pub(in super::super) struct Avx2;

    // SAFETY: twice 32 bytes.
    unsafe impl Isa for Avx2 {
        type Reg = [__m256i; 2];
        const HAS_F16: bool = true;

        unsafe fn enter<K: Kernel>(kernel: &K) {
            #[target_feature(enable = "avx2,f16c,bmi1,bmi2,lzcnt,popcnt")]
            unsafe fn inner<K: Kernel>(kernel: &K) {
                // SAFETY: the caller's.
                unsafe { kernel.run::<Avx2>() }
            }
            // SAFETY: the caller's.
            unsafe { inner(kernel) }
        }

        #[inline(always)]
        unsafe fn stream(at: *mut u8, reg: Self::Reg) {
            // SAFETY: the 64 bytes that the caller vouches for; aligned as they are.
            unsafe {
                _mm256_stream_si256(at.cast(), reg[0]);
                _mm256_stream_si256(at.cast::<__m256i>().add(1), reg[1]);
            }
        }

        #[inline(always)]
        fn fence() {
            // SAFETY: SSE is part of x86_64.
            unsafe { _mm_sfence() }
        }

        #[inline(always)]
        unsafe fn widen_f16(at: *const u8) -> Self::Reg {
            let at = at.cast::<__m128i>();
            // SAFETY: 32 readable bytes and F16C, says the caller.
            unsafe {
                let low = _mm256_cvtph_ps(_mm_loadu_si128(at));
                let high = _mm256_cvtph_ps(_mm_loadu_si128(at.add(1)));
                [_mm256_castps_si256(low), _mm256_castps_si256(high)]
            }
        }

        #[inline(always)]
        unsafe fn narrow_f16(reg: Self::Reg, to: *mut u8) {
            let to = to.cast::<__m128i>();
            // SAFETY: 32 writable bytes and F16C, says the caller.
            unsafe {
                let low = _mm256_cvtps_ph::<0>(_mm256_castsi256_ps(reg[0]));
                let high = _mm256_cvtps_ph::<0>(_mm256_castsi256_ps(reg[1]));
                _mm_storeu_si128(to, low);
                _mm_storeu_si128(to.add(1), high);
            }
        }
    }

    /// AVX-512 of the first server generation: F, BW, VL and DQ.
    pub(in super::super) struct Avx512;

    /// Sets the first `bytes` of 64 bits.
    #[inline(always)]
    fn first(bytes: usize) -> u64 {
        debug_assert!(bytes <= REG);
        u64::MAX.checked_shr((REG - bytes) as u32).unwrap_or(0)
    }

    // SAFETY: 64 bytes.
    unsafe impl Isa for Avx512 {
        type Reg = __m512i;
        const HAS_F16: bool = true;

        unsafe fn enter<K: Kernel>(kernel: &K) {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
            #[target_feature(enable = "avx2,f16c,bmi1,bmi2,lzcnt,popcnt")]
            unsafe fn inner<K: Kernel>(kernel: &K) {
                // SAFETY: the caller's.
                unsafe { kernel.run::<Avx512>() }
            }
            // SAFETY: the caller's.
            unsafe { inner(kernel) }
        }

        #[inline(always)]
        unsafe fn load_some(at: *const u8, bytes: usize) -> Self::Reg {
            // SAFETY: a masked load touches the first `bytes` bytes only.
            unsafe { _mm512_maskz_loadu_epi8(first(bytes), at.cast()) }
        }

        #[inline(always)]
        unsafe fn store_some(at: *mut u8, reg: Self::Reg, bytes: usize) {
            // SAFETY: a masked store touches the first `bytes` bytes only.
            unsafe { _mm512_mask_storeu_epi8(at.cast(), first(bytes), reg) }
        }

        #[inline(always)]
        unsafe fn stream(at: *mut u8, reg: Self::Reg) {
            // SAFETY: the 64 bytes that the caller vouches for, aligned.
            unsafe { _mm512_stream_si512(at.cast(), reg) }
        }

        #[inline(always)]
        fn fence() {
            // SAFETY: SSE is part of x86_64.
            unsafe { _mm_sfence() }
        }

        #[inline(always)]
        unsafe fn widen_f16(at: *const u8) -> Self::Reg {
            // SAFETY: 32 readable bytes and AVX-512F, says the caller.
            unsafe { _mm512_castps_si512(_mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))) }
        }

        #[inline(always)]
        unsafe fn narrow_f16(reg: Self::Reg, to: *mut u8) {
            // SAFETY: 32 writable bytes and AVX-512F, says the caller.
            unsafe {
                let half = _mm512_cvtps_ph::<0>(_mm512_castsi512_ps(reg));
                _mm256_storeu_si256(to.cast(), half);
            }
        }
    }
}

/// An instruction set that this build has code for, in rising order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    const ALL: &[Self] = &[
        Self::Baseline,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
    ];

    /// Whether this machine has it. The first call asks the CPU, later ones read a cached word.
    fn is_here(self) -> bool {
        match self {
            Self::Baseline => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("f16c")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
                    && is_x86_feature_detected!("lzcnt")
                    && is_x86_feature_detected!("popcnt")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_here()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
        }
    }

    /// Those that this machine has.
    pub(super) fn here() -> impl DoubleEndedIterator<Item = Self> {
        Self::ALL.iter().copied().filter(|level| level.is_here())
    }

    /// The best that this machine has.
    pub(super) fn best() -> Self {
        Self::here().next_back().unwrap_or(Self::Baseline)
    }

    /// Runs `kernel` on this level.
    ///
    /// # Safety
    /// It is one of [`Level::here`]; and the kernel's own conditions hold.
    pub(super) unsafe fn enter<K: Kernel>(self, kernel: &K) {
        // SAFETY: the machine has the level, says the caller.
        unsafe {
            match self {
                Self::Baseline => Baseline::enter(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => Avx2::enter(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => Avx512::enter(kernel),
            }
        }
    }
}
