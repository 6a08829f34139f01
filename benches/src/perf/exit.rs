//! nccl-tests' exit codes.

use std::fmt;
use std::process::ExitCode;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All results right.
    Success = 0,
    /// Something of the benchmark itself, or of the system.
    Internal = 1,
    /// The library that is measured failed.
    Library = 3,
    /// A test took longer than it may.
    Timeout = 4,
    /// Nothing here does what was asked.
    NotImplemented = 5,
    /// The command line.
    Usage = 6,
    /// Wrong values, or bandwidth below what was asked.
    Results = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that decides the exit code. Others are [`Exit::Internal`].
#[derive(Debug)]
pub struct Failed {
    exit: Exit,
    message: String,
}

impl Failed {
    /// An error with this code and text.
    pub fn because(exit: Exit, message: impl Into<String>) -> anyhow::Error {
        Self { exit, message: message.into() }.into()
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> anyhow::Error {
        Self::because(Exit::Usage, message)
    }

    /// The code of an error.
    pub fn exit_of(error: &anyhow::Error) -> Exit {
        Self::code_in(error).unwrap_or(Exit::Internal)
    }

    /// The code, if the error decides it.
    pub fn code_in(error: &anyhow::Error) -> Option<Exit> {
        error.downcast_ref::<Self>().map(|failed| failed.exit)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failed {}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_code_survives_context() {
        let error =
            Err::<(), _>(Failed::because(Exit::Timeout, "late")).context("row 3").unwrap_err();
        assert_eq!(Failed::exit_of(&error), Exit::Timeout);
        assert_eq!(Failed::exit_of(&anyhow::anyhow!("other")), Exit::Internal);
    }
}
