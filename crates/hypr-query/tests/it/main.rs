//! SQL against a real database in a temporary directory.
#![allow(clippy::unwrap_used)]
// The futures of a statement nest deeply.
#![recursion_limit = "256"]

mod ai;
mod ai_cache;
mod ai_functions;
mod changes;
mod clustering;
mod docs;
mod harness;
mod ingest;
mod kv_cache;
mod limits;
mod loaded_models;
mod media;
mod models;
mod nearest;
mod prepared;
mod search;
mod series;
mod slt;
mod tiny;
mod transactions;
