//! Arrow Flight SQL, by hand: this file says which verb is answered where.
//!
//! | file | verbs |
//! |---|---|
//! | `statements` | run SQL: `GetFlightInfo` and `DoGet` of a statement, `DoPut` of an update |
//! | `prepared` | prepare, bind, run and close; the registry of prepared statements |
//! | `ingest` | bulk ingestion into a table |
//! | `metadata` | catalogs, schemas, tables, table types, keys |
//! | `info` | what the server can do: `SqlInfo` and XDBC types |
//! | `cancel` | running queries, and stopping them from outside |
//! | `once` | changes that return rows, and why they run once |
//! | `results` | record batches to Flight messages of a bounded size |
//!
//! Invariants: a ticket of a plain statement carries its SQL, so `DoGet` needs nothing remembered; a query
//! runs at `DoGet` and is only planned at `GetFlightInfo`, while a statement without a result runs at
//! `GetFlightInfo` and has no endpoint, so that it is done, once, when the client has its answer.
//! Deliberately absent: transactions (every statement commits on its own) and Substrait.

mod cancel;
mod info;
mod ingest;
mod metadata;
mod once;
mod prepared;
mod results;
mod service;
mod statements;

use std::pin::Pin;
use std::sync::Arc;

use arrow_flight::FlightData;
use arrow_flight::sql::metadata::{SqlInfoData, XdbcTypeInfoData};
use futures::Stream;
use hypr_common::Result;
use hypr_common::principal::Principal;
use hypr_query::{QueryEngine, Session};
use tonic::{Response, Status};

use cancel::RunningQueries;
use once::OnceTickets;
use prepared::PreparedStatements;

/// What `DoGet` answers with.
type FlightStream = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;
/// A verb's answer.
type Answer<T> = std::result::Result<Response<T>, Status>;

/// The Flight SQL service over one [`QueryEngine`].
pub struct HyprFlightSql {
    engine: Arc<QueryEngine>,
    prepared: PreparedStatements,
    running: RunningQueries,
    once: OnceTickets,
    sql_info: SqlInfoData,
    xdbc_types: XdbcTypeInfoData,
}

impl HyprFlightSql {
    /// A service that runs its statements on `engine`.
    ///
    /// # Errors
    /// `Internal` when the server's own description cannot be encoded, which is a defect.
    pub fn new(engine: Arc<QueryEngine>) -> Result<Self> {
        Ok(Self {
            sql_info: info::sql_info(&engine.function_names())?,
            xdbc_types: info::xdbc_types()?,
            engine,
            prepared: PreparedStatements::default(),
            running: RunningQueries::default(),
            once: OnceTickets::default(),
        })
    }

    /// The session a request runs in. There is no authentication yet: whoever reaches the port is the local user.
    fn session(&self) -> Session {
        self.engine.session(Principal::anonymous_local())
    }
}
