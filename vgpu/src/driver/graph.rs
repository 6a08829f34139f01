//! Graphs: work with dependencies, launched as one.
//!
//! A node is a function that can be called again and again. Branches that do not depend on each other run on threads of their
//! own, so that a kernel of one may wait for a kernel of another.

use std::ffi::c_uint;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Scope;

use super::entry::{api, driver, put, stream};
use super::new_handle;
use super::result::{Error, Res};

/// What a node does (`CUgraphNodeType`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    Kernel = 0,
    Memcpy = 1,
    Memset = 2,
    Host = 3,
    Graph = 4,
    BatchMemOp = 12,
}

/// What a node does, as often as it is asked to.
pub type Work = Arc<dyn Fn() + Send + Sync>;

#[derive(Clone)]
struct Node {
    handle: usize,
    kind: Kind,
    work: Work,
    /// Nodes that must be done before, by index; all are earlier ones.
    deps: Vec<usize>,
}

/// A graph that can still grow.
#[derive(Default)]
pub struct Graph(Mutex<Vec<Node>>);

impl Graph {
    /// Adds a node and gives its index.
    pub fn add(&self, kind: Kind, work: Work, deps: Vec<usize>) -> usize {
        let mut nodes = self.0.lock().unwrap();
        nodes.push(Node { handle: new_handle(), kind, work, deps });
        nodes.len() - 1
    }

    /// Handles of nodes.
    pub fn handles(&self, nodes: &[usize]) -> Vec<usize> {
        let all = self.0.lock().unwrap();
        nodes.iter().map(|n| all[*n].handle).collect()
    }

    /// The nodes that no other depends on.
    pub fn sinks(&self) -> Vec<usize> {
        let all = self.0.lock().unwrap();
        let needed = |n: usize| all.iter().any(|x| x.deps.contains(&n));
        (0..all.len()).filter(|n| !needed(*n)).collect()
    }
}

/// A graph as it was when it was instantiated.
pub struct GraphExec {
    nodes: Vec<Node>,
    successors: Vec<Vec<usize>>,
    /// Launches of one executable graph do not overlap.
    running: Mutex<()>,
}

impl GraphExec {
    fn new(graph: &Graph) -> GraphExec {
        let nodes = graph.0.lock().unwrap().clone();
        let mut successors = vec![Vec::new(); nodes.len()];
        for (n, node) in nodes.iter().enumerate() {
            node.deps.iter().for_each(|d| successors[*d].push(n));
        }
        GraphExec { nodes, successors, running: Mutex::new(()) }
    }

    /// Does all work and returns when it is done.
    fn run(&self) {
        let _one = self.running.lock().unwrap();
        let left: Vec<_> = self.nodes.iter().map(|n| AtomicUsize::new(n.deps.len())).collect();
        let roots: Vec<_> =
            (0..self.nodes.len()).filter(|n| self.nodes[*n].deps.is_empty()).collect();
        std::thread::scope(|scope| self.start(scope, &left, &roots));
    }

    /// Runs the first of these here and each other one on a thread of its own, and all that becomes possible by that.
    fn start<'s>(&'s self, scope: &'s Scope<'s, '_>, left: &'s [AtomicUsize], ready: &[usize]) {
        let mut ready = ready.to_vec();
        while let Some((first, others)) = ready.split_first() {
            for other in others {
                let other = *other;
                scope.spawn(move || self.start(scope, left, &[other]));
            }
            (self.nodes[*first].work)();
            // Acquire and release: what the other predecessors did is seen by the successor.
            let free = |n: &&usize| left[**n].fetch_sub(1, Ordering::AcqRel) == 1;
            ready = self.successors[*first].iter().filter(free).copied().collect();
        }
    }
}

/// Gives a list the way the API does: its length if there is no array, else as many as fit.
unsafe fn list(all: &[usize], to: *mut usize, n: *mut usize) -> Res<()> {
    if n.is_null() {
        return Err(Error::InvalidValue);
    }
    // SAFETY: the caller passes an array of `*n` places, or none.
    unsafe {
        if !to.is_null() {
            let fit = all.len().min(*n);
            std::ptr::copy_nonoverlapping(all.as_ptr(), to, fit);
            // The rest is zero, as documented.
            (fit..*n).for_each(|k| to.add(k).write(0));
        }
        n.write(all.len());
    }
    Ok(())
}

api! {
    cuGraphCreate(graph: *mut usize, flags: c_uint) {
        let d = driver()?;
        if flags != 0 {
            return Err(Error::InvalidValue);
        }
        put(graph, d.graphs.add(Arc::default()))
    }
    cuGraphDestroy(graph: usize) { driver()?.graphs.remove(graph).map(drop).map_err(|_| Error::InvalidValue) }
    cuGraphGetNodes(graph: usize, nodes: *mut usize, n: *mut usize) {
        let g = driver()?.graphs.get(graph).map_err(|_| Error::InvalidValue)?;
        let all: Vec<_> = g.0.lock().unwrap().iter().map(|n| n.handle).collect();
        list(&all, nodes, n)
    }
    cuGraphGetRootNodes(graph: usize, nodes: *mut usize, n: *mut usize) {
        let g = driver()?.graphs.get(graph).map_err(|_| Error::InvalidValue)?;
        let nodes_now = g.0.lock().unwrap();
        let all: Vec<_> = nodes_now.iter().filter(|n| n.deps.is_empty()).map(|n| n.handle).collect();
        list(&all, nodes, n)
    }
    cuGraphNodeGetType(node: usize, kind: *mut c_uint) {
        let graphs = driver()?.graphs.all();
        let find = |g: &Arc<Graph>| g.0.lock().unwrap().iter().find(|n| n.handle == node).map(|n| n.kind);
        put(kind, graphs.iter().find_map(find).ok_or(Error::InvalidValue)? as c_uint)
    }
    cuGraphInstantiateWithFlags(exec: *mut usize, graph: usize, flags: u64) {
        const AUTO_FREE: u64 = 1;
        const UPLOAD: u64 = 2;
        const USE_NODE_PRIORITY: u64 = 8;
        let d = driver()?;
        let g = d.graphs.get(graph).map_err(|_| Error::InvalidValue)?;
        if flags & !(AUTO_FREE | UPLOAD | USE_NODE_PRIORITY) != 0 {
            return Err(Error::NotSupported); // launches from the device
        }
        if d.is_captured_to(&g) {
            return Err(Error::InvalidValue);
        }
        put(exec, d.graph_execs.add(Arc::new(GraphExec::new(&g))))
    }
    cuGraphUpload(exec: usize, s: usize) {
        // There is nothing to do before a launch; that both exist is checked.
        let (d, _, _) = stream(s)?;
        d.graph_execs.get(exec).map(drop).map_err(|_| Error::InvalidValue)
    }
    cuGraphLaunch(exec: usize, s: usize) {
        let (d, c, s) = stream(s)?;
        let exec = d.graph_execs.get(exec).map_err(|_| Error::InvalidValue)?;
        c.submit(&s, Kind::Graph, move || exec.run())
    }
    cuGraphExecDestroy(exec: usize) { driver()?.graph_execs.remove(exec).map(drop).map_err(|_| Error::InvalidValue) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_run_beside_each_other_and_meet_again() {
        let graph = Graph::default();
        let log = Arc::new(Mutex::new(Vec::new()));
        let meet = Arc::new(std::sync::Barrier::new(3));
        let say = |what: char| -> Work {
            let log = log.clone();
            Arc::new(move || log.lock().unwrap().push(what))
        };
        let root = graph.add(Kind::Host, say('a'), vec![]);
        let branch = |_| {
            let meet = meet.clone();
            // All three are in here at once, or this hangs.
            graph.add(
                Kind::Host,
                Arc::new(move || {
                    meet.wait();
                }),
                vec![root],
            )
        };
        let branches: Vec<_> = (0..3).map(branch).collect();
        assert_eq!(graph.sinks(), branches);
        graph.add(Kind::Host, say('b'), branches);
        let exec = GraphExec::new(&graph);
        (0..20).for_each(|_| exec.run());
        assert_eq!(log.lock().unwrap().iter().collect::<String>(), "ab".repeat(20));
    }
}
