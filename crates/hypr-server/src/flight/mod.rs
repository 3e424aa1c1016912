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
//! | `transactions` | begin, end, savepoints; the registry of open transactions |
//! | `partitions` | large results in several endpoints, and their renewal |
//! | `poll` | `PollFlightInfo` |
//! | `sessions` | cookies, settings and transactions of sessions; `session_options` has their messages |
//! | `layer` | what Flight has around Flight SQL: `GetSchema`, polling, session actions |
//! | `results` | record batches to Flight messages of a bounded size |
//!
//! Invariants: a ticket of a plain statement carries its SQL, so `DoGet` needs nothing remembered; a query
//! runs at `DoGet` and is only planned at `GetFlightInfo`, while a statement without a result runs at
//! `GetFlightInfo` and has no endpoint, so that it is done, once, when the client has its answer.
//! Deliberately absent: Substrait.

mod cancel;
mod info;
mod ingest;
mod layer;
mod metadata;
mod once;
mod partitions;
mod planned;
mod poll;
mod prepared;
mod recent;
mod results;
mod service;
mod session_options;
mod sessions;
mod statements;
mod transactions;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::FlightData;
use arrow_flight::sql::metadata::{SqlInfoData, XdbcTypeInfoData};
use futures::Stream;
use hypr_common::Result;
use hypr_common::principal::Principal;
use hypr_query::{QueryEngine, Session};
use tonic::{Response, Status};

use cancel::RunningQueries;
pub use layer::HyprFlight;
use once::OnceTickets;
use partitions::SplitResults;
use planned::PlannedQueries;
use poll::Polls;
use prepared::PreparedStatements;
use sessions::Sessions;
use transactions::Transactions;

/// How often what clients left behind is looked for.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What `DoGet` answers with.
type FlightStream = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;
/// A verb's answer.
type Answer<T> = std::result::Result<Response<T>, Status>;

/// Limits of the Flight SQL service.
#[derive(Clone, Copy, Debug)]
pub struct FlightOptions {
    /// A transaction without a statement for this long is rolled back.
    pub transaction_idle: Duration,
    /// Results of about this many bytes have several endpoints, where they can.
    pub split_bytes: u64,
}

/// The Flight SQL service over one [`QueryEngine`].
pub struct HyprFlightSql {
    engine: Arc<QueryEngine>,
    /// What those who keep no cookie share: it keeps nothing between statements, so that one is enough.
    visitor: Session,
    prepared: PreparedStatements,
    running: RunningQueries,
    once: OnceTickets,
    planned: PlannedQueries,
    transactions: Transactions,
    sessions: Sessions,
    polls: Polls,
    split_results: SplitResults,
    /// Results of about this many bytes are split.
    split_bytes: u64,
    sql_info: SqlInfoData,
    xdbc_types: XdbcTypeInfoData,
}

impl HyprFlightSql {
    /// A service that runs its statements on `engine`.
    ///
    /// # Errors
    /// `Internal` when the server's own description cannot be encoded, which is a defect.
    pub fn new(engine: Arc<QueryEngine>, options: FlightOptions) -> Result<Self> {
        Ok(Self {
            sql_info: info::sql_info(&engine.function_names(), options.transaction_idle)?,
            xdbc_types: info::xdbc_types()?,
            visitor: engine.session(Principal::anonymous_local()).for_one_statement(),
            engine,
            prepared: PreparedStatements::default(),
            running: RunningQueries::default(),
            once: OnceTickets::default(),
            planned: PlannedQueries::default(),
            transactions: Transactions::new(options.transaction_idle),
            sessions: Sessions::default(),
            polls: Polls::default(),
            split_results: SplitResults::default(),
            split_bytes: options.split_bytes,
        })
    }

    /// A new session. There is no authentication yet: whoever reaches the port is the local user.
    fn session(&self) -> Session {
        self.engine.session(Principal::anonymous_local())
    }

    /// Ends and forgets what clients left behind.
    fn expire(&self, now: Instant) {
        self.transactions.expire(now);
        self.sessions.expire(now, self.transactions.idle_limit());
        self.polls.expire(now);
        self.split_results.expire(now);
    }
}
