//! SQL against a real database in a temporary directory.

mod ai;
mod harness;
mod ingest;
mod models;
mod prepared;
mod slt;
