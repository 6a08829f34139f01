use proptest::prelude::*;

use super::*;

const ID: &str =
    "wm1:127.0.0.1:4321:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

const TORCH: &str = "RANK=3 WORLD_SIZE=8 LOCAL_RANK=1 MASTER_ADDR=node1 MASTER_PORT=29500 \
                     TORCHELASTIC_RUN_ID=run7";

/// `text` is `NAME=value NAME=value`; a later one counts.
fn read(text: &str) -> Result<Option<Launch>, BootstrapError> {
    Launch::from_vars(&|name| {
        let mut pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        pairs.rfind(|(key, _)| *key == name).map(|(_, value)| value.to_string())
    })
}

fn launch(text: &str) -> Launch {
    read(text).unwrap().unwrap()
}

fn says(text: &str, parts: &[&str]) {
    let error = read(text).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{text}: {error:?} does not say {part:?}");
    }
}

fn address(launch: Launch) -> (String, u16, Secret) {
    match launch.rendezvous {
        Rendezvous::Address { host, port, secret } => (host, port, secret),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_set_is_none() {
    assert!(read("").unwrap().is_none());
    assert!(read("PATH=/bin MASTER_ADDR=x WARPMESH_ADDR=y SLURM_JOB_ID=4").unwrap().is_none());
}

#[test]
fn every_launcher_is_read() {
    let place = |text: &str| {
        let own = launch(&format!("{text} WARPMESH_UNIQUE_ID={ID}"));
        assert!(matches!(&own.rendezvous, Rendezvous::Id(id) if id.to_string() == ID));
        (own.launcher, own.rank, own.world, own.local_rank)
    };
    assert_eq!(place("WARPMESH_RANK=2 WARPMESH_WORLD=4"), (Launcher::Warpmesh, 2, 4, None));
    assert_eq!(place(TORCH), (Launcher::Torchrun, 3, 8, Some(1)));
    assert_eq!(
        place("OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0"),
        (Launcher::OpenMpi, 0, 2, Some(0))
    );
    assert_eq!(place("PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1"), (Launcher::Pmi, 1, 2, Some(1)));
    assert_eq!(
        place("SLURM_PROCID=5 SLURM_NTASKS=6 SLURM_LOCALID=2"),
        (Launcher::Slurm, 5, 6, Some(2))
    );
}

#[test]
fn the_inner_launcher_counts() {
    let slurm = "SLURM_PROCID=0 SLURM_NTASKS=1";
    let mpi = format!("{slurm} OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 WARPMESH_ADDR=a:1");
    assert_eq!(launch(&mpi).launcher, Launcher::OpenMpi);
    let own = format!("{mpi} {TORCH} WARPMESH_RANK=0 WARPMESH_WORLD=3");
    assert_eq!(launch(&own).launcher, Launcher::Warpmesh);
}

#[test]
fn torchrun_gives_the_address() {
    let (host, port, _) = address(launch(TORCH));
    assert_eq!((host.as_str(), port), ("node1", 29501));
    assert_eq!(address(launch(&format!("{TORCH} WARPMESH_PORT=7"))).1, 7);
    let (host, port, _) = address(launch(&format!("{TORCH} WARPMESH_ADDR=[fe80::1%2]:9")));
    assert_eq!((host.as_str(), port), ("fe80::1%2", 9));
}

#[test]
fn the_secret_is_the_jobs() {
    let secret = |text: &str| address(launch(&format!("{TORCH} {text}"))).2;
    assert_eq!(secret(""), secret("RANK=0 LOCAL_RANK=0 WORLD_SIZE=9"), "the same on every rank");
    assert_ne!(secret(""), secret("TORCHELASTIC_RUN_ID=run8"));
    assert_ne!(secret(""), secret("WARPMESH_SECRET=x"));
    assert_eq!(secret("WARPMESH_SECRET=x"), secret("WARPMESH_SECRET=x TORCHELASTIC_RUN_ID=run8"));
    assert_ne!(secret("WARPMESH_SECRET=x"), secret("WARPMESH_SECRET=y"));
}

#[test]
fn one_rank_needs_no_address() {
    let own = launch("SLURM_PROCID=0 SLURM_NTASKS=1");
    assert!(matches!(own.rendezvous, Rendezvous::Alone));
    let mut own = own.connect(Duration::ZERO).unwrap();
    assert_eq!(crate::bootstrap::Bootstrap::all_gather(&mut own, b"x").unwrap(), [b"x"]);
}

#[test]
fn what_is_missing_is_named() {
    says("RANK=3", &["RANK is set", "WORLD_SIZE is not"]);
    says("SLURM_NTASKS=3", &["SLURM_NTASKS is set", "SLURM_PROCID is not"]);
    says(&format!("WARPMESH_UNIQUE_ID={ID}"), &["WARPMESH_UNIQUE_ID is set", "WARPMESH_RANK"]);
    says("WARPMESH_LOCAL_RANK=0", &["WARPMESH_LOCAL_RANK is set", "WARPMESH_RANK is not"]);
    says("RANK=0 WORLD_SIZE=2", &["MASTER_ADDR is not"]);
    says("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a", &["MASTER_PORT is not"]);
    says("SLURM_PROCID=1 SLURM_NTASKS=3", &["srun", "rank 1 of 3", "WARPMESH_ADDR"]);
    says("WARPMESH_RANK=0 WARPMESH_WORLD=2", &["WARPMESH_UNIQUE_ID", "WARPMESH_ADDR"]);
}

#[test]
fn what_is_malformed_is_named_with_its_value() {
    let torch = |text: &str, parts: &[&str]| says(&format!("{TORCH} {text}"), parts);
    torch("RANK=-1", &["RANK=\"-1\""]);
    torch("RANK=", &["RANK=\"\""]);
    torch("WORLD_SIZE=99999999999999999999999", &["WORLD_SIZE=\"9999"]);
    torch("RANK=8", &["rank 8", "world 8"]);
    torch("WORLD_SIZE=0", &["world 0"]);
    torch("LOCAL_RANK=x", &["LOCAL_RANK=\"x\""]);
    torch("LOCAL_RANK=8", &["LOCAL_RANK=\"8\"", "below"]);
    torch("MASTER_ADDR=", &["MASTER_ADDR=\"\""]);
    torch("MASTER_PORT=65535", &["MASTER_PORT=\"65535\"", "65534"]);
    torch("WARPMESH_PORT=0", &["WARPMESH_PORT=\"0\""]);
    torch("WARPMESH_SECRET=", &["WARPMESH_SECRET"]);
    for addr in
        ["node1", "node1:", ":5", "node1:0", "0.0.0.0:5", "::1:5x", "a:b:5", "[::1]", "[x]:1"]
    {
        torch(&format!("WARPMESH_ADDR={addr}"), &["WARPMESH_ADDR=", addr]);
    }
    torch("WARPMESH_UNIQUE_ID=wm9:1", &["version 9"]);
}

#[test]
fn a_malformed_id_is_not_printed() {
    let broken = ID.replace("4321", "x");
    let error = read(&format!("{TORCH} WARPMESH_UNIQUE_ID={broken}")).unwrap_err().to_string();
    assert!(error.contains("WARPMESH_UNIQUE_ID") && !error.contains("aabbcc"), "{error}");
}

#[test]
fn a_long_value_is_cut() {
    let error = read(&format!("{TORCH} RANK={}", "é".repeat(1000))).unwrap_err().to_string();
    assert!(error.len() < 400, "{error}");
}

#[test]
fn two_ranks_meet_by_name() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let connect = move |rank: usize| {
        let own =
            launch(&format!("RANK={rank} WORLD_SIZE=2 MASTER_ADDR=localhost WARPMESH_PORT={port}"));
        let mut own = own.connect(Duration::from_secs(20)).unwrap();
        crate::bootstrap::Bootstrap::all_gather(&mut own, &[rank as u8]).unwrap()
    };
    let one = std::thread::spawn(move || connect(1));
    assert_eq!(connect(0), [[0], [1]]);
    assert_eq!(one.join().unwrap(), [[0], [1]]);
}

proptest! {
    #[test]
    fn any_environment_is_a_launch_or_an_error(values in prop::collection::vec("[0-9a-z:.\\[\\]]{0,8}|é", 9)) {
        let names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", ADDR, PORT, SECRET, MASTER_ADDR, MASTER_PORT, UNIQUE_ID];
        let _ = Launch::from_vars(&|name| {
            let at = names.iter().position(|n| *n == name)?;
            Some(values[at].clone()).filter(|value| value != "é")
        });
    }
}
