use std::time::Instant;

use proptest::prelude::*;

use super::trigger::layout;
use super::*;

fn fifo(size: usize) -> Fifo {
    Fifo::new(size, Bell::new().unwrap()).unwrap()
}

fn signal(port: u16) -> Trigger {
    Trigger { what: What::SIGNAL, port, ..Trigger::default() }
}

/// The constants of port.cuh, from its text.
#[test]
fn both_sides_have_one_layout() {
    let header = include_str!("../../../../kernels/device/port.cuh");
    let constant = |name: &str| -> u32 {
        let at = header.find(&format!("{name} = ")).unwrap_or_else(|| panic!("no {name}"));
        let digits = header[at + name.len() + 3..].chars().take_while(char::is_ascii_digit);
        digits.collect::<String>().parse().unwrap()
    };
    for (name, ours) in [
        ("BYTES_BITS", layout::BYTES_BITS),
        ("OFFSET_BITS", layout::OFFSET_BITS),
        ("PORT_BITS", layout::PORT_BITS),
        ("WHAT_BITS", layout::WHAT_BITS),
        ("PORT_SHIFT", layout::PORT_SHIFT),
        ("WHAT_SHIFT", layout::WHAT_SHIFT),
        ("FROM_HIGH_SHIFT", layout::FROM_HIGH_SHIFT),
        ("TO_HIGH_SHIFT", layout::TO_HIGH_SHIFT),
        ("PARITY_SHIFT", layout::PARITY_SHIFT),
        ("TO_LOW_SHIFT", layout::TO_LOW_SHIFT),
        ("PUT", What::PUT.0.into()),
        ("SIGNAL", What::SIGNAL.0.into()),
        ("FLUSH", What::FLUSH.0.into()),
    ] {
        assert_eq!(constant(name), ours, "{name}");
    }
}

#[test]
fn a_full_ring_says_so_and_laps_are_told_apart() {
    let fifo = fifo(4);
    let mut consumer = Consumer::new(fifo.clone());
    for lap in 0..5 {
        assert_eq!(consumer.poll(), None);
        for k in 0..4 {
            assert_eq!(fifo.try_push(&signal(k)).unwrap(), Some(4 * lap + u64::from(k)));
        }
        assert_eq!(fifo.try_push(&signal(9)).unwrap(), None);
        let full = fifo.push(&signal(9), Duration::from_millis(20)).unwrap_err();
        assert!(full.to_string().contains("room in a FIFO of 4 for port 9"), "{full}");
        (0..4).for_each(|k| assert_eq!(consumer.poll(), Some(signal(k))));
    }
    assert_eq!((consumer.polled(), fifo.done()), (20, 0));
    assert!(fifo.wait_done(19, Duration::from_millis(20)).is_err());
    consumer.publish_done(20);
    fifo.wait_done(19, Duration::ZERO).unwrap();
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    let fifo = fifo(4);
    let good = Trigger { bytes: LIMIT - 1, to: LIMIT - 1, from: LIMIT - 1, ..signal(u16::MAX) };
    for bad in [
        Trigger { bytes: LIMIT, ..good },
        Trigger { to: LIMIT, ..good },
        Trigger { from: u64::MAX, ..good },
    ] {
        assert!(matches!(fifo.try_push(&bad), Err(NetError::OutOfRange { .. })));
    }
    fifo.try_push(&good).unwrap();
    assert_eq!(Consumer::new(fifo).poll(), Some(good));
    for size in [0, 3, 1 << 21] {
        assert!(Fifo::new(size, Bell::new().unwrap()).is_err());
    }
}

#[test]
fn producers_of_several_threads_lose_nothing() {
    let fifo = fifo(8);
    let mut consumer = Consumer::new(fifo.clone());
    let (threads, each) = (3u64, 5_000u64);
    std::thread::scope(|s| {
        for port in 0..threads as u16 {
            let fifo = fifo.clone();
            s.spawn(move || {
                for bytes in 0..each {
                    fifo.push(&Trigger { bytes, ..signal(port) }, Duration::from_secs(20)).unwrap();
                }
            });
        }
        let mut next = vec![0; threads as usize];
        let mut wait = Wait::new(Duration::from_secs(20));
        while consumer.polled() < threads * each {
            match consumer.poll() {
                Some(trigger) => {
                    let next = &mut next[usize::from(trigger.port)];
                    assert_eq!(trigger.bytes, *next, "in the order of its thread");
                    *next += 1;
                }
                None => assert!(wait.pause()),
            }
        }
    });
}

#[test]
fn a_sleeper_is_rung_for() {
    let fifo = fifo(8);
    let mut consumer = Consumer::new(fifo.clone());
    fifo.try_push(&signal(1)).unwrap();
    assert!(!fifo.bell().hush(), "nobody sleeps");
    assert!(consumer.lie_down(), "something is there");
    consumer.get_up();
    consumer.poll().unwrap();
    assert!(!consumer.lie_down());
    fifo.try_push(&signal(2)).unwrap();
    let begin = Instant::now();
    fifo.bell().wait(Duration::from_secs(20));
    assert!(begin.elapsed() < Duration::from_secs(10) && fifo.bell().hush());
}

proptest! {
    #[test]
    fn triggers_survive_their_words(what in 0..8u8, port: u16, to in 0..LIMIT, from in 0..LIMIT,
                                    bytes in 0..LIMIT, parity in 0..2u64) {
        let trigger = Trigger { what: What(what), port, to, from, bytes };
        let (first, second) = trigger.encode(parity);
        prop_assert_eq!(Trigger::decode(first, second), trigger);
        prop_assert_eq!(first >> 63, parity);
    }
}
