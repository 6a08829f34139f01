//! Registered memory: buffers that other ranks can reach, so that nothing has to be staged.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use warpmesh_primitives::memory::SharedMemory;

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

impl Communicator {
    /// Allocates `len` elements of registered memory, all zero. A collective call: every rank makes
    /// it, with the same or another length. Blocks until all have.
    pub fn alloc<T: Element>(&mut self, len: usize) -> Result<Buffer<T>, Error> {
        let bytes = len.checked_mul(size_of::<T>());
        let bytes = bytes.ok_or_else(|| argument("alloc", "len", "is too large"))?;
        Ok(Buffer {
            bytes: self.alloc_bytes(bytes)?,
            len,
            elements: PhantomData,
        })
    }

    /// Allocates registered memory as bytes; otherwise like [`Communicator::alloc`].
    pub fn alloc_bytes(&mut self, len: usize) -> Result<SharedBytes, Error> {
        self.check_alive()?;
        self.sweep();
        let memory = self.node.share(len).map_err(|error| match error {
            warpmesh_primitives::Error::Failed(failure) => self.failed(failure),
            error => error.into(),
        })?;
        let alive = Arc::new(());
        let id = self.next_buffer;
        self.next_buffer += 1;
        self.held += len;
        self.executor.keep(id, memory.clone());
        self.buffers.push((id, Arc::downgrade(&alive)));
        Ok(SharedBytes {
            memory,
            _alive: alive,
        })
    }

    /// Forgets buffers that were dropped.
    fn sweep(&mut self) {
        let (executor, held) = (&mut self.executor, &mut self.held);
        self.buffers.retain(|(id, alive)| {
            let keep = alive.strong_count() > 0;
            if !keep {
                *held -= executor.forget(*id);
            }
            keep
        });
    }
}
