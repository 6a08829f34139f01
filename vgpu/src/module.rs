//! A loaded module: text once, variables and kernels per device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::LoadError;
use crate::isa::Spec;
use crate::isa::decode::{Kernel, Symbols, decode_kernel};
use crate::isa::select::form;
use crate::mem::space::{AddressSpace, Kind};
use crate::ptx::{self, Space};

/// A loaded module: text once, variables and kernels per device.
pub struct LoadedModule {
    module: ptx::Module,
    tracked: bool,
    symbols: Mutex<HashMap<u32, Arc<Symbols>>>,
    kernels: Mutex<HashMap<(u32, String), Arc<Kernel>>>,
    /// Memory of variables that this module has placed.
    placed: Mutex<Vec<(Arc<AddressSpace>, u64)>>,
}

/// Variables of at most so many bytes share a page of 64 KiB; others have their own, so that running over the end is an error.
const SMALL: u64 = 64;

impl Drop for LoadedModule {
    fn drop(&mut self) {
        for (space, at) in self.placed.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            space.free(at);
        }
    }
}

impl LoadedModule {
    /// Parses the text and checks every opcode.
    pub fn parse(text: &str, tracked: bool) -> Result<LoadedModule, LoadError> {
        let mut known = std::collections::HashSet::new();
        let module = ptx::parse_module(text, &mut |opcode, line| {
            if !known.contains(opcode) {
                form(&Spec::parse(opcode)).map_err(|why| LoadError::UnknownInstruction {
                    line,
                    opcode: opcode.into(),
                    why,
                })?;
                known.insert(opcode.to_string());
            }
            Ok(())
        })?;
        Ok(LoadedModule {
            module,
            tracked,
            symbols: Mutex::default(),
            kernels: Mutex::default(),
            placed: Mutex::default(),
        })
    }

    /// The parsed text.
    pub fn module(&self) -> &ptx::Module {
        &self.module
    }

    /// Places the module's variables on a device, once.
    fn symbols(&self, space: &Arc<AddressSpace>, device: u32) -> std::io::Result<Arc<Symbols>> {
        let mut all = self.symbols.lock().unwrap();
        if let Some(s) = all.get(&device) {
            return Ok(s.clone());
        }
        let mut symbols = Symbols::new();
        let placed: Vec<_> = self
            .module
            .variables
            .iter()
            .filter(|v| matches!(v.space, Space::Global | Space::Const))
            .collect();
        let alloc = |bytes| -> std::io::Result<u64> {
            let at = space.alloc(device, Kind::Device, bytes)?;
            self.placed.lock().unwrap().push((space.clone(), at));
            Ok(at)
        };
        let is_small = |v: &&&ptx::Variable| v.size <= SMALL;
        let mut next = match placed.iter().filter(is_small).count() as u64 {
            0 => 0,
            count => alloc(count * SMALL)?,
        };
        for v in &placed {
            let at = if is_small(&v) { next } else { alloc(v.size)? };
            next += if is_small(&v) { SMALL } else { 0 };
            symbols.insert(v.name.clone(), (Space::Global, at));
        }
        for v in &placed {
            let base = symbols[&v.name].1;
            // SAFETY: freshly allocated with at least `size` bytes, and the initializer is no longer than that.
            unsafe {
                std::ptr::copy_nonoverlapping(v.init.as_ptr(), base as *mut u8, v.init.len())
            };
            for (at, name, addend) in &v.relocations {
                let target = symbols.get(name).map_or(0, |s| s.1).wrapping_add(*addend as u64);
                // SAFETY: the relocation's eight bytes are inside the initializer.
                unsafe { ((base + at) as *mut u64).write_unaligned(target) };
            }
        }
        let symbols = Arc::new(symbols);
        all.insert(device, symbols.clone());
        Ok(symbols)
    }

    /// Says where the module's variables are on a device, for a module whose variables another process has placed.
    pub fn place(&self, device: u32, variables: impl Iterator<Item = (String, u64)>) {
        let symbols = variables.map(|(name, at)| (name, (Space::Global, at))).collect();
        self.symbols.lock().unwrap().entry(device).or_insert_with(|| Arc::new(symbols));
    }

    /// Address and size of a variable on a device.
    pub fn global(&self, space: &Arc<AddressSpace>, device: u32, name: &str) -> Option<(u64, u64)> {
        let size = self.module.variables.iter().find(|v| v.name == name)?.size;
        Some((self.symbols(space, device).ok()?.get(name)?.1, size))
    }

    /// A kernel for a device; decoded the first time.
    pub fn kernel(
        &self,
        space: &Arc<AddressSpace>,
        device: u32,
        name: &str,
    ) -> Result<Arc<Kernel>, LoadError> {
        let key = (device, name.to_string());
        if let Some(k) = self.kernels.lock().unwrap().get(&key) {
            return Ok(k.clone());
        }
        let out_of_memory = |e: std::io::Error| LoadError::Syntax {
            line: 0,
            what: format!("no memory for variables: {e}"),
        };
        let symbols = self.symbols(space, device).map_err(out_of_memory)?;
        let k = decode_kernel(&self.module, name, &symbols, self.tracked)?;
        self.kernels.lock().unwrap().insert(key, k.clone());
        Ok(k)
    }
}
