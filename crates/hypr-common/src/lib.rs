//! What every Hyprstream crate shares: error kinds, the Arrow forms of SQL types, the shape of a model
//! as tables, injected time, and who is asking.
//!
//! Invariant: this crate depends on no other crate of the workspace, does no I/O, and holds no state.
//! Deliberately absent: anything only one crate needs.

pub mod clock;
pub mod error;
pub mod model;
pub mod prefix;
pub mod principal;
pub mod types;

pub use error::{Error, ErrorKind, Result};
