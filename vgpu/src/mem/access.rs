//! Single-copy atomic accesses to device memory, which other threads and processes touch at the same time.
//!
//! Sizes 1 to 8 are volatile accesses of an integer; 16 bytes are one vector instruction, which x86 processors with AVX and
//! Arm processors with LSE2 perform without tearing. They are written as inline assembly so that the compiler neither
//! splits nor merges them.

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("vgpu needs 16-byte single-copy atomic accesses: x86-64 with AVX, or Arm with LSE2");

/// Loads 16 bytes at once. The bytes are single-copy atomic if `p` is a multiple of 16.
///
/// # Safety
/// `p` must be readable for 16 bytes.
#[inline(always)]
pub unsafe fn load16(p: *const u8) -> [u8; 16] {
    let mut out = std::mem::MaybeUninit::<[u8; 16]>::uninit();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller gives 16 readable bytes; `out` has 16 writable ones.
    unsafe {
        let v: std::arch::x86_64::__m128i;
        std::arch::asm!("vmovdqu {v}, [{p}]", p = in(reg) p, v = out(xmm_reg) v,
            options(nostack, preserves_flags, readonly));
        std::arch::x86_64::_mm_storeu_si128(out.as_mut_ptr().cast(), v);
        out.assume_init()
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        let v: std::arch::aarch64::uint8x16_t;
        std::arch::asm!("ldr {v:q}, [{p}]", p = in(reg) p, v = out(vreg) v,
            options(nostack, preserves_flags, readonly));
        std::arch::aarch64::vst1q_u8(out.as_mut_ptr().cast(), v);
        out.assume_init()
    }
}

/// Stores 16 bytes at once; see [`load16`].
///
/// # Safety
/// `p` must be writable for 16 bytes.
#[inline(always)]
pub unsafe fn store16(p: *mut u8, bytes: [u8; 16]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller gives 16 writable bytes.
    unsafe {
        let v = std::arch::x86_64::_mm_loadu_si128(bytes.as_ptr().cast());
        std::arch::asm!("vmovdqu [{p}], {v}", p = in(reg) p, v = in(xmm_reg) v,
            options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        let v = std::arch::aarch64::vld1q_u8(bytes.as_ptr());
        std::arch::asm!("str {v:q}, [{p}]", p = in(reg) p, v = in(vreg) v,
            options(nostack, preserves_flags));
    }
}

/// Loads one lane's access of `N` bytes (1, 2, 4, 8, 16; 32 is two accesses of 16).
///
/// # Safety
/// `p` must be readable for `N` bytes and a multiple of `N` (of 16 for 32).
#[inline(always)]
pub unsafe fn load_unit<const N: usize>(p: *const u8) -> [u8; N] {
    let mut out = [0u8; N];
    // SAFETY: the caller's promise, size by size.
    unsafe {
        match N {
            1 => out.copy_from_slice(&p.read_volatile().to_le_bytes()),
            2 => out.copy_from_slice(&p.cast::<u16>().read_volatile().to_le_bytes()),
            4 => out.copy_from_slice(&p.cast::<u32>().read_volatile().to_le_bytes()),
            8 => out.copy_from_slice(&p.cast::<u64>().read_volatile().to_le_bytes()),
            16 => out.copy_from_slice(&load16(p)),
            _ => {
                out[..16].copy_from_slice(&load16(p));
                out[16..].copy_from_slice(&load16(p.add(16)));
            }
        }
    }
    out
}

/// Stores one lane's access; see [`load_unit`].
///
/// # Safety
/// `p` must be writable for `N` bytes and a multiple of `N` (of 16 for 32).
#[inline(always)]
pub unsafe fn store_unit<const N: usize>(p: *mut u8, b: &[u8; N]) {
    // SAFETY: the caller's promise, size by size; the conversions cannot fail since N is the arm's size.
    unsafe {
        match N {
            1 => p.write_volatile(b[0]),
            2 => p.cast::<u16>().write_volatile(u16::from_le_bytes([b[0], b[1]])),
            4 => p.cast::<u32>().write_volatile(b.as_ptr().cast::<u32>().read_unaligned()),
            8 => p.cast::<u64>().write_volatile(b.as_ptr().cast::<u64>().read_unaligned()),
            16 => store16(p, b.as_ptr().cast::<[u8; 16]>().read()),
            _ => {
                store16(p, b.as_ptr().cast::<[u8; 16]>().read());
                store16(p.add(16), b.as_ptr().add(16).cast::<[u8; 16]>().read());
            }
        }
    }
}
