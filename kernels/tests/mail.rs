//! vgpu: messages between two devices, and what their orders are needed for.

mod common;

use common::{Bytes, HASTE, HASTY, Rig, in_all_modes, is_caught, nvrtc, run};

const MAIL: &str = r#"
#include "warpmesh/mail.cuh"
using namespace warpmesh;

extern "C" __global__ void deliver(const __grid_constant__ Mail mail) {
  __shared__ Postman::Desk desk;
  Postman(mail, desk).deliver();
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
            let mut bytes = Bytes::default().u64s(&[control, timeout, 1]);
            bytes = bytes.u32s(&[SLOT, 1, 2, 0]).u8s(&[0, 2, 4]).u8s(&[0; 61]);
            for (receives, user, pointers) in [(0, from[me], send), (1, to[me], receive)] {
                for (start, size) in [(0, SIZES[0]), (ends[0], SIZES[1])] {
                    bytes = bytes.u64s(&[user + start as u64, size as u64]).u64s(&pointers);
                    bytes = bytes.u32(other as u32).u16(0).u16(receives);
                }
            }
            bytes.0.resize(104 + 56 * LETTERS, 0);
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
    in_all_modes(MAIL, 2, letters);
}

/// Text of mail.cuh, and what stands there instead.
const MUTANTS: [(&str, &str); 4] = [
    // The slot's data before the signal.
    ("move(n);\n      __syncthreads();", "move(n);"),
    // What thread 0 has acquired, for the others.
    ("desk.next = find(n);\n      __syncthreads();", "desk.next = find(n);"),
    // A slot is filled before it was emptied.
    ("return next > MAIL_SLOTS ? next - MAIL_SLOTS : 0;", "return 0;"),
    ("acquire_polled_sys(letter(found).mine + channel(found));", ""),
];

#[test]
fn vgpu_mutants_of_letters_are_caught() {
    let mut missed = Vec::new();
    for (from, to) in MUTANTS {
        let mut headers = nvrtc::mutated("mail.cuh", from, to);
        headers.iter_mut().for_each(|(_, text)| *text = text.replace(HASTE.0, HASTE.1));
        let Some(ptx) = nvrtc::compile_with(&headers, MAIL, 90) else { return };
        if !is_caught(&ptx.unwrap_or_else(|log| panic!("{to}: {log}")), 2, |rig| {
            letters_within(rig, HASTY)
        }) {
            missed.push(from);
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
