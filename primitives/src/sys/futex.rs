//! Sleeping on a word of shared memory.

use std::time::Duration;

#[cfg(not(loom))]
use rustix::thread::futex;

/// Sleeps while `word` holds `expected`, until a wake-up, a signal or `limit`. May return early;
/// the caller looks again at what it waits for.
#[cfg(not(loom))]
pub(crate) fn futex_wait(word: &std::sync::atomic::AtomicU32, expected: u32, limit: Duration) {
    let limit = super::socket::timespec(limit);
    // The flags leave out PRIVATE: the word is shared between processes. Every error (changed
    // value, signal, time passed) means the same: look again.
    let _ = futex::wait(word, futex::Flags::empty(), expected, Some(&limit));
}

/// Wakes all who sleep on `word`.
#[cfg(not(loom))]
pub(crate) fn futex_wake(word: &std::sync::atomic::AtomicU32) {
    let _ = futex::wake(word, futex::Flags::empty(), i32::MAX as u32);
}

#[cfg(loom)]
pub(crate) fn futex_wait(_: &crate::sync::AtomicU32, _: u32, _: Duration) {
    loom::thread::yield_now();
}

#[cfg(loom)]
pub(crate) fn futex_wake(_: &crate::sync::AtomicU32) {}
