//! What is measured, in the order of how much one wants to know it.

/// One run of warpmesh-perf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// For people.
    pub title: String,
    /// warpmesh-perf's arguments, but for the backends.
    pub args: String,
    /// Whether several ranks work on one GPU.
    pub shares_gpus: bool,
}

/// Collectives, types and so on, with how much later they come than the first of their kind.
const COLLECTIVES: [(&str, usize); 8] = [
    ("all_reduce", 0),
    ("all_gather", 2),
    ("reduce_scatter", 2),
    ("all_to_all", 3),
    ("broadcast", 4),
    ("reduce", 5),
    ("gather", 6),
    ("scatter", 6),
];
const TYPES: [(&str, usize); 3] = [("bfloat16", 0), ("float", 2), ("half", 6)];
const MEMORY: [(&str, &str, usize); 2] = [("registered", "-R 1", 0), ("not registered", "-R 0", 2)];
const LAUNCHES: [(&str, &str, usize); 2] = [("graph", "-G 10", 0), ("no graph", "", 1)];

/// Checked and many iterations where they are short, neither where they are long.
const SMALL: &str = "-b 8 -e 4M -f 4 -n 50 -w 5 -c 1";
const LARGE: &str = "-b 16M -e 1G -f 4 -n 10 -w 2 -c 0";
const TINY: &str = "-b 8 -e 8K -f 32 -n 2 -c 1";

impl Run {
    /// A run with a rank for each GPU; on a single one two, as threads, which share it better than
    /// processes: those take turns.
    pub fn new(title: &str, args: &str, gpus: usize) -> Self {
        let ranks =
            if gpus == 1 { "-g 2 --ranks threads".to_owned() } else { format!("-g {gpus}") };
        let args = format!("{args} {ranks} --device cuda");
        Self { title: title.to_owned(), args, shares_gpus: gpus == 1 }
    }
}

/// All runs. On virtual GPUs each collective once, with every type, memory and launch somewhere.
pub fn all(gpus: usize, vgpu: bool) -> Vec<Run> {
    if vgpu {
        return (0..COLLECTIVES.len())
            .map(|n| one(n, n % 3, n % 2, n / 2 % 2, TINY, gpus))
            .collect();
    }
    let mut runs = vec![];
    for (c, (_, collective)) in COLLECTIVES.iter().enumerate() {
        for (t, (_, dtype)) in TYPES.iter().enumerate() {
            for (m, (.., memory)) in MEMORY.iter().enumerate() {
                for (l, (.., launch)) in LAUNCHES.iter().enumerate() {
                    let later = collective + dtype + memory + launch;
                    runs.push((later, one(c, t, m, l, SMALL, gpus)));
                    // Of large messages a graph saves nothing worth measuring.
                    if l == 1 {
                        runs.push((later, one(c, t, m, l, LARGE, gpus)));
                    }
                }
            }
        }
    }
    runs.sort_by_key(|(later, _)| *later);
    runs.into_iter().map(|(_, run)| run).collect()
}

fn one(
    collective: usize,
    dtype: usize,
    memory: usize,
    launch: usize,
    sizes: &str,
    gpus: usize,
) -> Run {
    let (collective, dtype) = (COLLECTIVES[collective].0, TYPES[dtype].0);
    let ((memory, register, _), (launch, graph, _)) = (MEMORY[memory], LAUNCHES[launch]);
    let from = sizes.split(' ').nth(1).unwrap_or_default();
    let to = sizes.split(' ').nth(3).unwrap_or_default();
    let title = format!("{collective}, {dtype}, {from} to {to}, {memory}, {launch}");
    let args = format!("{collective} {sizes} -d {dtype} {register} {graph} -T 60");
    Run::new(&title, &args.split_whitespace().collect::<Vec<_>>().join(" "), gpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_measured_and_the_headline_first() {
        let runs = all(8, false);
        assert_eq!(runs.len(), 8 * 3 * 2 * 3);
        assert!(
            runs[0].args.starts_with("all_reduce -b 8 -e 4M") && runs[0].args.contains("-G 10")
        );
        assert!(runs[..3].iter().any(|run| run.args.contains("-e 1G")), "{:?}", &runs[..3]);
        let mut titles: Vec<_> = runs.iter().map(|run| &run.title).collect();
        titles.sort();
        titles.dedup();
        assert_eq!(titles.len(), runs.len());
    }

    #[test]
    fn virtual_gpus_see_every_collective_and_every_option() {
        let runs = all(4, true);
        let args: String = runs.iter().map(|run| run.args.as_str()).collect();
        let kinds = COLLECTIVES.iter().chain(&TYPES).map(|(name, _)| *name);
        for word in kinds.chain(["-R 0", "-R 1", "-G 10"]) {
            assert!(args.contains(word), "{word} in {args}");
        }
        assert!(runs.iter().any(|run| !run.args.contains("-G")));
    }
}
