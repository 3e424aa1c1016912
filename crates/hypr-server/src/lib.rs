//! The server: one process and one port for Flight SQL, gRPC health and HTTP, over one data directory.
//!
//! [`serve`] is the entry point and reads as the life of a server: open the store, start the engine, bind,
//! announce, serve, drain, make durable. [`config`] says what can be set, [`flight`] answers Flight SQL (a
//! file per group of verbs), [`client`] is the other end of it for the command line.
//!
//! Invariants: every request carries a `Principal`; results stream and are never collected; a client that
//! goes away cancels what it asked for; an error is logged here, once, and the client sees its message only.
//! Deliberately absent: SQL (`hypr-query` plans it) and anything that outlives a request but the statements a
//! client prepared.

pub mod client;
pub mod config;
pub mod error;
pub mod flight;
mod http;
mod listener;
mod serve;
mod server_file;

pub use client::{Client, ClientOutcome};
pub use config::Config;
pub use serve::serve;
