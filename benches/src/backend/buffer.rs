//! Memory that is measured on.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;

use anyhow::Result;

/// Memory of a GPU, behind a [`Buffer`]'s image of it on the host.
pub trait DeviceMemory {
    /// The device address.
    fn address(&self) -> u64;

    /// Copies to the device, from an offset on. Returns when it is done.
    fn write(&self, offset: usize, from: &[u8]) -> Result<()>;

    /// Copies from the device, from an offset on. Returns when it is done.
    fn read(&self, offset: usize, to: &mut [u8]) -> Result<()>;
}

/// Memory that is measured on: of the host, or of a GPU with an image of it on the host.
pub struct Buffer {
    /// On the host.
    start: NonNull<u8>,
    len: usize,
    device: Option<Box<dyn DeviceMemory>>,
    /// What frees the memory at `start`.
    _owner: Box<dyn Any>,
}

impl Buffer {
    /// Memory that belongs to a library.
    ///
    /// # Safety
    /// `start` is good for `len` bytes, initialised, while `owner` lives, and nobody else makes
    /// references into it.
    pub unsafe fn from_owner(start: NonNull<u8>, len: usize, owner: impl Any) -> Self {
        Self { start, len, device: None, _owner: Box::new(owner) }
    }

    /// Memory that no library knows of, page aligned.
    pub fn plain(len: usize) -> Self {
        let pages = Pages::new(len);
        // SAFETY: just allocated with this length, zeroed, and owned by `pages` alone.
        unsafe { Self::from_owner(pages.start, len, pages) }
    }

    /// Memory of a GPU, `len` bytes, all zero.
    pub fn on_device(memory: impl DeviceMemory + 'static, len: usize) -> Self {
        Self { device: Some(Box::new(memory)), ..Self::plain(len) }
    }

    /// The first byte: for GPUs the device address.
    pub fn as_ptr(&self) -> *mut u8 {
        match &self.device {
            Some(memory) => std::ptr::without_provenance_mut(memory.address() as usize),
            None => self.start.as_ptr(),
        }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it is a GPU's.
    pub fn is_on_device(&self) -> bool {
        self.device.is_some()
    }

    /// The bytes on the host, while no call is under way.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: good for `len` initialised bytes; borrowed mutably, and other ranks write only
        // during calls, which return before this rank gets here, or write to a GPU's memory.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Brings a GPU's memory up to date with its image.
    pub fn push(&mut self, range: Range<usize>) -> Result<()> {
        let offset = range.start;
        match self.device.take() {
            None => Ok(()),
            Some(memory) => {
                let copied = memory.write(offset, &self.bytes()[range]);
                self.device = Some(memory);
                copied
            }
        }
    }

    /// Brings the image up to date.
    pub fn pull(&mut self, range: Range<usize>) -> Result<()> {
        let offset = range.start;
        match self.device.take() {
            None => Ok(()),
            Some(memory) => {
                let copied = memory.read(offset, &mut self.bytes()[range]);
                self.device = Some(memory);
                copied
            }
        }
    }
}

struct Pages {
    start: NonNull<u8>,
    layout: Layout,
}

impl Pages {
    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), 4096).expect("a size in memory");
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        let start = start.unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, layout }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn plain_memory_is_aligned_and_zeroed() {
        let mut buffer = Buffer::plain(10_000);
        assert_eq!(buffer.as_ptr() as usize % 4096, 0);
        assert!(buffer.bytes().iter().all(|byte| *byte == 0));
        assert_eq!(Buffer::plain(0).len(), 0);
        buffer.pull(5..10).unwrap();
    }

    struct Elsewhere(Rc<RefCell<[u8; 8]>>);

    impl DeviceMemory for Elsewhere {
        fn address(&self) -> u64 {
            4096
        }

        fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
            self.0.borrow_mut()[offset..][..from.len()].copy_from_slice(from);
            Ok(())
        }

        fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
            to.copy_from_slice(&self.0.borrow()[offset..][..to.len()]);
            Ok(())
        }
    }

    #[test]
    fn only_the_named_range_is_copied() {
        let memory = Rc::new(RefCell::new([0; 8]));
        let mut buffer = Buffer::on_device(Elsewhere(memory.clone()), 8);
        assert_eq!(buffer.as_ptr() as usize, 4096);
        buffer.bytes().fill(7);
        buffer.push(2..4).unwrap();
        assert_eq!(*memory.borrow(), [0, 0, 7, 7, 0, 0, 0, 0]);
        memory.borrow_mut().fill(9);
        buffer.pull(6..8).unwrap();
        assert_eq!(buffer.bytes(), [7, 7, 7, 7, 7, 7, 9, 9]);
    }
}
