//! The store as its users see it: writes, reads, flushes and crashes on a real directory.

mod faults;
mod flushes;
mod model;
mod support;
mod types;
mod writes;
