//! What the CUDA device does for a call, told without a GPU or a driver.
#![forbid(unsafe_code)]

use super::switch::AtHand;
use super::{CudaCommunicator, choose, emit, mail};
use crate::algorithms::{self, Layout};
use crate::communicator::RawCall;
use crate::error::{Error, argument};

/// The kernel of a call on GPUs: made by [`cuda_kernel`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaKernel {
    /// The plan's name.
    pub plan: &'static str,
    /// The entry point's name.
    pub name: String,
    /// CUDA C++; the headers that it includes are those of `warpmesh-kernels`.
    pub source: String,
}

/// The kernel that `rank` of `world` runs for a call out of place. Needs neither a GPU nor a driver.
///
/// The addresses in `call` are not looked at: `registered` says whether both buffers lie in memory of
/// [`CudaCommunicator::alloc_bytes`]. `algorithm` is taken where it can do the call, as by
/// [`Builder::algorithm`](crate::Builder::algorithm).
///
/// # Errors
/// There are no such ranks, no plan can do the call, or the plan has no kernel.
pub fn cuda_kernel(
    call: &RawCall,
    (rank, world): (usize, usize),
    registered: bool,
    algorithm: Option<&str>,
) -> Result<CudaKernel, Error> {
    cuda_kernel_on(call, (rank, &vec![0; world]), registered, algorithm)
}

/// As [`cuda_kernel`], for ranks of these hosts: ranks with different numbers are on different ones.
///
/// # Errors
/// As [`cuda_kernel`].
pub fn cuda_kernel_on(
    call: &RawCall,
    (rank, hosts): (usize, &[usize]),
    registered: bool,
    algorithm: Option<&str>,
) -> Result<CudaKernel, Error> {
    let world = hosts.len();
    if rank >= world || call.root >= world {
        let problem = format!("{rank} and root {}: there are {world}", call.root);
        return Err(argument("cuda_kernel", "rank", problem));
    }
    let query = choose::query(call, registered, false);
    // Whether there is a switch nobody knows here; who names a plan that needs one has it.
    let switched = |name| algorithms::MULTICAST.iter().any(|known| known.name == name);
    let at_hand = at_hand(algorithm.is_some_and(switched), registered);
    let layout = Layout::new(hosts);
    let candidates = choose::candidates(&layout, at_hand.memory);
    let chosen = choose::choose(&candidates, &query, at_hand, call.count, false, algorithm);
    let Some(candidate) = chosen.map(|number| &candidates[number]) else {
        let condition = format!("{}, {}", call.dtype, query.op.name());
        return Err(Error::NoPlan { collective: call.collective, world, condition });
    };
    let plan = candidate.algorithm;
    let (shape, program) = (plan.shape(&layout, call.root), plan.program(rank, &layout, call.root));
    let (who, announces) = ((rank, &layout), candidate.registered);
    let kernel = emit::emit(&shape, &program, plan.claims(), announces, who, call.dtype, query.op)?;
    Ok(CudaKernel { plan: plan.name(), name: kernel.name, source: kernel.source })
}

/// The kernels that carry out sends and receives, within a host and between hosts. Their plan's name is `letters`.
pub fn cuda_mail_kernels() -> [CudaKernel; 2] {
    mail::SOURCES.map(|mail::Source { name, source }| CudaKernel {
        plan: "letters",
        name: name.to_owned(),
        source: source.to_owned(),
    })
}

/// What calls have where there is multicast memory or not: registered buffers lie at the same place on all ranks.
fn at_hand(multicast: bool, registered: bool) -> AtHand {
    let user = multicast && registered;
    AtHand { memory: multicast, input: user, output: user }
}

impl CudaCommunicator {
    /// The name of the plan that a call takes; none if no plan can do it. The addresses in `call` are not looked at: registered
    /// buffers are taken for symmetric ones. [`plan_of`](Self::plan_of) looks.
    pub fn plan(&self, call: &RawCall, registered: bool, in_place: bool) -> Option<&'static str> {
        let query = choose::query(call, registered, in_place);
        let at_hand = at_hand(self.regions.multicast(), registered);
        let number = self.choose(&query, at_hand, call.count).ok()?;
        Some(self.candidates[number].algorithm.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Collective;
    use crate::{DataType, ReduceOp};

    fn call(collective: Collective, count: usize) -> RawCall {
        RawCall {
            collective,
            dtype: DataType::Bf16,
            op: ReduceOp::Sum,
            root: 0,
            count,
            input: std::ptr::null(),
            output: std::ptr::null_mut(),
        }
    }

    #[test]
    fn a_named_plan_is_shown_with_its_entry_point() {
        let small = call(Collective::AllReduce, 8);
        let kernel = cuda_kernel(&small, (1, 4), false, Some("two_shot_packet")).unwrap();
        assert_eq!(kernel.plan, "two_shot_packet");
        assert!(kernel.source.contains(&format!("\n{}(", kernel.name)), "{}", kernel.source);
        assert!(kernel.source.contains("__global__"), "{}", kernel.source);
    }

    #[test]
    fn the_choice_depends_on_size_and_registration() {
        let plan = |count, registered| {
            let call = call(Collective::AllReduce, count);
            cuda_kernel(&call, (0, 8), registered, None).unwrap().plan
        };
        assert!(plan(8, true).contains("packet"), "{}", plan(8, true));
        assert_ne!(plan(1 << 24, true), plan(8, true));
        assert_ne!(plan(1 << 24, true), plan(1 << 24, false));
    }

    #[test]
    fn ranks_that_are_not_there_are_refused() {
        let all = call(Collective::AllGather, 8);
        let error = cuda_kernel(&all, (4, 4), false, None).unwrap_err();
        assert!(error.to_string().contains("there are 4"), "{error}");
    }
}
