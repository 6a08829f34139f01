//! What can go wrong, with the place where it did.

/// A module that cannot be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The text is not PTX.
    #[error("line {line}: {what}")]
    Syntax {
        /// Line in the PTX text, from 1.
        line: u32,
        /// What was found and what was expected.
        what: String,
    },
    /// An instruction, or a form of one, that the virtual GPU does not have.
    #[error("line {line}: unknown instruction `{opcode}`: {why}")]
    UnknownInstruction {
        /// Line in the PTX text, from 1.
        line: u32,
        /// The opcode as written.
        opcode: String,
        /// Which part of it was not understood.
        why: String,
    },
    /// A kernel that the module does not have.
    #[error("no kernel named `{name}` in this module")]
    NoSuchKernel {
        /// The name asked for.
        name: String,
    },
}

impl LoadError {
    pub(crate) fn syntax(line: u32, what: impl Into<String>) -> Self {
        LoadError::Syntax { line, what: what.into() }
    }
}

/// Why a kernel stopped before its end, or could not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// An access outside every allocation, or to one that the device may not access.
    #[error(
        "{at}: {bytes} bytes at {address:#x} are not inside one allocation that the device may access"
    )]
    IllegalAddress {
        /// Where in which kernel.
        at: Place,
        /// The address that the instruction used.
        address: u64,
        /// Size of the access.
        bytes: u32,
    },
    /// An address that is no multiple of the access's size.
    #[error("{at}: address {address:#x} is not a multiple of {bytes}")]
    Misaligned {
        /// Where in which kernel.
        at: Place,
        /// The address that the instruction used.
        address: u64,
        /// Required alignment.
        bytes: u32,
    },
    /// `trap`, a failed device assertion, or an instruction used against its rules.
    #[error("{at}: {what}")]
    Trap {
        /// Where in which kernel.
        at: Place,
        /// What happened.
        what: String,
    },
    /// Nothing makes progress any more.
    #[error("no progress for {seconds} s:\n{report}")]
    Hang {
        /// How long nothing moved.
        seconds: u64,
        /// Each waiting warp: where, for what, and who last wrote it.
        report: String,
    },
    /// What the engine of several processes says of a kernel.
    #[error("{text}")]
    Engine {
        /// The CUresult.
        code: u32,
        /// In words.
        text: String,
    },
    /// A launch that this device cannot run.
    #[error("kernel `{kernel}` cannot be launched: {what}")]
    BadLaunch {
        /// The kernel.
        kernel: String,
        /// The limit that was passed.
        what: String,
    },
}

/// A place in a running kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Kernel name.
    pub kernel: String,
    /// Device number.
    pub device: u32,
    /// Linear block index.
    pub block: u64,
    /// Warp in the block.
    pub warp: u32,
    /// Line of the PTX text.
    pub line: u32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "kernel `{}` on device {}, block {}, warp {}, PTX line {}",
            self.kernel, self.device, self.block, self.warp, self.line
        )
    }
}
