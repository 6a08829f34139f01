//! An MPI, through the raw calls of the mpi crate: the typed ones have no in-place collectives.

use std::ffi::c_int;
use std::ptr::null_mut;

use anyhow::{Context, Result, bail, ensure};
use mpi::environment::Universe;
use mpi::ffi::{self, MPI_Comm, MPI_Datatype, MPI_Op};
use warpmesh::bootstrap::{Bootstrap, BootstrapError};
use warpmesh::plan::Collective;
use warpmesh::{DataType, ReduceOp};

use super::{Backend, Buffer, Call, Kind};
use crate::layout::{Place, Test};

/// An MPI as a backend. The [`Universe`] belongs to the caller and outlives it.
pub struct Mpi {
    rank: usize,
    world: usize,
    in_place: *mut std::ffi::c_void,
    version: String,
}

/// Initialises MPI. A rank that panics ends all of them: it would otherwise unwind into
/// MPI_Finalize and wait there for ranks that wait for it.
pub fn initialize() -> Result<Universe> {
    let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled)
        .context("MPI is initialised already")?;
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        abort(1);
    }));
    Ok(universe)
}

/// Ends all ranks.
pub fn abort(code: i32) {
    // SAFETY: may be called at any time between initialisation and finalisation.
    unsafe { ffi::MPI_Abort(everyone(), code) };
}

fn everyone() -> MPI_Comm {
    // SAFETY: a constant of the shim library.
    unsafe { ffi::RSMPI_COMM_WORLD }
}

/// By MPI's default an error ends the job; a library that was told otherwise returns it.
fn done(what: &str, code: c_int) -> Result<()> {
    ensure!(code == 0, "{what} failed with error {code}");
    Ok(())
}

impl Mpi {
    /// Looks at what is initialised. `asked` is the number of ranks that mpirun was to start: the
    /// mpirun of another MPI starts them as so many jobs of one rank.
    pub fn new(_: &Universe, asked: Option<usize>) -> Result<Self> {
        let (rank, world) = (MpiBootstrap.rank(), MpiBootstrap.world());
        if let Some(asked) = asked {
            ensure!(
                asked == world,
                "MPI sees {world} ranks where {asked} were started: mpirun belongs to another MPI \
                 than the one that this program was built with"
            );
        }
        let version = version();
        let in_place = in_place(&version)?;
        Ok(Self { rank, world, in_place, version })
    }

    /// Where one rank sends its own data to itself.
    fn unless<T>(&self, same: bool, pointer: *const T) -> *mut std::ffi::c_void {
        if same { self.in_place } else { pointer.cast_mut().cast() }
    }

    /// # Safety
    /// As [`Backend::run`].
    unsafe fn broadcast(&self, call: &Call, count: c_int, dtype: MPI_Datatype) -> c_int {
        let bytes = call.count * call.dtype.size();
        if self.rank == call.root && call.input != call.output.cast_const() {
            // MPI's broadcast has one buffer.
            // SAFETY: both are good for the count and do not overlap out of place.
            unsafe { std::ptr::copy_nonoverlapping(call.input, call.output, bytes) };
        }
        // SAFETY: as promised by the caller.
        unsafe { ffi::MPI_Bcast(call.output.cast(), count, dtype, call.root as c_int, everyone()) }
    }

    /// # Safety
    /// As [`Backend::run`].
    unsafe fn exchange(&self, call: &Call, count: c_int, dtype: MPI_Datatype) -> c_int {
        let to = ((self.rank + 1) % self.world) as c_int;
        let from = ((self.rank + self.world - 1) % self.world) as c_int;
        // SAFETY: as promised by the caller; the status is not wanted.
        unsafe {
            ffi::MPI_Sendrecv(
                call.input.cast(),
                count,
                dtype,
                to,
                0,
                call.output.cast(),
                count,
                dtype,
                from,
                0,
                everyone(),
                ffi::RSMPI_STATUS_IGNORE,
            )
        }
    }

    /// Reductions, with the send buffer, or what stands for it in place.
    ///
    /// # Safety
    /// As [`Backend::run`].
    unsafe fn reduce(
        &self,
        collective: Collective,
        call: &Call,
        count: c_int,
        dtype: MPI_Datatype,
    ) -> Result<c_int> {
        let op = operation(call.op).context("an operation that MPI does not have")?;
        let (root, comm) = (call.root as c_int, everyone());
        let at_root = collective != Collective::Reduce || self.rank == call.root;
        let input = self.unless(at_root && call.input == call.output.cast_const(), call.input);
        let output = call.output.cast();
        // SAFETY: as promised by the caller.
        Ok(unsafe {
            match collective {
                Collective::AllReduce => ffi::MPI_Allreduce(input, output, count, dtype, op, comm),
                Collective::Reduce => ffi::MPI_Reduce(input, output, count, dtype, op, root, comm),
                _ => ffi::MPI_Reduce_scatter_block(input, output, count, dtype, op, comm),
            }
        })
    }

    /// # Safety
    /// As [`Backend::run`].
    unsafe fn transfer(
        &self,
        collective: Collective,
        call: &Call,
        n: c_int,
        dtype: MPI_Datatype,
    ) -> Result<c_int> {
        let block = self.rank * call.count * call.dtype.size();
        let (root, comm) = (call.root as c_int, everyone());
        let at_root = self.rank == call.root;
        let (input, output) = (call.input, call.output);
        let in_output = input == output.cast_const().wrapping_add(block);
        let in_input = at_root && input.wrapping_add(block) == output.cast_const();
        // SAFETY: as promised by the caller; buffers that a rank has no part in are ignored.
        Ok(unsafe {
            match collective {
                Collective::AllGather => {
                    let input = self.unless(in_output, input);
                    ffi::MPI_Allgather(input, n, dtype, output.cast(), n, dtype, comm)
                }
                Collective::Gather => {
                    let input = self.unless(at_root && in_output, input);
                    ffi::MPI_Gather(input, n, dtype, output.cast(), n, dtype, root, comm)
                }
                Collective::Scatter => {
                    let output = self.unless(in_input, output.cast_const());
                    ffi::MPI_Scatter(input.cast(), n, dtype, output, n, dtype, root, comm)
                }
                Collective::AllToAll => {
                    let input = self.unless(input == output.cast_const(), input);
                    ffi::MPI_Alltoall(input, n, dtype, output.cast(), n, dtype, comm)
                }
                other => bail!("MPI has no {other} here"),
            }
        })
    }
}

impl Backend for Mpi {
    fn kind(&self) -> Kind {
        Kind::Mpi
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn refuses(&self, test: Test, dtype: DataType, op: ReduceOp, place: Place) -> Option<String> {
        if !test.reduces() {
            return None;
        }
        if test == Test::Collective(Collective::ReduceScatter) && place == Place::In {
            return Some("in place, its reduce_scatter puts every block first".to_owned());
        }
        if arithmetic(dtype).is_none() {
            return Some(format!("it has no type for {dtype}"));
        }
        if matches!(op, ReduceOp::Sum) && dtype.size() == 1 {
            // Open MPI's do where it uses AVX; elsewhere they wrap.
            return Some(format!("its sums of {dtype} may saturate"));
        }
        operation(op).is_none().then(|| format!("it has no operation for {}", op.name()))
    }

    fn alloc(&mut self, _: usize) -> Result<Option<Buffer>> {
        Ok(None)
    }

    unsafe fn run(&mut self, call: &Call) -> Result<()> {
        let count = c_int::try_from(call.count).context("MPI counts with 31 bits")?;
        let dtype = if call.test.reduces() { arithmetic(call.dtype) } else { None };
        let dtype = dtype.unwrap_or_else(|| opaque(call.dtype));
        let Test::Collective(collective) = call.test else {
            // SAFETY: the same contract.
            return done("MPI_Sendrecv", unsafe { self.exchange(call, count, dtype) });
        };
        // SAFETY: the same contract.
        let code = unsafe {
            match collective {
                Collective::Broadcast => self.broadcast(call, count, dtype),
                _ if collective.reduces() => self.reduce(collective, call, count, dtype)?,
                _ => self.transfer(collective, call, count, dtype)?,
            }
        };
        done(collective.name(), code)
    }

    fn barrier(&mut self) -> Result<()> {
        // SAFETY: MPI is initialised.
        done("MPI_Barrier", unsafe { ffi::MPI_Barrier(everyone()) })
    }

    fn explain(&mut self, _: &Call, _: bool) -> Option<String> {
        None
    }

    fn held_bytes(&self) -> Option<usize> {
        None
    }
}

/// The type to calculate with.
fn arithmetic(dtype: DataType) -> Option<MPI_Datatype> {
    // SAFETY: constants of the shim library.
    unsafe {
        match dtype {
            DataType::I8 => Some(ffi::RSMPI_INT8_T),
            DataType::U8 => Some(ffi::RSMPI_UINT8_T),
            DataType::I32 => Some(ffi::RSMPI_INT32_T),
            DataType::U32 => Some(ffi::RSMPI_UINT32_T),
            DataType::I64 => Some(ffi::RSMPI_INT64_T),
            DataType::U64 => Some(ffi::RSMPI_UINT64_T),
            DataType::F32 => Some(ffi::RSMPI_FLOAT),
            DataType::F64 => Some(ffi::RSMPI_DOUBLE),
            _ => None,
        }
    }
}

/// A type of this size, to move it.
fn opaque(dtype: DataType) -> MPI_Datatype {
    // SAFETY: constants of the shim library.
    unsafe {
        match dtype.size() {
            1 => ffi::RSMPI_UINT8_T,
            2 => ffi::RSMPI_UINT16_T,
            4 => ffi::RSMPI_UINT32_T,
            _ => ffi::RSMPI_UINT64_T,
        }
    }
}

fn operation(op: ReduceOp) -> Option<MPI_Op> {
    // SAFETY: constants of the shim library.
    unsafe {
        match op {
            ReduceOp::Sum => Some(ffi::RSMPI_SUM),
            ReduceOp::Prod => Some(ffi::RSMPI_PROD),
            ReduceOp::Min => Some(ffi::RSMPI_MIN),
            ReduceOp::Max => Some(ffi::RSMPI_MAX),
            _ => None,
        }
    }
}

fn version() -> String {
    let text = mpi::environment::library_version().unwrap_or_default();
    let first = text.split([',', '\n']).next().unwrap_or_default();
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// MPI_IN_PLACE is a macro, which the bindings do not have.
fn in_place(version: &str) -> Result<*mut std::ffi::c_void> {
    let value = match version {
        v if v.contains("Open MPI") => 1,
        v if v.contains("MPICH") || v.contains("Intel") || v.contains("MVAPICH") => usize::MAX,
        other => bail!("the value of MPI_IN_PLACE is not known for '{other}'"),
    };
    Ok(std::ptr::without_provenance_mut(value))
}

/// The ranks of the job, for what they tell each other, and for this library's bootstrap. Used by
/// the thread that has initialised MPI.
pub struct MpiBootstrap;

impl MpiBootstrap {
    fn gather_lengths(&self, mine: c_int) -> Vec<c_int> {
        let mut all = vec![0; self.world()];
        // SAFETY: the constants are of the shim library; the vector has room for every rank's.
        unsafe {
            let int = ffi::RSMPI_INT32_T;
            let (from, to) = ((&raw const mine).cast(), all.as_mut_ptr().cast());
            ffi::MPI_Allgather(from, 1, int, to, 1, int, everyone());
        }
        all
    }
}

impl Bootstrap for MpiBootstrap {
    fn rank(&self) -> usize {
        let mut rank = 0;
        // SAFETY: MPI is initialised; the pointer is good for the call.
        unsafe { ffi::MPI_Comm_rank(everyone(), &raw mut rank) };
        rank as usize
    }

    fn world(&self) -> usize {
        let mut world = 0;
        // SAFETY: MPI is initialised; the pointer is good for the call.
        unsafe { ffi::MPI_Comm_size(everyone(), &raw mut world) };
        world as usize
    }

    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, BootstrapError> {
        let most = warpmesh::bootstrap::MAX_CONTRIBUTION;
        if mine.len() > most {
            return Err(BootstrapError::TooLarge { bytes: mine.len(), max: most });
        }
        let lengths = self.gather_lengths(mine.len() as c_int);
        let mut starts = vec![0];
        lengths.iter().for_each(|length| starts.push(starts[starts.len() - 1] + length));
        let mut all = vec![0_u8; starts[lengths.len()] as usize];
        // SAFETY: the vector has room for all ranks' bytes, at the places that `starts` gives.
        unsafe {
            let byte = ffi::RSMPI_UINT8_T;
            ffi::MPI_Allgatherv(
                mine.as_ptr().cast(),
                mine.len() as c_int,
                byte,
                if all.is_empty() { null_mut() } else { all.as_mut_ptr().cast() },
                lengths.as_ptr(),
                starts.as_ptr(),
                byte,
                everyone(),
            );
        }
        let part = |bounds: &[c_int]| all[bounds[0] as usize..bounds[1] as usize].to_vec();
        Ok(starts.windows(2).map(part).collect())
    }
}
