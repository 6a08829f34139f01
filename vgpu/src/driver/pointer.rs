//! What the driver knows of an address.

use std::ffi::{c_uint, c_void};

use super::Driver;
use super::entry::{api, current, driver, slice};
use super::result::{Error, Res};
use crate::mem::space::{Kind, Region};

/// A value of an attribute, as wide as the API says.
enum Value {
    Word(u32),
    Long(u64),
    Bool(bool),
}

impl Value {
    unsafe fn write(self, to: *mut c_void) -> Res<()> {
        if to.is_null() {
            return Err(Error::InvalidValue);
        }
        // SAFETY: the caller passes a place for the attribute's type.
        unsafe {
            match self {
                Value::Word(x) => to.cast::<u32>().write(x),
                Value::Long(x) => to.cast::<u64>().write(x),
                Value::Bool(x) => to.cast::<u8>().write(x.into()),
            }
        }
        Ok(())
    }
}

/// What the attribute is of an address that the driver does not know.
fn unknown(which: c_uint) -> Res<Value> {
    Ok(match which {
        1 | 3 | 4 | 7 | 11 | 12 | 14 | 17..=20 => Value::Long(0),
        2 | 16 => Value::Word(0),
        9 => Value::Word(u32::MAX - 1), // CU_DEVICE_INVALID
        6 | 8 | 10 | 13 | 15 => Value::Bool(false),
        _ => return Err(Error::InvalidValue),
    })
}

fn attribute(d: &Driver, region: &Region, at: u64, which: c_uint) -> Res<Value> {
    let host = region.kind == Kind::Host;
    let mapping = d.vmm.about(at);
    let (base, len) = d.allocated_range(at).ok_or(Error::InvalidValue)?;
    Ok(match which {
        // Virtual memory belongs to no context.
        1 if mapping.is_some() => Value::Long(0),
        1 => {
            let context = d.primary.get(region.device as usize);
            Value::Long(context.and_then(|c| c.handle.get()).map_or(0, |h| *h as u64))
        }
        2 => Value::Word(if host { 1 } else { 2 }),
        3 => Value::Long(at),
        4 if host => Value::Long(at),
        4 => return Err(Error::InvalidValue), // no host pointer
        6 => Value::Bool(false),
        7 => Value::Long(region.id),
        8 => Value::Bool(false),
        9 => Value::Word(region.device),
        // What cuIpcGetMemHandle takes.
        10 => Value::Bool(
            region.kind == Kind::Device
                && region.is_allocation
                && !d.pools.has(region.base)
                && !d.ipc.is_imported(region.base),
        ),
        11 => Value::Long(base),
        12 => Value::Long(len),
        13 => Value::Bool(true),
        14 => Value::Long(mapping.map_or(0, |m| m.handle_types)),
        15 => Value::Bool(false),
        16 => {
            let device = current()?.1.device;
            let (load, store) = (region.allows(device, false), region.allows(device, true));
            Value::Word(u32::from(load) | u32::from(store) << 1)
        }
        17 => Value::Long(d.pools.pool_of(region.base) as u64),
        18 => Value::Long(region.len),
        19 => Value::Long(region.base),
        20 => Value::Long(mapping.map_or(region.id, |m| m.block)),
        _ => return Err(Error::InvalidValue),
    })
}

api! {
    cuPointerGetAttribute(to: *mut c_void, which: c_uint, at: u64) {
        let d = driver()?;
        let region = d.machine.space().find(at, 1).ok_or(Error::InvalidValue)?;
        attribute(d, region, at, which)?.write(to)
    }
    cuPointerGetAttributes(n: c_uint, which: *const c_uint, to: *mut *mut c_void, at: u64) {
        let d = driver()?;
        let (which, to) = (slice(which, n as usize)?, slice(to.cast_const(), n as usize)?);
        for (which, to) in which.iter().zip(to) {
            // An address that is not known, or has no such attribute, is no error here: it gets the empty value.
            let known = d.machine.space().find(at, 1).map(|r| attribute(d, r, at, *which));
            let value = match known {
                Some(Ok(value)) => value,
                _ => unknown(*which)?,
            };
            value.write(*to)?;
        }
        Ok(())
    }
    cuPointerSetAttribute(value: *const c_void, which: c_uint, at: u64) {
        const SYNC_MEMOPS: c_uint = 6;
        let (d, _) = current()?;
        d.machine.space().find(at, 1).ok_or(Error::InvalidValue)?;
        // Copies between device memories need no more order than the stream's here.
        if which == SYNC_MEMOPS && !value.is_null() { Ok(()) } else { Err(Error::InvalidValue) }
    }
}
