//! A program's process: tells the engine of its memory and modules, and has its kernels run there.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::wire::{Mapping, Remote, Reply, Request, receive, send};
use super::{BASE, SLICES};
use crate::error::Fault;
use crate::isa::decode::Kernel;
use crate::launch::LaunchSpec;
use crate::mem::counters::Counters;
use crate::mem::space::{ARENA, AddressSpace, Kind, Pieces, Snapshot};

/// The connection of a process.
pub struct Client {
    path: PathBuf,
    member: u32,
    /// What the engine has been told; the connection stays open for as long as the process lives.
    control: Mutex<Control>,
}

struct Control {
    stream: UnixStream,
    regions: HashMap<u64, Told>,
    /// Modules by their text, of which there is one for each time that it was loaded.
    modules: Vec<Arc<str>>,
}

/// A region as the engine knows it.
struct Told {
    id: u64,
    rights: [u64; 2],
    pieces: Option<Pieces>,
}

thread_local! {
    /// This thread's connection for launches: a stream's thread waits for its kernel, others go on.
    static LINK: RefCell<Option<UnixStream>> = const { RefCell::new(None) };
}

impl Client {
    /// Joins the engine at this socket.
    pub fn join(path: &Path) -> io::Result<Client> {
        let stream = UnixStream::connect(path).map_err(|e| {
            io::Error::new(e.kind(), format!("no engine at {}: {e}", path.display()))
        })?;
        let member = match ask(&stream, &Request::Join, None)? {
            Reply::Member(member) if member < SLICES => member,
            other => return Err(unexpected(&other)),
        };
        let control = Control { stream, regions: HashMap::new(), modules: Vec::new() };
        Ok(Client { path: path.to_owned(), member, control: Mutex::new(control) })
    }

    /// Where this process's addresses begin.
    pub fn base(&self) -> u64 {
        BASE + u64::from(self.member) * ARENA
    }

    /// Runs a kernel to its end in the engine.
    pub fn run(&self, space: &AddressSpace, spec: &LaunchSpec<'_>) -> Result<Counters, Fault> {
        let lost =
            |e: io::Error| Fault::Engine { code: 999, text: format!("the engine of vgpu: {e}") };
        let module = self.tell(space, spec.kernel).map_err(lost)?;
        let variables: BTreeMap<String, u64> =
            spec.kernel.variables.iter().map(|(name, (_, at))| (name.clone(), *at)).collect();
        let request = Request::Launch(Box::new(Remote {
            module,
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

    /// Tells the engine what has changed since the last launch; the module's number there.
    fn tell(&self, space: &AddressSpace, kernel: &Kernel) -> io::Result<u64> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let now = space.snapshot();
        control.forget(&now)?;
        for region in now {
            control.region(region)?;
        }
        control.module(&kernel.text)
    }

    fn on_link(&self, request: &Request) -> io::Result<Reply> {
        LINK.with_borrow_mut(|link| {
            if link.is_none() {
                let new = UnixStream::connect(&self.path)?;
                done(ask(&new, &Request::Enter { member: self.member }, None)?)?;
                *link = Some(new);
            }
            let reply = match link.as_ref() {
                Some(stream) => ask(stream, request, None),
                None => Err(io::ErrorKind::NotConnected.into()),
            };
            if reply.is_err() {
                *link = None;
            }
            reply
        })
    }
}

impl Control {
    /// Unmaps what is there no more.
    fn forget(&mut self, now: &[Snapshot]) -> io::Result<()> {
        let lives =
            |base: &u64, told: &Told| now.iter().any(|r| r.base == *base && r.id == told.id);
        let gone: Vec<u64> =
            self.regions.iter().filter(|(base, told)| !lives(base, told)).map(|r| *r.0).collect();
        for base in gone {
            done(ask(&self.stream, &Request::Unmap { base }, None)?)?;
            self.regions.remove(&base);
        }
        Ok(())
    }

    /// Maps what is new, and says who may access it now.
    fn region(&mut self, r: Snapshot) -> io::Result<()> {
        let told = self.regions.get(&r.base);
        if told.is_some_and(|told| told.rights == r.rights && told.pieces == r.pieces) {
            return Ok(());
        }
        if told.is_some_and(|told| told.pieces == r.pieces) {
            done(ask(&self.stream, &Request::Allow { base: r.base, rights: r.rights }, None)?)?;
        } else {
            if told.is_some() {
                done(ask(&self.stream, &Request::Unmap { base: r.base }, None)?)?;
            }
            let mapping = Mapping {
                base: r.base,
                len: r.len,
                device: r.device,
                host: r.kind == Kind::Host,
                rights: r.rights,
                offset: r.backing.as_ref().map_or(0, |(_, offset)| *offset),
                members: r.pieces.as_ref().map(|pieces| pieces.0.clone()),
            };
            let file = r.backing.as_ref().map(|(file, _)| &**file);
            done(ask(&self.stream, &Request::Map(mapping), file)?)?;
        }
        self.regions.insert(r.base, Told { id: r.id, rights: r.rights, pieces: r.pieces });
        Ok(())
    }

    fn module(&mut self, text: &Arc<str>) -> io::Result<u64> {
        if let Some(known) = self.modules.iter().position(|other| Arc::ptr_eq(other, text)) {
            return Ok(known as u64);
        }
        let id = self.modules.len() as u64;
        done(ask(&self.stream, &Request::Module { id, text: text.to_string() }, None)?)?;
        self.modules.push(text.clone());
        Ok(id)
    }
}

fn ask(
    on: &UnixStream,
    request: &Request,
    file: Option<&std::os::fd::OwnedFd>,
) -> io::Result<Reply> {
    send(on, request, file)?;
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
