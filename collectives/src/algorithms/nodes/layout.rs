//! Which ranks share a node.

/// Which ranks share a node's memory. Nodes are numbered by their first ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    node_of: Vec<usize>,
    nodes: Vec<Vec<usize>>,
}

impl Layout {
    /// Of ranks that say by equal keys that they are on one node, in rank order.
    pub fn new<K: PartialEq>(keys: &[K]) -> Self {
        let mut firsts: Vec<&K> = Vec::new();
        let mut layout = Self { node_of: Vec::with_capacity(keys.len()), nodes: Vec::new() };
        for (rank, key) in keys.iter().enumerate() {
            let node = firsts.iter().position(|first| *first == key).unwrap_or_else(|| {
                firsts.push(key);
                layout.nodes.push(Vec::new());
                firsts.len() - 1
            });
            layout.node_of.push(node);
            layout.nodes[node].push(rank);
        }
        layout
    }

    /// The number of ranks.
    pub fn world(&self) -> usize {
        self.node_of.len()
    }

    /// The number of nodes.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// A rank's node.
    pub fn node_of(&self, rank: usize) -> usize {
        self.node_of[rank]
    }

    /// A node's ranks, in order.
    pub fn members(&self, node: usize) -> &[usize] {
        &self.nodes[node]
    }

    /// How many ranks the smallest node has: so many rails there are.
    pub fn rails(&self) -> usize {
        self.nodes.iter().map(Vec::len).min().unwrap_or(1)
    }

    /// How many ranks the largest node has.
    pub fn largest(&self) -> usize {
        self.nodes.iter().map(Vec::len).max().unwrap_or(1)
    }

    /// A rank's place among its node's.
    pub fn place(&self, rank: usize) -> usize {
        let members = self.members(self.node_of(rank));
        members.iter().position(|member| *member == rank).unwrap_or(0)
    }

    /// The other nodes, from the next one on and around, so that not all turn to the same one at the same time.
    pub(super) fn others(&self, node: usize) -> impl Iterator<Item = usize> + use<> {
        let nodes = self.nodes();
        (1..nodes).map(move |step| (node + step) % nodes)
    }

    /// The ranks that share a rank's memory, without itself, from the next one on and around.
    pub(crate) fn neighbours(&self, rank: usize) -> Vec<usize> {
        let (members, place) = (self.members(self.node_of(rank)), self.place(rank));
        (1..members.len()).map(|step| members[(place + step) % members.len()]).collect()
    }

    /// The rank of a node that deals with `home` for it: with the same place as far as the node has one.
    pub(super) fn gateway(&self, home: usize, node: usize) -> usize {
        if self.node_of(home) == node {
            return home;
        }
        let members = self.members(node);
        members[self.place(home) % members.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_number_nodes_by_their_first_ranks() {
        let layout = Layout::new(&["b", "a", "b", "c"]);
        assert_eq!((layout.nodes(), layout.rails()), (3, 1));
        assert_eq!([0, 1, 2, 3].map(|rank| layout.node_of(rank)), [0, 1, 0, 2]);
        assert_eq!((layout.members(0), layout.place(2)), (&[0, 2][..], 1));
    }
}
