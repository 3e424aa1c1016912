//! The store as its users see it: writes, reads, flushes and crashes on a real directory.

// A failed helper is a failed test.
#![allow(clippy::unwrap_used)]

mod alter;
mod columns;
mod corruption;
mod faults;
mod flushes;
mod model;
mod nearest;
mod nearest_files;
mod objects;
mod simulation;
mod support;
mod text;
mod transactions;
mod types;
mod versions;
mod writes;
