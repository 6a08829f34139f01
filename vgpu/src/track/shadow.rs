//! Where granules' cells are: pages of compact cells, which point to a full history where they need one.
//!
//! A compact cell holds what most granules ever see: a base that everybody knows, at most one weak write that covers the
//! whole granule, and at most one weak read that does, each by consecutive lanes of one warp in one instruction. It is one cache line.
//! Anything else (part of a granule, strong accesses, a second writer) moves the granule to a [`History`].

use smallvec::SmallVec;

use super::clock::{Claim, FastMap, Know, NOBODY, Thread};
use super::history::{History, Read, Write};

/// An access of a whole granule by consecutive lanes of a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) warp: u32,
    pub(super) clock: u32,
    /// PTX line, log2 of the bytes per lane (0 to 4), first lane.
    place: u32,
}

/// No access.
pub(super) const NEVER: Stamp = Stamp { warp: NOBODY, clock: 0, place: 0 };

impl Stamp {
    /// None if the line does not fit.
    pub(super) fn new(warp: u32, clock: u32, line: u32, shift: u32, lane: u32) -> Option<Stamp> {
        (line < 1 << 24).then_some(Stamp { warp, clock, place: line << 8 | shift << 5 | lane })
    }

    pub(super) fn line(self) -> u32 {
        self.place >> 8
    }

    /// The same access one granule further.
    #[inline(always)]
    pub(super) fn at_lane(self, lane: u32) -> Stamp {
        Stamp { place: self.place & !31 | lane, ..self }
    }

    /// True if all of it is before whatever knows this, or each byte is touched by the same thread.
    #[inline(always)]
    fn before(self, me: Stamp, know: &Know) -> bool {
        self.warp == NOBODY
            || know.all_of(self.warp) >= self.clock
            || self.warp == me.warp && (self.place ^ me.place) & 0xff == 0
    }

    /// Each lane with its bytes.
    fn lanes(self) -> impl Iterator<Item = (u8, u16)> {
        let (first, shift) = (self.place & 31, self.place >> 5 & 7);
        let bytes = 1u32 << shift;
        let mask = ((1u32 << bytes) - 1) as u16;
        (0..16 >> shift).map(move |n| ((first + n) as u8, mask << (n * bytes)))
    }
}

/// A granule with at most one write and one read.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Cell {
    /// Before the write.
    old: [u8; 16],
    new: [u8; 16],
    write: Stamp,
    read: Stamp,
    /// Its contents are of this epoch, or of none.
    epoch: u32,
    /// Number of its history plus one; 0: it has none.
    history: u32,
}

const _: () = assert!(size_of::<Cell>() == 64);

const EMPTY: Cell =
    Cell { old: [0; 16], new: [0; 16], write: NEVER, read: NEVER, epoch: 0, history: 0 };

/// How the model uses compact cells.
#[derive(Clone, Copy)]
pub(super) struct Mode {
    pub(super) weak: bool,
    pub(super) race: bool,
}

impl Cell {
    /// Takes host bytes over if the cell is new. False if it has a history, or the host has written.
    #[inline(always)]
    fn open(&mut self, epoch: u32, host: &[u8; 16]) -> bool {
        if self.epoch != epoch {
            *self = Cell { new: *host, epoch, ..EMPTY };
        }
        self.history == 0 && self.new == *host
    }

    /// A weak load of all bytes, which sees the newest ones: false if the cell cannot say so.
    #[inline(always)]
    pub(super) fn load(
        &mut self,
        epoch: u32,
        mode: Mode,
        host: &[u8; 16],
        me: Stamp,
        know: &Know,
    ) -> bool {
        if !self.open(epoch, host) || !self.write.before(me, know) {
            return false;
        }
        if mode.race {
            // A read before this one is of no interest any more: what races with it races with this one, too.
            if !self.read.before(me, know) {
                return false;
            }
            self.read = me;
        }
        true
    }

    /// A weak store of all bytes: false if the cell has no room for it.
    #[inline(always)]
    pub(super) fn store(
        &mut self,
        epoch: u32,
        mode: Mode,
        host: &[u8; 16],
        me: Stamp,
        know: &Know,
        data: [u8; 16],
    ) -> bool {
        if !self.open(epoch, host)
            || mode.weak && self.write.warp != NOBODY
            || mode.race && !(self.write.before(me, know) && self.read.before(me, know))
        {
            return false;
        }
        *self = Cell { old: self.new, new: data, write: me, read: NEVER, ..*self };
        true
    }

    /// The same as a history; `ids` numbers its writes.
    fn expand(&self, ids: &mut u64) -> History {
        if self.write.warp == NOBODY {
            return self.with_read(History::new(self.new));
        }
        let mut h = History::new(self.old);
        for (lane, mask) in self.write.lanes() {
            let who = Thread { warp: self.write.warp, lane };
            let w = Write::plain(mask, self.new, who, self.write.clock, self.write.line());
            *ids += 1;
            h.insert(h.writes.len(), Write { id: *ids, ..w });
        }
        self.with_read(h)
    }

    fn with_read(&self, mut h: History) -> History {
        if self.read.warp != NOBODY {
            let Stamp { warp, clock, .. } = self.read;
            let read = |(lane, mask)| Read {
                mask,
                element: 0,
                claim: Claim { warp, lanes: Thread { warp, lane }.bit(), clock },
                strong: None,
                line: self.read.line(),
            };
            h.reads = self.read.lanes().map(read).collect::<SmallVec<_>>();
        }
        h
    }
}

/// Granules of a page.
pub(super) const PAGE: u64 = 256;

struct Page {
    number: u64,
    epoch: u32,
    cells: Box<[Cell; PAGE as usize]>,
}

/// All granules.
pub(super) struct Shadow {
    pub(super) epoch: u32,
    numbers: FastMap<u64, u32>,
    pages: Vec<Page>,
    /// The last page that was asked for, which is mostly the next one, too.
    last: (u64, u32),
    pub(super) histories: Vec<History>,
    free: Vec<u32>,
}

impl Shadow {
    pub(super) fn new() -> Self {
        Shadow {
            epoch: 1,
            numbers: FastMap::default(),
            pages: Vec::new(),
            last: (u64::MAX, 0),
            histories: Vec::new(),
            free: Vec::new(),
        }
    }

    /// The cells of the page of a granule.
    #[inline]
    pub(super) fn page(&mut self, granule: u64) -> &mut [Cell; PAGE as usize] {
        let number = granule / PAGE;
        if self.last.0 != number {
            self.last = (number, self.find_page(number));
        }
        &mut self.pages[self.last.1 as usize].cells
    }

    fn find_page(&mut self, number: u64) -> u32 {
        let epoch = self.epoch;
        let new = self.pages.len() as u32;
        let n = *self.numbers.entry(number).or_insert(new);
        if n == new {
            // As a vector first: an array of this size does not belong on the stack.
            let cells = vec![EMPTY; PAGE as usize].into_boxed_slice().try_into();
            let Ok(cells) = cells else { unreachable!("a page has {PAGE} cells") };
            self.pages.push(Page { number, epoch, cells });
        }
        self.pages[n as usize].epoch = epoch;
        n
    }

    /// The history of a granule, which holds `initial` if it is new.
    pub(super) fn slot(&mut self, granule: u64, initial: &[u8; 16], ids: &mut u64) -> u32 {
        let epoch = self.epoch;
        let cell = &mut self.page(granule)[(granule % PAGE) as usize];
        if cell.epoch != epoch {
            *cell = Cell { new: *initial, epoch, ..EMPTY };
        }
        if cell.history != 0 {
            return cell.history - 1;
        }
        let history = cell.expand(ids);
        let n = self.add(history);
        self.page(granule)[(granule % PAGE) as usize].history = n + 1;
        n
    }

    fn add(&mut self, h: History) -> u32 {
        if let Some(n) = self.free.pop() {
            self.histories[n as usize] = h;
            return n;
        }
        self.histories.push(h);
        self.histories.len() as u32 - 1
    }

    /// The newest bytes of a granule, if it was touched.
    pub(super) fn newest(&mut self, granule: u64) -> Option<[u8; 16]> {
        let epoch = self.epoch;
        let cell = self.page(granule)[(granule % PAGE) as usize];
        match cell.history {
            _ if cell.epoch != epoch => None,
            0 => Some(cell.new),
            n => Some(self.histories[n as usize - 1].newest()),
        }
    }

    /// Forgets a granule.
    pub(super) fn clear(&mut self, granule: u64) {
        let epoch = self.epoch;
        let cell = &mut self.page(granule)[(granule % PAGE) as usize];
        let history = if cell.epoch == epoch { cell.history } else { 0 };
        *cell = EMPTY;
        if history != 0 {
            self.histories[history as usize - 1] = History::new([0; 16]);
            self.free.push(history - 1);
        }
    }

    /// Forgets the pages of some granules, which are all of those pages that anybody uses.
    pub(super) fn remove(&mut self, granules: std::ops::Range<u64>) {
        for number in granules.start / PAGE..granules.end.div_ceil(PAGE) {
            let Some(&n) = self.numbers.get(&number) else { continue };
            for g in number * PAGE..(number + 1) * PAGE {
                self.clear(g);
            }
            self.drop_page(n as usize);
        }
    }

    fn drop_page(&mut self, n: usize) {
        self.numbers.remove(&self.pages[n].number);
        self.pages.swap_remove(n);
        if let Some(moved) = self.pages.get(n) {
            self.numbers.insert(moved.number, n as u32);
        }
        self.last.0 = u64::MAX;
    }

    /// Pages, and places for histories.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        (self.pages.len(), self.histories.len())
    }

    /// Forgets everything. The memory of pages that were in use stays, since the next launch mostly touches the same.
    pub(super) fn reset(&mut self) {
        for n in (0..self.pages.len()).rev() {
            if self.pages[n].epoch != self.epoch {
                self.drop_page(n);
            }
        }
        self.histories.clear();
        self.free.clear();
        self.last.0 = u64::MAX;
        self.epoch += 1;
    }
}
