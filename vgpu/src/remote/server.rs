//! The engine: a machine that runs the kernels of all processes that join it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::wire::{Mapping, Remote, Reply, Request, receive, send};
use super::{BASE, SLICES};
use crate::driver::code_of;
use crate::error::Fault;
use crate::launch::{Launch, LaunchSpec};
use crate::machine::{Machine, MachineConfig};
use crate::mem::space::{ARENA, AddressSpace, Kind, Mapping as Placed, Pieces, Team};
use crate::module::LoadedModule;
use crate::track::RaceReport;

/// A listening engine. A process can have one at a time, since its addresses are always the same.
pub struct Server {
    path: PathBuf,
    engine: Arc<Engine>,
    socket: UnixListener,
    listener: Option<JoinHandle<()>>,
}

struct Engine {
    machine: Machine,
    members: Mutex<HashMap<u32, Arc<Member>>>,
}

/// A process that has joined.
struct Member {
    number: u32,
    modules: Mutex<HashMap<u64, Arc<LoadedModule>>>,
    /// First address and length.
    regions: Mutex<BTreeMap<u64, u64>>,
    launches: Mutex<Vec<Arc<Launch>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Listens at `path`, which must not exist; its folder should be the user's alone.
    pub fn start(path: &Path, config: MachineConfig) -> io::Result<Server> {
        // A slice for each process, and one for what the engine itself needs.
        let slices = u64::from(SLICES) * ARENA;
        let space = AddressSpace::at(BASE, slices + ARENA, slices..slices + ARENA)?;
        let machine = Machine::over(config, space, None)?;
        let engine = Arc::new(Engine { machine, members: Mutex::default() });
        let socket = UnixListener::bind(path)?;
        let (serving, listening) = (engine.clone(), socket.try_clone()?);
        let listen = move || listen(&listening, &serving);
        let listener = std::thread::Builder::new().name("vgpu-engine".into()).spawn(listen)?;
        Ok(Server { path: path.to_owned(), engine, socket, listener: Some(listener) })
    }

    /// The races found so far.
    pub fn races(&self) -> Vec<RaceReport> {
        self.engine.machine.races()
    }

    /// How many processes have joined and live.
    pub fn members(&self) -> usize {
        lock(&self.engine.members).len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The listener's wait ends with an error.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves connections until the socket is shut down; then all of them end.
fn listen(socket: &UnixListener, engine: &Arc<Engine>) {
    let mut open: Vec<(UnixStream, JoinHandle<()>)> = Vec::new();
    while let Ok((stream, _)) = socket.accept() {
        open.retain(|(_, thread)| !thread.is_finished());
        let engine = engine.clone();
        let served = stream.try_clone().and_then(|end| {
            let serve = move || engine.serve(&stream);
            let thread = std::thread::Builder::new().name("vgpu-member".into()).spawn(serve)?;
            Ok((end, thread))
        });
        match served {
            Ok(served) => open.push(served),
            Err(e) => eprintln!("vgpu: a process cannot join: {e}"),
        }
    }
    for (stream, _) in &open {
        let _ = stream.shutdown(Shutdown::Both);
    }
    for (_, thread) in open {
        let _ = thread.join();
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
            let text = format!("process {} of vgpu's engine is gone", member.number);
            self.machine.abandon(&launch, Fault::Engine { code: 999, text });
            // Its blocks end one by one, and until then they use its memory.
            let _ = self.machine.wait(&launch);
        }
        for (base, len) in std::mem::take(&mut *lock(&member.regions)) {
            self.machine.space().unmap_at(base, len);
        }
        lock(&self.members).remove(&member.number);
    }

    fn answer(&self, member: &Member, request: Request, file: Option<OwnedFd>) -> Reply {
        match request {
            Request::Map(mapping) => self.map(member, mapping, file),
            Request::Allow { base, rights } => match self.machine.space().find(base, 0) {
                Some(region) if lock(&member.regions).contains_key(&base) => {
                    region.set_rights(rights);
                    Reply::Done
                }
                _ => Reply::Refused(format!("nothing is mapped at {base:#x}")),
            },
            Request::Unmap { base } => match lock(&member.regions).remove(&base) {
                Some(len) => {
                    self.machine.space().unmap_at(base, len);
                    Reply::Done
                }
                None => Reply::Refused(format!("nothing is mapped at {base:#x}")),
            },
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
        let (kind, backing, team) = match (mapping.members, file) {
            (Some(members), _) => {
                let team: Arc<dyn Team> = Arc::new(Pieces(members));
                (Kind::Multicast, None, Some(team))
            }
            (None, Some(file)) => {
                let kind = if mapping.host { Kind::Host } else { Kind::Device };
                (kind, Some((Arc::new(file), mapping.offset)), None)
            }
            (None, None) => return Reply::Refused("memory without a file".into()),
        };
        let space = self.machine.space();
        let placed = Placed { device: mapping.device, kind, backing, team };
        if let Err(e) = space.map_at(mapping.base, mapping.len, placed) {
            return Reply::Refused(e.to_string());
        }
        if let Some(region) = space.find(mapping.base, 0) {
            region.set_rights(mapping.rights);
        }
        lock(&member.regions).insert(mapping.base, mapping.len);
        Reply::Done
    }

    fn launch(&self, member: &Member, remote: Remote) -> Reply {
        match self.run(member, remote) {
            Ok(reply) => reply,
            Err(fault) => Reply::Fault(code_of(&fault), fault.to_string()),
        }
    }

    fn run(&self, member: &Member, remote: Remote) -> Result<Reply, Fault> {
        let Some(module) = lock(&member.modules).get(&remote.module).cloned() else {
            return Ok(Reply::Refused("an unknown module".into()));
        };
        module.place(remote.device, remote.variables.into_iter());
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
