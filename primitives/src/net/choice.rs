//! Which transport ranks of several hosts take: the best that all of them have.

use super::link::{LinkOptions, Links};
use super::rdma::{LinkExchange, RdmaOptions, RdmaTransport};
use super::tcp::{TcpOptions, TcpTransport};
use super::{NetError, Transport};
use crate::bootstrap::Bootstrap;
use crate::error::Error;
use crate::gpu::Gpu;

/// The variable that names a transport.
const VARIABLE: &str = "WARPMESH_TRANSPORT";

/// Which transport is wanted. All ranks want the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportChoice {
    /// RDMA if every rank has it, else TCP.
    #[default]
    Auto,
    /// TCP.
    Tcp,
    /// RDMA, or an error.
    Rdma,
}

impl TransportChoice {
    const ALL: [(Self, &str); 3] = [(Self::Auto, "auto"), (Self::Tcp, "tcp"), (Self::Rdma, "rdma")];

    /// The choice of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, own)| *own == name).map(|(choice, _)| *choice)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// How ranks of several hosts reach each other.
#[derive(Clone, Debug, Default)]
pub struct NetOptions {
    /// By which transport.
    pub transport: TransportChoice,
    /// For TCP, and for the connections by which RDMA begins.
    pub tcp: TcpOptions,
    /// For RDMA.
    pub rdma: RdmaOptions,
}

impl NetOptions {
    /// What `WARPMESH_TRANSPORT` (`auto`, `tcp`, `rdma`), `WARPMESH_SOCKET_*` and `WARPMESH_IB_*` say.
    ///
    /// # Errors
    /// Names a variable that cannot be understood, and what it may be.
    pub fn from_env() -> Result<Self, NetError> {
        let transport = match std::env::var(VARIABLE) {
            Err(_) => TransportChoice::Auto,
            Ok(name) => {
                TransportChoice::from_name(name.trim()).ok_or_else(|| NetError::System {
                    what: format!("{VARIABLE} is '{name}'"),
                    cause: "it has to be auto, tcp or rdma".to_owned(),
                })?
            }
        };
        let tcp = TcpOptions { link: LinkOptions::from_env()?, ..TcpOptions::default() };
        Ok(Self { transport, tcp, rdma: RdmaOptions::from_env()? })
    }
}

/// Opens the transport that all ranks can use, with so many semaphores; with a GPU, also for its memory, and with semaphores
/// for which its kernels can wait. Every rank calls it. Blocks until all have.
pub(crate) fn open(
    bootstrap: &mut dyn Bootstrap,
    semaphores: usize,
    options: &NetOptions,
    gpu: Option<&Gpu>,
) -> Result<Box<dyn Transport>, Error> {
    let links = Links::new(bootstrap, &options.tcp.link)?;
    let rdma = match options.transport {
        TransportChoice::Tcp => Err("it is not wanted".to_owned()),
        _ => {
            let (rank, world, rdma) = (links.rank(), links.world(), options.rdma.clone());
            let exchange = Box::new(LinkExchange::new(links));
            let opened = match gpu {
                None => RdmaTransport::new(rank, world, semaphores, rdma, exchange),
                Some(gpu) => RdmaTransport::on_gpu(gpu, (rank, world), semaphores, rdma, exchange),
            };
            opened.map_err(|error| match error {
                NetError::Unavailable { reason, .. } => reason,
                other => other.to_string(),
            })
        }
    };
    match vote(bootstrap, options.transport, &rdma)? {
        None => rdma.map(|rdma| Box::new(rdma) as Box<dyn Transport>).map_err(|_| {
            let what = "did not have RDMA a moment ago".to_owned();
            NetError::Protocol { peer: bootstrap.rank(), what }.into()
        }),
        Some((peer, reason)) if options.transport == TransportChoice::Rdma => {
            let reason = format!("on rank {peer}: {reason}");
            Err(NetError::Unavailable { transport: "rdma", reason }.into())
        }
        Some((peer, reason)) => {
            tracing::info!("TCP between hosts; RDMA is not available on rank {peer}: {reason}");
            Ok(Box::new(match gpu {
                None => TcpTransport::new(bootstrap, semaphores, &options.tcp)?,
                Some(gpu) => TcpTransport::on_gpu(bootstrap, gpu, semaphores, &options.tcp)?,
            }))
        }
    }
}

/// The first rank that has no RDMA, and why.
fn vote(
    bootstrap: &mut dyn Bootstrap,
    choice: TransportChoice,
    own: &Result<RdmaTransport, String>,
) -> Result<Option<(usize, String)>, Error> {
    let reason = own.as_ref().err();
    let mut mine = vec![choice as u8, u8::from(reason.is_none())];
    mine.extend(reason.into_iter().flat_map(|reason| reason.bytes()));
    let mut without = None;
    for (peer, theirs) in bootstrap.all_gather(&mine)?.iter().enumerate() {
        let [other, has, reason @ ..] = theirs.as_slice() else {
            let what = "it did not say which transport it has".to_owned();
            return Err(NetError::Protocol { peer, what }.into());
        };
        if *other != choice as u8 {
            let theirs = TransportChoice::ALL.get(usize::from(*other)).map_or("?", |(_, n)| n);
            let what = format!("it wants transport {theirs}, this rank {}", choice.name());
            return Err(NetError::Protocol { peer, what }.into());
        }
        if *has == 0 && without.is_none() {
            without = Some((peer, String::from_utf8_lossy(reason).into_owned()));
        }
    }
    Ok(without)
}
