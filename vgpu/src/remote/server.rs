//! The engine: a machine that runs the kernels of all processes that join it.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::wire::{Mapping, Remote, Reply, Request, receive, send};
use super::{BASE, SLICES};
use crate::driver::Error;
use crate::error::Fault;
use crate::machine::{Launch, LaunchSpec, Machine, MachineConfig};
use crate::mem::space::{ARENA, AddressSpace, Kind};
use crate::module::LoadedModule;

/// A listening engine; it ends with the process.
pub struct Server {
    path: PathBuf,
}

struct Engine {
    machine: Machine,
    members: Mutex<HashMap<u32, Arc<Member>>>,
}

/// A process that has joined.
struct Member {
    number: u32,
    modules: Mutex<HashMap<u64, Arc<LoadedModule>>>,
    regions: Mutex<BTreeSet<u64>>,
    launches: Mutex<Vec<Arc<Launch>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Listens at `path`, which must not exist; its folder should be the user's alone.
    pub fn start(path: &Path, config: MachineConfig) -> io::Result<Server> {
        let space = AddressSpace::at(BASE, u64::from(SLICES) * ARENA)?;
        let machine = Machine::over(config, space)?;
        let engine = Arc::new(Engine { machine, members: Mutex::default() });
        let listener = UnixListener::bind(path)?;
        std::thread::Builder::new().name("vgpu-engine".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let engine = engine.clone();
                let serve = move || engine.serve(&stream);
                if let Err(e) = std::thread::Builder::new().name("vgpu-member".into()).spawn(serve)
                {
                    eprintln!("vgpu: a process cannot join: {e}");
                }
            }
        })?;
        Ok(Server { path: path.to_owned() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Engine {
    /// Serves a connection to its end.
    fn serve(&self, stream: &UnixStream) {
        let Ok((first, _)) = receive(stream) else { return };
        let member = match first {
            Request::Join => self.join(),
            Request::Enter { member } => lock(&self.members).get(&member).cloned(),
            _ => None,
        };
        let joined = matches!(first, Request::Join);
        let reply = match &member {
            Some(member) if joined => Reply::Member(member.number),
            Some(_) => Reply::Done,
            None => Reply::Refused(format!("no such process, or more than {SLICES}")),
        };
        let mut open = send(stream, &reply, None).is_ok();
        if let Some(member) = member {
            while open && let Ok((request, file)) = receive(stream) {
                let reply = self.answer(&member, request, file);
                open = send(stream, &reply, None).is_ok();
            }
            if joined {
                self.leave(&member);
            }
        }
    }

    fn join(&self) -> Option<Arc<Member>> {
        let mut members = lock(&self.members);
        let number = (0..SLICES).find(|n| !members.contains_key(n))?;
        let member = Arc::new(Member {
            number,
            modules: Mutex::default(),
            regions: Mutex::default(),
            launches: Mutex::default(),
        });
        members.insert(number, member.clone());
        Some(member)
    }

    /// A process has ended: its kernels go first, then the memory that they use.
    fn leave(&self, member: &Member) {
        for launch in lock(&member.launches).drain(..) {
            self.machine.abandon(&launch);
        }
        for base in std::mem::take(&mut *lock(&member.regions)) {
            self.machine.space().free(base);
        }
        lock(&self.members).remove(&member.number);
    }

    fn answer(&self, member: &Member, request: Request, file: Option<OwnedFd>) -> Reply {
        match request {
            Request::Map(mapping) => self.map(member, mapping, file),
            Request::Unmap { base } => {
                let known = lock(&member.regions).remove(&base);
                if known && self.machine.space().free(base) {
                    Reply::Done
                } else {
                    Reply::Refused(format!("nothing is mapped at {base:#x}"))
                }
            }
            Request::Module { id, text } => match self.machine.load(&text) {
                Ok(module) => {
                    lock(&member.modules).insert(id, Arc::new(module));
                    Reply::Done
                }
                Err(e) => Reply::Refused(e.to_string()),
            },
            Request::Launch(remote) => self.launch(member, *remote),
            Request::Join | Request::Enter { .. } => Reply::Refused("joined already".into()),
        }
    }

    fn map(&self, member: &Member, mapping: Mapping, file: Option<OwnedFd>) -> Reply {
        let slice = BASE + u64::from(member.number) * ARENA;
        let end = mapping.base.checked_add(mapping.len);
        if mapping.base < slice || end.is_none_or(|end| end > slice + ARENA) {
            return Reply::Refused("an address outside the process's slice".into());
        }
        let space = self.machine.space();
        let mapped = match (mapping.members, file) {
            (Some(members), _) => {
                space.multicast_at(mapping.base, mapping.device, members, mapping.len)
            }
            (None, Some(file)) => {
                let kind = if mapping.host { Kind::Host } else { Kind::Device };
                let (file, at) = (Arc::new(file), mapping.offset);
                space.map_at(mapping.base, mapping.device, kind, file, at, mapping.len)
            }
            (None, None) => return Reply::Refused("memory without a file".into()),
        };
        match mapped {
            Ok(()) => {
                lock(&member.regions).insert(mapping.base);
                Reply::Done
            }
            Err(e) => Reply::Refused(e.to_string()),
        }
    }

    fn launch(&self, member: &Member, remote: Remote) -> Reply {
        match self.run(member, remote) {
            Ok(reply) => reply,
            Err(fault) => Reply::Fault(Error::from(&fault) as u32, fault.to_string()),
        }
    }

    fn run(&self, member: &Member, remote: Remote) -> Result<Reply, Fault> {
        let Some(module) = lock(&member.modules).get(&remote.module).cloned() else {
            return Ok(Reply::Refused("an unknown module".into()));
        };
        module.place(remote.device, remote.variables);
        let kernel = match module.kernel(self.machine.space(), remote.device, &remote.kernel) {
            Ok(kernel) => kernel,
            Err(e) => return Ok(Reply::Refused(e.to_string())),
        };
        let launch = self.machine.launch(&LaunchSpec {
            kernel: &kernel,
            device: remote.device,
            grid: remote.grid,
            block: remote.block,
            dynamic_shared: remote.dynamic_shared,
            params: &remote.params,
            cooperative: remote.cooperative,
        })?;
        lock(&member.launches).push(launch.clone());
        let result = self.machine.wait(&launch);
        lock(&member.launches).retain(|other| !Arc::ptr_eq(other, &launch));
        self.machine.print_races();
        result.map(Reply::Ran)
    }
}
