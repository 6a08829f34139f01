//! What a program's process and the engine's say to each other: a length, a line of JSON, sometimes a file with it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::mem::counters::Counters;

/// The most bytes of a message: PTX of tens of megabytes passes.
const MOST: usize = 1 << 28;

/// What a process asks of the engine.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// A process begins. The engine's answer is [`Reply::Member`]; when this connection ends, so do its kernels.
    Join,
    /// Another connection of a process that has joined.
    Enter {
        /// Its number.
        member: u32,
    },
    /// Memory is at these addresses from now on; bytes come with a file.
    Map(Mapping),
    /// Who may access it from now on.
    Allow {
        /// Its first address.
        base: u64,
        /// Which devices may load, and which may store.
        rights: [u64; 2],
    },
    /// It is no longer.
    Unmap {
        /// Its first address.
        base: u64,
    },
    /// A module's text, by a number of the process's own.
    Module {
        /// The number.
        id: u64,
        /// PTX.
        text: String,
    },
    /// Run a kernel to its end.
    Launch(Box<Remote>),
}

/// A region of memory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Mapping {
    pub(super) base: u64,
    pub(super) len: u64,
    pub(super) device: u32,
    pub(super) host: bool,
    pub(super) rights: [u64; 2],
    /// Where in the file.
    pub(super) offset: u64,
    /// Of a multicast region: the members' bytes, piece by piece.
    pub(super) members: Option<Vec<Result<Vec<u64>, String>>>,
}

/// A launch.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Remote {
    pub(super) module: u64,
    pub(super) kernel: String,
    pub(super) device: u32,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) dynamic_shared: u32,
    pub(super) params: Vec<u8>,
    pub(super) cooperative: bool,
    /// Where the module's variables are.
    pub(super) variables: BTreeMap<String, u64>,
}

/// The engine's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The number of a process that has joined.
    Member(u32),
    /// It is done.
    Done,
    /// It cannot be done.
    Refused(String),
    /// A kernel ran to its end.
    Ran(Counters),
    /// A kernel failed: a CUresult, and words.
    Fault(u32, String),
}

/// Sends a message, with a file if there is one.
pub(super) fn send(
    mut to: &UnixStream,
    message: &impl Serialize,
    file: Option<&OwnedFd>,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.push(u8::from(file.is_some()));
    if let Some(file) = file {
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&files));
        let sent = sendmsg(to, &[io::IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL)?;
        to.write_all(&head[sent..])?;
    } else {
        to.write_all(&head)?;
    }
    to.write_all(&text)
}

/// Receives a message. An end of the stream between messages is `UnexpectedEof` too.
pub(super) fn receive<T: DeserializeOwned>(
    mut from: &UnixStream,
) -> io::Result<(T, Option<OwnedFd>)> {
    let mut head = [0; 9];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(from, &mut [io::IoSliceMut::new(&mut head)], &mut control, flags)?.bytes;
    if got == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    from.read_exact(&mut head[got..])?;
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    let len = u64::from_le_bytes(std::array::from_fn(|n| head[n])) as usize;
    if len > MOST || file.is_some() != (head[8] == 1) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a message of vgpu"));
    }
    let mut text = vec![0; len];
    from.read_exact(&mut text)?;
    Ok((serde_json::from_slice(&text)?, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_files_arrive_and_nonsense_is_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = rustix::fs::memfd_create("wire", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, b"bytes").unwrap();
        send(&a, &Request::Unmap { base: 7 }, Some(&file)).unwrap();
        send(&a, &Request::Join, None).unwrap();
        let (first, came) = receive::<Request>(&b).unwrap();
        assert!(matches!(first, Request::Unmap { base: 7 }));
        let mut bytes = [0; 5];
        rustix::io::pread(came.unwrap(), &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"bytes");
        assert!(matches!(receive::<Request>(&b).unwrap(), (Request::Join, None)));
        (&a).write_all(&[0xff; 9]).unwrap();
        assert_eq!(receive::<Request>(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(a);
        assert_eq!(receive::<Request>(&b).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
