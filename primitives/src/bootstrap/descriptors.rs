//! The limit of open files, which many ranks in one process can reach.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Whether `cause` is the want of a descriptor, of this process or of the system.
pub(super) fn are_exhausted(cause: &io::Error) -> bool {
    let errno = cause.raw_os_error();
    [Errno::MFILE, Errno::NFILE].iter().any(|full| errno == Some(full.raw_os_error()))
}

/// Open files that this process may have now.
pub(super) fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Raises the limit to what the process may give itself; whether that is more than before.
pub(super) fn raise() -> bool {
    let now = getrlimit(Resource::Nofile);
    let (Some(soft), hard) = (now.current, now.maximum) else {
        return false;
    };
    if hard.is_some_and(|hard| hard <= soft) {
        return false;
    }
    let raised = setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).is_ok();
    if raised {
        tracing::info!("raised this process's limit of open files from {soft}");
    }
    raised
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_want_of_descriptors_counts() {
        assert!(are_exhausted(&io::Error::from_raw_os_error(Errno::MFILE.raw_os_error())));
        assert!(!are_exhausted(&io::Error::from_raw_os_error(Errno::NOMEM.raw_os_error())));
        assert!(!are_exhausted(&io::ErrorKind::TimedOut.into()));
        assert!(limit() > 3);
    }
}
