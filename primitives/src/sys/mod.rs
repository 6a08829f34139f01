//! The operating system's calls, one thin safe function each. With the channels' raw copies, all
//! the unsafe code of this crate that touches the kernel is here.

mod futex;
mod interface;
mod mapping;
pub(crate) mod nvml;
mod socket;
mod stream;
pub(crate) mod verbs;

pub(crate) use futex::{futex_wait, futex_wake};
pub(crate) use interface::interface_addresses;
pub use mapping::Mapping;
pub(crate) use socket::{
    hung_up, owes, recv_with_fd, round_trip, send_with_fd, silent_for, wait_readable,
};
pub(crate) use stream::{Piece, receive_bytes, receive_pieces, send_bytes, send_pieces};
