//! vgpu: messages between two devices, and what their orders are needed for.

mod common;

use common::{Bytes, HASTE, HASTY, Rig, in_all_modes, is_caught, nvrtc, run, with_proxy};
use vgpu::mem::space::Kind;

const MAIL: &str = r#"
#include "warpmesh/mail.cuh"
using namespace warpmesh;

extern "C" __global__ void deliver(const __grid_constant__ Mail mail) {
  __shared__ Postman<FAR>::Desk desk;
  Postman<FAR>(mail, desk).deliver();
}
"#;

/// Bytes of a slot, of which 128 are its header; channels and slots are mail.cuh's.
const SLOT: u32 = 256;
const CHANNELS: u64 = 8;
const SLOTS: u64 = 4;
const LETTERS: usize = 60;
/// Two messages in each direction: the first takes its ring's slots three times.
const SIZES: [usize; 2] = [128 * 12 - 3, 77];

/// Each device sends two messages to the other and receives two, by one block or by one for each way.
fn letters(rig: &Rig) {
    letters_within(rig, u64::MAX >> 1);
}

fn letters_within(rig: &Rig, timeout: u64) {
    let each = |bytes: u64| (0..2).map(|d| rig.alloc(d, bytes as usize)).collect::<Vec<u64>>();
    let (from, to) = (each(4096), each(4096));
    let (words, rings) = (each(4 * 8 * CHANNELS), each(CHANNELS * SLOTS * u64::from(SLOT)));
    // Words by what they are: filled, emptied, sent, received.
    let word = |owner: usize, what: u64| words[owner] + what * 8 * CHANNELS;
    let ends = [SIZES[0], SIZES[0] + SIZES[1]];
    for (round, blocks) in [1, 2, 2].into_iter().enumerate() {
        let byte = |d: usize, k: usize| (k * 5 + d * 91 + round * 17) as u8;
        for (d, &at) in from.iter().enumerate() {
            rig.write(at, &(0..ends[1]).map(|k| byte(d, k)).collect::<Vec<_>>());
        }
        let params = |me: usize| {
            let other = 1 - me;
            let send = [rings[other], word(other, 0), word(me, 1), word(me, 2)];
            let receive = [rings[me], word(other, 1), word(me, 0), word(me, 3)];
            let control = rig.alloc(me as u32, 64 + 32 * 64);
            let mut bytes = Bytes::default().u64s(&[control, timeout, 1]).u64s(&[0, 0]);
            bytes = bytes.u32s(&[SLOT, 1, 2, 0]).u8s(&[0, 2, 4]).u8s(&[0; 61]);
            for (receives, user, pointers) in [(0, from[me], send), (1, to[me], receive)] {
                for (start, size) in [(0, SIZES[0]), (ends[0], SIZES[1])] {
                    bytes = bytes.u64s(&[user + start as u64, size as u64]).u64s(&pointers);
                    bytes = bytes.u64s(&[0]).u32(other as u32).u16(0).u8s(&[receives, 0]);
                }
            }
            bytes.0.resize(120 + 64 * LETTERS, 0);
            bytes.0
        };
        run(rig, "deliver", blocks, 64, &[params(0), params(1)]);
        for (d, &at) in to.iter().enumerate() {
            let seen: Vec<u8> = rig.read(at, ends[1]);
            assert!((0..ends[1]).all(|k| seen[k] == byte(1 - d, k)), "device {d}, round {round}");
        }
    }
}

#[test]
fn vgpu_letters() {
    // The kernel of messages between hosts has letters of this one, too.
    for far in ["false", "true"] {
        in_all_modes(&MAIL.replace("FAR", far), 2, letters);
    }
}

/// The same for devices of different hosts: a third one's kernel is the proxy, and a semaphore has two lanes.
fn far_letters(rig: &Rig) {
    far_letters_within(rig, u64::MAX >> 1);
}

fn far_letters_within(rig: &Rig, timeout: u64) {
    /// Bytes of a ring; that of what goes out is behind that of what comes in.
    const RING: u64 = CHANNELS * SLOTS * SLOT as u64;
    const PORTS: [u64; 2] = [0, 1];
    for (round, blocks) in [1, 2].into_iter().enumerate() {
        let each = |bytes: u64| (0..2).map(|d| rig.alloc(d, bytes as usize)).collect::<Vec<u64>>();
        let (from, to, memory) = (each(4096), each(4096), each(2 * RING));
        // Two words for each port; how often this rank has filled and emptied slots.
        let (signals, done, far) = (each(64), each(2 * 8 * CHANNELS), each(72));
        let host = |d, bytes| rig.machine.space().alloc(d, Kind::Host, bytes).unwrap();
        let fifo = |d: u32| {
            let words = [host(d, 64), rig.alloc(d, 16), host(d, 64), rig.alloc(d, 16), host(d, 64)];
            Bytes::default().u64s(&words).u32s(&[4, 0])
        };
        let fifos = [fifo(0), fifo(1)];
        let byte = |d: usize, k: usize| (k * 5 + d * 91 + round * 17) as u8;
        let ends = [SIZES[0], SIZES[0] + SIZES[1]];
        for d in 0..2 {
            rig.write(from[d], &(0..ends[1]).map(|k| byte(d, k)).collect::<Vec<_>>());
            rig.write(far[d], &fifos[d].clone().u32s(&[2, 0]).u64s(&[0, 0]).0);
        }
        let side = |d: usize| fifos[d].clone().u64s(&[memory[d], memory[1 - d], signals[1 - d]]).0;
        // Each slot is put once, and given back once.
        let slots: usize = SIZES.iter().map(|size| size.div_ceil(SLOT as usize - 128)).sum();
        let both = Bytes([side(0), side(1)].concat()).u32(2 * slots as u32);
        let proxy = rig.start("proxy", 2, 1, 1, &both.0);
        let params = |me: usize| {
            let [filled, emptied] = PORTS.map(|port| signals[me] + 16 * port);
            let send = [memory[me] + RING, PORTS[0], emptied, done[me], 0];
            let receive = [memory[me], PORTS[1], filled, done[me] + 8 * CHANNELS, 0];
            let control = rig.alloc(me as u32, 64 + 32 * 64);
            let mut bytes = Bytes::default().u64s(&[control, timeout, 1, far[me], memory[me]]);
            bytes = bytes.u32s(&[SLOT, 1, 2, 0]).u8s(&[0, 2, 4]).u8s(&[0; 61]);
            for (receives, user, pointers) in [(0, from[me], send), (1, to[me], receive)] {
                for (start, size) in [(0, SIZES[0]), (ends[0], SIZES[1])] {
                    bytes = bytes.u64s(&[user + start as u64, size as u64]).u64s(&pointers);
                    bytes = bytes.u32(1 - me as u32).u16(0).u8s(&[receives, 2]);
                }
            }
            bytes.0.resize(120 + 64 * LETTERS, 0);
            bytes.0
        };
        run(rig, "deliver", blocks, 64, &[params(0), params(1)]);
        rig.machine.wait(&proxy).unwrap_or_else(|e| panic!("{e}"));
        for (d, &at) in to.iter().enumerate() {
            let seen: Vec<u8> = rig.read(at, ends[1]);
            assert!((0..ends[1]).all(|k| seen[k] == byte(1 - d, k)), "device {d}, round {round}");
        }
    }
}

#[test]
fn vgpu_letters_to_other_hosts() {
    in_all_modes(&with_proxy(&MAIL.replace("FAR", "true")), 3, far_letters);
}

/// Text of mail.cuh, and what stands there instead.
const MUTANTS: [(&str, &str); 4] = [
    // The slot's data before the signal.
    ("move(n);\n      __syncthreads();", "move(n);"),
    // What thread 0 has acquired, for the others.
    ("desk.next = find(n);\n      __syncthreads();", "desk.next = find(n);"),
    // A slot is filled before it was emptied.
    ("return next > MAIL_SLOTS ? next - MAIL_SLOTS : 0;", "return 0;"),
    ("acquire_polled_sys(mine(found) + lane);", ""),
];

/// As above, of what only letters to other hosts do.
const FAR_MUTANTS: [(&str, &str); 5] = [
    ("move(n);\n      __syncthreads();", "move(n);"),
    ("return next > MAIL_SLOTS ? next - MAIL_SLOTS : 0;", "return 0;"),
    ("acquire_polled_sys(mine(found) + lane);", ""),
    // All lanes of a semaphore.
    ("lane < lanes(letter(n)); ++lane) least_of_all", "lane < 1; ++lane) least_of_all"),
    // All of a slot.
    ("bytes = MAIL_HEADER + filling(n)", "bytes = filling(n)"),
];

/// The mutants that letters do not show; `None` without a compiler.
fn missed(
    mutants: &[(&'static str, &str)],
    (source, devices): (&str, u32),
    letters: fn(&Rig),
) -> Option<Vec<&'static str>> {
    let mut missed = Vec::new();
    for &(from, to) in mutants {
        let mut headers = nvrtc::mutated("mail.cuh", from, to);
        headers.iter_mut().for_each(|(_, text)| *text = text.replace(HASTE.0, HASTE.1));
        let ptx = nvrtc::compile_with(&headers, source, 90)?;
        let ptx = ptx.unwrap_or_else(|log| panic!("{to}: {log}"));
        if !is_caught(&ptx, devices, letters) {
            missed.push(from);
        }
    }
    Some(missed)
}

#[test]
fn vgpu_mutants_of_letters_are_caught() {
    let source = MAIL.replace("FAR", "false");
    let missed =
        missed(&MUTANTS, (&source, 2), |rig| letters_within(rig, HASTY)).unwrap_or_default();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn vgpu_mutants_of_letters_to_other_hosts_are_caught() {
    let source = with_proxy(&MAIL.replace("FAR", "true"));
    let hasty = |rig: &Rig| far_letters_within(rig, HASTY);
    let whole = missed(&[("bool failed = false", "bool failed = false")], (&source, 3), hasty);
    let Some(whole) = whole else { return };
    assert_eq!(whole.len(), 1, "without a mutation");
    let missed = missed(&FAR_MUTANTS, (&source, 3), hasty).unwrap_or_default();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
