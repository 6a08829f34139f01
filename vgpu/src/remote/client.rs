//! A program's process: tells the engine of its memory and modules, and has its kernels run there.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::wire::{Mapping, Remote, Reply, Request, receive, send};
use super::{BASE, SLICES};
use crate::error::Fault;
use crate::machine::LaunchSpec;
use crate::mem::counters::Counters;
use crate::mem::space::{ARENA, Kind, Region, Watch};
use crate::module::LoadedModule;

/// The connection of a process.
pub struct Client {
    path: PathBuf,
    member: u32,
    /// One request at a time; it stays open for as long as the process lives.
    control: Mutex<UnixStream>,
    /// Modules that the engine has.
    modules: Mutex<HashSet<u64>>,
}

thread_local! {
    /// This thread's connection for launches: a stream's thread waits for its kernel, others go on.
    static LINK: RefCell<Option<UnixStream>> = const { RefCell::new(None) };
}

impl Client {
    /// Joins the engine at this socket.
    pub fn join(path: &Path) -> io::Result<Client> {
        let control = UnixStream::connect(path).map_err(|e| {
            io::Error::new(e.kind(), format!("no engine at {}: {e}", path.display()))
        })?;
        let member = match ask(&control, &Request::Join)? {
            Reply::Member(member) if member < SLICES => member,
            other => return Err(unexpected(&other)),
        };
        let (path, control) = (path.to_owned(), Mutex::new(control));
        Ok(Client { path, member, control, modules: Mutex::default() })
    }

    /// Where this process's addresses begin.
    pub fn base(&self) -> u64 {
        BASE + u64::from(self.member) * ARENA
    }

    /// Runs a kernel to its end in the engine.
    pub fn run(&self, module: &LoadedModule, spec: &LaunchSpec<'_>) -> Result<Counters, Fault> {
        let lost = |e: io::Error| Fault::Engine { code: 999, text: format!("the engine of vgpu: {e}") };
        self.offer(module).map_err(lost)?;
        let variables: BTreeMap<String, u64> = module.placed(spec.device);
        let request = Request::Launch(Box::new(Remote {
            module: module.number(),
            kernel: spec.kernel.name.clone(),
            device: spec.device,
            grid: spec.grid,
            block: spec.block,
            dynamic_shared: spec.dynamic_shared,
            params: spec.params.to_vec(),
            cooperative: spec.cooperative,
            variables,
        }));
        match self.on_link(&request).map_err(lost)? {
            Reply::Ran(counters) => Ok(counters),
            Reply::Fault(code, text) => Err(Fault::Engine { code, text }),
            other => Err(lost(unexpected(&other))),
        }
    }

    /// Sends a module's text, once.
    fn offer(&self, module: &LoadedModule) -> io::Result<()> {
        let mut known = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&module.number()) {
            return Ok(());
        }
        let request = Request::Module { id: module.number(), text: module.text().to_owned() };
        done(self.on_control(&request, None)?)?;
        known.insert(module.number());
        Ok(())
    }

    fn on_control(
        &self,
        request: &Request,
        file: Option<&std::os::fd::OwnedFd>,
    ) -> io::Result<Reply> {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        send(&control, request, file)?;
        Ok(receive(&control)?.0)
    }

    fn on_link(&self, request: &Request) -> io::Result<Reply> {
        LINK.with_borrow_mut(|link| {
            if link.is_none() {
                let new = UnixStream::connect(&self.path)?;
                done(ask(&new, &Request::Enter { member: self.member })?)?;
                *link = Some(new);
            }
            let reply = link.as_ref().map(|link| ask(link, request));
            let reply = reply.unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()));
            if reply.is_err() {
                *link = None;
            }
            reply
        })
    }
}

impl Watch for Client {
    fn mapped(&self, region: &Region) -> io::Result<()> {
        let members = region.members.read().unwrap_or_else(PoisonError::into_inner).clone();
        let file = region.backing.as_ref();
        let mapping = Mapping {
            base: region.base,
            len: region.len,
            device: region.device,
            host: region.kind == Kind::Host,
            offset: file.map_or(0, |(_, offset)| *offset),
            members: (region.kind == Kind::Multicast).then_some(members),
        };
        done(self.on_control(&Request::Map(mapping), file.map(|(file, _)| &**file))?)
    }

    fn unmapped(&self, base: u64) -> io::Result<()> {
        done(self.on_control(&Request::Unmap { base }, None)?)
    }
}

fn ask(on: &UnixStream, request: &Request) -> io::Result<Reply> {
    send(on, request, None)?;
    Ok(receive(on)?.0)
}

fn done(reply: Reply) -> io::Result<()> {
    match reply {
        Reply::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(reply: &Reply) -> io::Error {
    match reply {
        Reply::Refused(why) => io::Error::other(why.clone()),
        other => io::Error::new(io::ErrorKind::InvalidData, format!("answered {other:?}")),
    }
}
