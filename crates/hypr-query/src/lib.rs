//! SQL over the store and the models: text in, Arrow out.
//!
//! A [`QueryEngine`] belongs to a database; a [`Session`] belongs to a client. The way of a statement is
//! [`Session::execute`]: parse ([`dialect`](self)), decide what it does, plan against the catalog as it is
//! now, run. DataFusion plans and runs queries; changes of rows go through `hypr_storage::Table`, so that
//! durability and uniqueness have one home.
//!
//! Invariants: only this crate plans SQL; no state is kept between statements but what the store keeps; every
//! error that leaves is a [`hypr_common::Error`] fit for a client.
//! Deliberately absent: network protocols, model arithmetic, files.

pub mod ai;
mod alter;
mod call;
mod catalog;
mod convert;
pub mod copy;
mod ddl;
mod dialect;
mod dml;
mod engine;
mod error;
mod extensions;
mod functions;
mod index_ddl;
mod ingest;
mod lifecycle;
mod limits;
mod models;
mod partitions;
mod planned;
mod planner;
mod prefixes;
mod prepared;
mod rules;
mod search;
mod series;
mod session;
mod settings;
mod shape;
mod sql_functions;
mod statement;
mod statement_state;
mod transaction;
mod vector_search;
mod versions;
mod views;

pub use ai::{AiMetrics, AiOptions};
pub use dialect::split::{ScriptStatement, is_incomplete, split_statements};
pub use engine::{QueryEngine, QueryOptions};
pub use error::from_datafusion;
pub use limits::Limits;
pub use partitions::Partitions;
pub use series::{SERIES_TICK, SeriesHandle, start_series_service};
pub use session::Session;
pub use settings::Settings;
pub use statement::{IngestMode, Outcome, Prepared, StatementKind, TableInfo, TableRef};

/// The name of the one catalog.
pub const CATALOG: &str = "hyprstream";
/// The schema of names that give none.
pub const DEFAULT_SCHEMA: &str = "public";
