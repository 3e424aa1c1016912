//! SQL against a real database in a temporary directory.
#![allow(clippy::unwrap_used)]

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
mod slt;
mod tiny;
