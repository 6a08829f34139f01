//! Registered memory: buffers that other ranks can reach, so that nothing has to be staged.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use warpmesh_primitives::memory::SharedMemory;
use warpmesh_primitives::node::MOST_DESCRIBED;

use super::Communicator;
use crate::dtype::Element;
use crate::error::{Error, argument};

/// Registered memory as bytes. Any range of it can be used in calls, at any offset.
#[derive(Debug)]
pub struct SharedBytes {
    memory: SharedMemory,
    /// Tells the communicator when this is dropped.
    _alive: Arc<()>,
}

impl SharedBytes {
    /// The first byte, page aligned.
    pub fn as_ptr(&self) -> *const u8 {
        self.memory.local()
    }

    /// The first byte, page aligned.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.memory.local()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }
}

/// Registered memory as elements; use it like a slice.
///
/// Other ranks access it during collective calls that it was passed to, and at no other time. (After
/// a failed call a late peer may still do so until it notices: contents are then unspecified.)
#[derive(Debug)]
pub struct Buffer<T> {
    bytes: SharedBytes,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the memory has `len` elements, page aligned; it began as zeros and elements are
        // plain data. While this borrow lives no call can have the buffer as its output, and peers
        // write to outputs of calls only.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.len) }
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; peers read it during calls only, and those borrow it.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_mut_ptr().cast(), self.len) }
    }
}

/// Memory of the caller's that was registered. Dropping it ends the registration, at the latest
/// before the next one is made.
#[derive(Debug)]
pub struct Registration {
    shared: bool,
    _alive: Arc<()>,
}

impl Registration {
    /// Whether other ranks reach the memory. If not, calls stage it.
    pub fn is_shared(&self) -> bool {
        self.shared
    }
}

/// Random bytes that tell this process from all others.
fn process() -> [u8; 16] {
    static PROCESS: OnceLock<[u8; 16]> = OnceLock::new();
    *PROCESS.get_or_init(warpmesh_primitives::host::random_bytes)
}

impl Communicator {
    /// Allocates `len` elements of registered memory, all zero. A collective call: every rank makes
    /// it, with the same or another length. Blocks until all have. With a rank's own part it lets go
    /// of its peers' parts, so drop it on all ranks, or on none.
    pub fn alloc<T: Element>(&mut self, len: usize) -> Result<Buffer<T>, Error> {
        let bytes = len.checked_mul(size_of::<T>());
        let bytes = bytes.ok_or_else(|| argument("alloc", "len", "is too large"))?;
        Ok(Buffer { bytes: self.alloc_bytes(bytes)?, len, elements: PhantomData })
    }

    /// Allocates registered memory as bytes; otherwise like [`Communicator::alloc`].
    pub fn alloc_bytes(&mut self, len: usize) -> Result<SharedBytes, Error> {
        self.check_alive()?;
        self.sweep();
        let memory = self.node.share(len, true).map_err(|error| match error {
            warpmesh_primitives::Error::Failed(failure) => self.failed(failure),
            error => error.into(),
        })?;
        let number = match self.node.spans_hosts() {
            true => Some(self.publish(&memory)?),
            false => None,
        };
        let alive = Arc::new(());
        self.keep(memory.clone(), number, &alive, len);
        Ok(SharedBytes { memory, _alive: alive })
    }

    /// Lets ranks of other hosts reach memory; its number. The descriptions are exchanged by a collective, so that a rank
    /// that is gone, or calls something else, is found out as in any other call.
    fn publish(&mut self, memory: &SharedMemory) -> Result<u32, Error> {
        const LETTER: usize = MOST_DESCRIBED + 1;
        let (number, described) = self.node.register(memory)?;
        let mut mine = [0; LETTER];
        let mut all = vec![0; LETTER * self.world()];
        if described.len() > MOST_DESCRIBED {
            let problem = format!("is described by {} bytes", described.len());
            return Err(argument("alloc", "memory", problem));
        }
        mine[0] = described.len() as u8;
        mine[1..=described.len()].copy_from_slice(&described);
        self.all_gather(&mine, &mut all)?;
        for (peer, theirs) in all.chunks_exact(LETTER).enumerate() {
            let length = usize::from(theirs[0]).min(MOST_DESCRIBED);
            self.node.learn(peer, number, &theirs[1..=length])?;
        }
        Ok(number)
    }

    /// Registers memory that the caller allocated, so that calls need not stage it. A collective
    /// call: every rank makes it, with its own memory.
    ///
    /// Ranks that are threads of one process reach each other's memory as it is. Private memory of
    /// another process, or of another host, cannot be reached: then nothing is registered, calls stage as before, and
    /// [`Registration::is_shared`] says so. ([`Communicator::alloc`] gives memory that can.)
    ///
    /// # Safety
    /// The memory stays valid until the registrations of all ranks were dropped, and the memory of
    /// a communicator that failed until all ranks have dropped the communicator.
    pub unsafe fn register(&mut self, address: *mut u8, len: usize) -> Result<Registration, Error> {
        self.check_alive()?;
        self.sweep();
        let mut mine = [0; 32];
        mine[..16].copy_from_slice(&process());
        mine[16..24].copy_from_slice(&(address as u64).to_le_bytes());
        mine[24..].copy_from_slice(&(len as u64).to_le_bytes());
        let mut all = Vec::with_capacity(self.world());
        for theirs in self.bootstrap.all_gather(&mine)? {
            let word = |at: usize| {
                let bytes = theirs.get(at..at + 8)?.try_into().ok()?;
                usize::try_from(u64::from_le_bytes(bytes)).ok()
            };
            let same = theirs.get(..16) == Some(&mine[..16]);
            let range = word(16).and_then(|a| NonNull::new(a as *mut u8)).zip(word(24));
            all.extend(range.filter(|_| same));
        }
        let alive = Arc::new(());
        let shared = all.len() == self.world() && !self.node.spans_hosts();
        if shared {
            // SAFETY: the ranges are of threads of this process, whose callers have promised to
            // keep them.
            let memory = unsafe { SharedMemory::of_this_process(self.rank(), &all) };
            self.keep(memory, None, &alive, 0);
        }
        Ok(Registration { shared, _alive: alive })
    }

    fn keep(&mut self, memory: SharedMemory, number: Option<u32>, alive: &Arc<()>, held: usize) {
        self.held += held;
        let id = self.next_number();
        self.executor.keep(id, memory, number);
        self.buffers.push((id, Arc::downgrade(alive), held));
    }

    /// Forgets buffers that were dropped.
    fn sweep(&mut self) {
        let (executor, held) = (&mut self.executor, &mut self.held);
        self.buffers.retain(|(id, alive, bytes)| {
            let keep = alive.strong_count() > 0;
            if !keep {
                executor.forget(*id);
                *held -= bytes;
            }
            keep
        });
    }
}
