//! The server as its clients see it: started in process, spoken to over the port.

mod ingest;
mod lifecycle;
mod metadata;
mod prepared;
mod statements;
mod support;
