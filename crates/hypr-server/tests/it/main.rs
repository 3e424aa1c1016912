//! The server as its clients see it: started in process, spoken to over the port.

// Helpers of tests may unwrap, as tests do.
#![allow(clippy::unwrap_used)]

mod ingest;
mod lifecycle;
mod metadata;
mod prepared;
mod protocol;
mod statements;
mod support;
mod transactions;
