//! The PTX front end: text to a module whose function bodies are still text.
//!
//! A body is only tokenised when its kernel is launched; loading looks at opcodes alone. So 10 MB load in a fraction of a
//! second, and an unknown instruction is still an error of the load.

mod lexer;
mod module;
mod types;

pub use lexer::{Lexer, Tok};
pub use module::{Function, Module, Param, Variable, parse_module, variables};
pub use types::{Space, Ty};
