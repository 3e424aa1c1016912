//! SQL against a real database in a temporary directory.
#![allow(clippy::unwrap_used)]
// The futures of a statement nest deeply.
#![recursion_limit = "256"]

mod ai;
mod changes;
mod clustering;
mod docs;
mod harness;
mod ingest;
mod limits;
mod models;
mod nearest;
mod prepared;
mod search;
mod series;
mod slt;
mod tiny;
mod transactions;
