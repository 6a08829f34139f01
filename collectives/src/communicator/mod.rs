//! The communicator: what users hold.

mod buffer;
mod builder;
pub(crate) mod call;
mod group;
pub(crate) mod plans;
mod report;
pub(crate) mod typed;

use std::sync::{Arc, Weak};
use std::time::Duration;

use warpmesh_primitives::bootstrap::{Bootstrap, TcpBootstrap, TcpRoot, UniqueId};
use warpmesh_primitives::failure::{Failure, FailureKind};
use warpmesh_primitives::node::Node;
use warpmesh_primitives::packet::LINE_BYTES;

pub use self::buffer::{Buffer, Registration, SharedBytes};
pub use self::builder::Builder;
pub use self::call::RawCall;
use self::call::{Board, Checked};
pub use self::group::Group;
use self::plans::{Plans, Query};
use crate::dtype::DataType;
use crate::error::{Error, argument};
use crate::host::fold::{Fold, FoldArgs, fold_for};
use crate::host::{Executor, Job, Letter, Mail, Spans};
use crate::op::{OpKind, ReduceOp};
use crate::plan::verify::verify;
use crate::plan::{Collective, Plan};

/// A group of ranks that communicate.
///
/// Every rank makes the same collective calls in the same order; that is why all of them take
/// `&mut self`. A call returns when this rank's part is done and its buffers may be used again. It
/// never hangs: when a rank dies, leaves, stops, or makes another call, all others return an
/// [`Error::Failed`] that names it, at the latest after the timeout. Calls allocate nothing once
/// their kind and size have been used before.
pub struct Communicator {
    node: Arc<Node>,
    bootstrap: Box<dyn Bootstrap>,
    config: Builder,
    executor: Executor,
    plans: Plans,
    mail: Mail,
    letters: Vec<Letter>,
    folds: Folds,
    /// The number of the last call.
    sequence: u64,
    /// Registered memory: its number, a sign of life, and the bytes that are held for it.
    buffers: Vec<(usize, Weak<()>, usize)>,
    next_buffer: usize,
    held: usize,
}

/// The fold of every type by every operator.
type Folds = [[Fold; OpKind::ALL.len()]; DataType::ALL.len()];

fn folds() -> Folds {
    DataType::ALL.map(|dtype| OpKind::ALL.map(|op| fold_for(dtype, op)))
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (rank, world) = (self.rank(), self.world());
        write!(f, "Communicator(rank {rank} of {world}, call {})", self.sequence)
    }
}

impl Communicator {
    /// Settings for a new communicator.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Joins the ranks that the launcher's environment variables describe (torchrun's, mpirun's,
    /// srun's or our own), with default settings. Blocks until all have come.
    pub fn from_env() -> Result<Self, Error> {
        Self::builder().from_env()
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.node.rank()
    }

    /// The number of ranks.
    pub fn world(&self) -> usize {
        self.node.world()
    }

    /// How long a call waits for others before it fails.
    pub fn timeout(&self) -> Duration {
        self.node.policy().timeout
    }

    /// Bytes of memory that this rank holds for the communicator, registered buffers included.
    /// Pages that were never used do not take memory yet, but count.
    pub fn held_bytes(&self) -> usize {
        self.held
    }

    /// Something that can abort this communicator from any thread.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle { node: Arc::downgrade(&self.node) }
    }

    /// Makes all ranks' running and later calls fail.
    pub fn abort(&self) {
        self.abort_handle().abort();
    }

    /// Waits until all ranks have come here.
    pub fn barrier(&mut self) -> Result<(), Error> {
        let call = RawCall {
            collective: Collective::Barrier,
            dtype: DataType::U8,
            op: ReduceOp::Sum,
            root: 0,
            count: 1,
            input: std::ptr::null(),
            output: std::ptr::null_mut(),
        };
        // SAFETY: a barrier has no buffers.
        unsafe { self.call(&call) }
    }

    /// Makes a collective call with types and addresses known only at run time. Blocks until this
    /// rank's part is done. A count of 0 does nothing.
    ///
    /// # Safety
    /// Input and output are good for reading and writing as many elements as the collective's
    /// blocks have, until the call returns; nobody else uses them meanwhile. If they lie in
    /// registered memory and the call fails, late peers may still access them: do not reuse them
    /// before the communicator is dropped.
    pub unsafe fn call(&mut self, call: &RawCall) -> Result<(), Error> {
        let checked = call.check(self.rank(), self.world())?;
        if call.count == 0 {
            return Ok(());
        }
        // SAFETY: passed on.
        unsafe { self.launch(call, checked, None) }
    }

    /// # Safety
    /// As [`Communicator::call`], with blocks where `spans` says.
    unsafe fn launch(
        &mut self,
        call: &RawCall,
        Checked { in_place, input_bytes, output_bytes }: Checked,
        spans: Option<&Spans<'_>>,
    ) -> Result<(), Error> {
        self.check_alive()?;
        let locate = |address: *const u8, bytes: usize| match bytes {
            0 => None,
            _ => self.executor.locate(address, bytes),
        };
        let input = locate(call.input, input_bytes);
        let output = locate(call.output, output_bytes);
        let registered = spans.is_none()
            && (input.is_some() || input_bytes == 0)
            && (output.is_some() || output_bytes == 0);
        let op = if call.collective.reduces() { call.op.kind() } else { OpKind::Sum };
        let query = Query {
            collective: call.collective,
            registered,
            in_place,
            dtype: call.dtype,
            op,
            uneven: spans.is_some(),
        };
        let plan = self.plans.choose(&query, call.root, call.count);
        let plan = plan.ok_or_else(|| self.no_plan(&query))?;
        let board = Board::of(call, op, plan, (input, output));
        self.sequence += 1;
        let (description, tag) = board.write(self.sequence);
        self.node.announce(&description);
        let result = self.run(call, plan, op, tag, spans);
        result.map_err(|failure| self.failed(failure))?;
        self.node.me().finish_call(self.sequence);
        Ok(())
    }

    fn run(
        &mut self,
        call: &RawCall,
        plan: usize,
        op: OpKind,
        tag: u32,
        spans: Option<&Spans<'_>>,
    ) -> Result<(), Failure> {
        let prepared = self.plans.prepared(plan, call.root);
        self.executor.reserve(prepared);
        let (size, accumulator) = (call.dtype.size(), call.dtype.accumulator_size());
        let window = prepared.window(call.dtype);
        let job = Job {
            sequence: self.sequence,
            tag,
            size,
            accumulator,
            grain: LINE_BYTES >> size.trailing_zeros(),
            fold: self.folds[call.dtype as usize][op as usize],
            args: FoldArgs { world: self.node.world() as u32 },
            scaled: op == OpKind::PreMulSum,
            input: call.input,
            output: call.output,
            count: call.count,
            spans,
            window,
            rounds: if call.count <= window { 1 } else { call.count.div_ceil(window) },
            streaming: call.count * size >= STREAMING,
        };
        self.executor.run(prepared, &job)
    }

    fn check_alive(&self) -> Result<(), Error> {
        self.node.failure().map_or(Ok(()), |failure| Err(self.failed(failure)))
    }

    /// The ranks of this host, as this rank sees them.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    pub(crate) fn bootstrap_mut(&mut self) -> &mut dyn Bootstrap {
        self.bootstrap.as_mut()
    }

    /// Whether only canonical plans may be taken, and the name of the plan that is preferred.
    pub(crate) fn preferences(&self) -> (bool, Option<&str>) {
        self.config.preferences()
    }

    /// A number for memory that all ranks register now.
    pub(crate) fn next_number(&mut self) -> usize {
        self.next_buffer += 1;
        self.next_buffer - 1
    }

    #[cold]
    pub(crate) fn failed(&self, failure: Failure) -> Error {
        let report = report::report(&self.node, failure);
        tracing::error!(rank = self.rank(), %failure, "{report}");
        Error::Failed { failure, report }
    }

    #[cold]
    pub(crate) fn no_plan(&self, query: &Query) -> Error {
        let Query { collective, in_place, dtype, op, .. } = *query;
        let place = if in_place { "in place" } else { "out of place" };
        let condition = format!("{dtype}, {}, {place}", op.name());
        Error::NoPlan { collective, world: self.world(), condition }
    }

    /// All-to-all with counts that differ: block q of `counts` elements goes to rank q, and
    /// `expected` says how many come from each. Counts and offsets are in elements.
    ///
    /// # Safety
    /// As [`Communicator::call`], for the ranges that the spans name.
    unsafe fn all_to_all_uneven(
        &mut self,
        dtype: DataType,
        input: *const u8,
        output: *mut u8,
        spans: &Spans<'_>,
        largest: usize,
    ) -> Result<(), Error> {
        let call = RawCall {
            collective: Collective::AllToAll,
            dtype,
            op: ReduceOp::Sum,
            root: 0,
            count: largest,
            input,
            output,
        };
        if largest == 0 {
            return Ok(());
        }
        // SAFETY: passed on.
        unsafe { self.launch(&call, Checked::default(), Some(spans)) }
    }

    /// Which plan a call would take, and the others that could, with predicted times.
    pub fn explain(
        &mut self,
        collective: Collective,
        dtype: DataType,
        count: usize,
        registered: bool,
    ) -> String {
        let (in_place, uneven, op) = (false, false, OpKind::Sum);
        let query = Query { collective, registered, in_place, dtype, op, uneven };
        let ranked = self.plans.ranked(&query, 0, count);
        let chosen = self.plans.choose(&query, 0, count);
        let mut text = format!(
            "{collective} of {count} {dtype} over {} ranks on {}, {}registered:",
            self.world(),
            self.place(),
            if registered { "" } else { "not " }
        );
        for (number, time) in ranked {
            let mark = if Some(number) == chosen { "->" } else { "  " };
            let name = self.plans.name(number);
            text.push_str(&format!("\n{mark} {name:<18} {:>12.2} us predicted", time / 1000.0));
        }
        text
    }

    /// Where the ranks run, in words.
    fn place(&self) -> String {
        let cores = self.node.cores();
        match (self.node.hosts().iter().max(), self.node.transport()) {
            (Some(last), Some(transport)) => format!("{} hosts by {transport}", last + 1),
            _ => format!("{cores} cores"),
        }
    }

    /// Adds a plan of the user's, which must be the same on all ranks. It is proven first; from
    /// then on calls take it where the cost model finds it fastest, or where
    /// [`Builder::algorithm`] names it. A collective call.
    pub fn add_plan(&mut self, plan: Plan) -> Result<(), Error> {
        let proof = verify(&plan)?;
        if plan.shape.world != self.world() {
            let problem = format!("is for {} ranks, not {}", plan.shape.world, self.world());
            return Err(argument("add_plan", "plan", problem));
        }
        if let Some(problem) = self.plans.out_of_reach(&plan) {
            return Err(argument("add_plan", "plan", problem));
        }
        let text = plan.to_text();
        for (peer, theirs) in self.bootstrap.all_gather(text.as_bytes())?.iter().enumerate() {
            if theirs != text.as_bytes() {
                return Err(Error::PlansDiffer { rank: self.rank(), peer });
            }
        }
        self.plans.add(plan, proof.claims);
        Ok(())
    }

    /// Parts the ranks by `color` into new communicators; ranks with None get none. Within one,
    /// ranks are ordered by `key`, then by their rank here. A collective call.
    pub fn split(&mut self, color: Option<u32>, key: i32) -> Result<Option<Self>, Error> {
        let mut mine = [0; 9];
        mine[0] = u8::from(color.is_some());
        mine[1..5].copy_from_slice(&color.unwrap_or(0).to_le_bytes());
        mine[5..].copy_from_slice(&key.to_le_bytes());
        let all = self.bootstrap.all_gather(&mine)?;
        let mut members: Vec<(i32, usize)> = all
            .iter()
            .enumerate()
            .filter(|(_, theirs)| color.is_some() && theirs.len() == 9 && theirs[..5] == mine[..5])
            .map(|(rank, t)| (i32::from_le_bytes([t[5], t[6], t[7], t[8]]), rank))
            .collect();
        members.sort_unstable();
        let leads = members.first().is_some_and(|(_, leader)| *leader == self.rank());
        let mut at = LOOPBACK;
        if let Some(address) = self.bootstrap.address().filter(|_| self.node.spans_hosts()) {
            at = address;
            at.set_port(0);
        }
        let root = if leads && members.len() > 1 { Some(TcpRoot::bind(at)?) } else { None };
        let id = root.as_ref().map_or(Vec::new(), |(_, id)| id.to_bytes().to_vec());
        let ids = self.bootstrap.all_gather(&id)?;
        let Some(rank) = members.iter().position(|(_, rank)| *rank == self.rank()) else {
            return Ok(None);
        };
        let (world, timeout) = (members.len(), self.timeout());
        let bootstrap = match root {
            Some((root, _)) => TcpBootstrap::root(root, world, timeout)?,
            None if world == 1 => TcpBootstrap::root(TcpRoot::bind(LOOPBACK)?.0, 1, timeout)?,
            None => {
                let id: [u8; 128] = ids[members[0].1].as_slice().try_into().map_err(|_| {
                    argument("split", "color", "leads to a rank that sent no unique id")
                })?;
                TcpBootstrap::join(&UniqueId::from_bytes(&id)?, rank, world, timeout)?
            }
        };
        Ok(Some(self.config.clone().connect(bootstrap)?))
    }
}

/// Ranks of one host split over loopback.
const LOOPBACK: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// From so many bytes in a block on, results go around the cache: nothing of them would still be
/// there when it is used.
const STREAMING: usize = 32 << 20;

/// Aborts a communicator, from any thread. Does nothing once the communicator is dropped.
#[derive(Clone, Debug)]
pub struct AbortHandle {
    node: Weak<Node>,
}

impl AbortHandle {
    /// Makes all ranks' running and later calls fail.
    pub fn abort(&self) {
        if let Some(node) = self.node.upgrade() {
            let by = node.rank();
            node.post(Failure { kind: FailureKind::Aborted, by, culprit: None });
        }
    }
}
