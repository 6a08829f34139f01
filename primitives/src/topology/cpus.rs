//! Sets of CPUs, in the kernel's two notations.

use std::fmt;

/// The highest CPU number that is believed, so that "0-4000000000" takes no memory.
const MAX_CPU: u32 = 1 << 16;

/// A set of CPUs. `Display` gives the kernel's list: `0-3,8`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSet(Vec<u64>);

impl CpuSet {
    /// Reads the kernel's list, for instance `0-3,8,10-11`; `None` for anything else.
    pub fn from_list(text: &str) -> Option<Self> {
        let mut set = Self::default();
        for range in text.trim().split(',').filter(|_| !text.trim().is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            if first > last || last >= MAX_CPU {
                return None;
            }
            (first..=last).for_each(|cpu| set.insert(cpu));
        }
        Some(set)
    }

    /// Reads the kernel's mask, hexadecimal words of 32 bits, the highest first: `00000001,0000ffff`; `None` for
    /// anything else.
    pub fn from_mask(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.trim().split(',').collect();
        if words.len() > (MAX_CPU / 32) as usize {
            return None;
        }
        let mut set = Self::default();
        for (at, word) in words.iter().rev().enumerate() {
            // NCCL writes masks without leading zeros, and some files have words of more than 32 bits at the front.
            let digits = word.strip_prefix("0x").unwrap_or(word);
            if digits.is_empty() || digits.len() > 8 || digits.starts_with('+') {
                return None;
            }
            let bits = u32::from_str_radix(digits, 16).ok()?;
            let cpus = (0..32).filter(|bit| bits >> bit & 1 == 1);
            cpus.for_each(|bit| set.insert(at as u32 * 32 + bit));
        }
        Some(set)
    }

    /// The kernel's mask.
    pub fn to_mask(&self) -> String {
        let words = self.0.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]);
        let mut words: Vec<u32> = words.collect();
        while words.len() > 1 && words.last() == Some(&0) {
            words.pop();
        }
        if words.is_empty() {
            words.push(0);
        }
        let words: Vec<String> = words.iter().rev().map(|word| format!("{word:08x}")).collect();
        words.join(",")
    }

    /// Its CPUs, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.0.len() as u32 * 64).filter(|&cpu| self.contains(cpu))
    }

    /// Whether it has this CPU.
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.get(cpu as usize / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn insert(&mut self, cpu: u32) {
        let word = cpu as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (cpu % 64);
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpus: Vec<u32> = self.iter().collect();
        let ranges = cpus.chunk_by(|a, b| a + 1 == *b);
        for (at, range) in ranges.enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match range {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [only] => write!(f, "{comma}{only}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_notations_mean_the_same() {
        let set = CpuSet::from_list("0-3,8,40-41\n").unwrap();
        assert_eq!(set, CpuSet::from_mask("00000300,0000010f").unwrap());
        assert_eq!(
            (set.to_string(), set.to_mask()),
            ("0-3,8,40-41".into(), "00000300,0000010f".into())
        );
        assert_eq!(CpuSet::from_list("").unwrap(), CpuSet::from_mask("0").unwrap());
        assert_eq!(CpuSet::default().to_mask(), "00000000");
    }

    #[test]
    fn nonsense_is_refused() {
        for list in ["1-", "-1", "3-1", "x", "1,,2", "0-4000000000", "65536"] {
            assert_eq!(CpuSet::from_list(list), None, "{list}");
        }
        for mask in ["", "x", "123456789", "1,,1", "+1", &"1,".repeat(5000)] {
            assert_eq!(CpuSet::from_mask(mask), None, "{mask}");
        }
    }

    proptest! {
        #[test]
        fn sets_round_trip(cpus in prop::collection::btree_set(0..400u32, 0..60)) {
            let mut set = CpuSet::default();
            cpus.iter().for_each(|&cpu| set.insert(cpu));
            prop_assert!(set.iter().eq(cpus));
            prop_assert_eq!(&CpuSet::from_list(&set.to_string()).unwrap(), &set);
            prop_assert_eq!(&CpuSet::from_mask(&set.to_mask()).unwrap(), &set);
        }

        #[test]
        fn any_text_is_a_set_or_nothing(text in "[0-9a-fx,+ -]{0,30}") {
            let _ = (CpuSet::from_list(&text), CpuSet::from_mask(&text));
        }
    }
}
