//! The service that keeps continuous aggregates up to date and deletes what retention lets go.
//!
//! It owns nothing but its pace: all that it does can be done again, and a query is right without it.

use std::sync::Arc;
use std::time::Duration;

use hypr_common::principal::Principal;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::continuous::{Scope, listings};
use super::{refresh_view, retention};
use crate::{QueryEngine, Session, TableRef};

/// How often a server looks.
pub const SERIES_TICK: Duration = Duration::from_secs(5);

/// A running service. Dropping it stops the service after what it is doing.
#[derive(Debug)]
pub struct SeriesHandle {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl SeriesHandle {
    /// Stops the service and waits for what it is doing.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the service of time series has failed");
        }
    }
}

/// Starts the service of `engine`, which looks every `tick` whether there is anything to do.
pub fn start_series_service(engine: &Arc<QueryEngine>, tick: Duration) -> SeriesHandle {
    let (stop, stopped) = watch::channel(false);
    let session = engine.session(Principal::anonymous_local());
    SeriesHandle { stop, task: tokio::spawn(run(session, tick, stopped)) }
}

async fn run(session: Session, tick: Duration, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stopped.changed() => return,
            () = tokio::time::sleep(tick) => {}
        }
        maintain(&session).await;
    }
}

/// One round: views first, so that retention finds them up to date.
async fn maintain(session: &Session) {
    for view in listings(session.catalog()) {
        let name = TableRef { schema: Some(view.schema_name.clone()), name: view.name.clone() };
        if let Err(error) = refresh_view(session, &name, Scope::Settled).await {
            tracing::error!(%error, view = %name, "a continuous aggregate was not brought up to date; it will be tried again");
        }
    }
    let now_us = session.engine().database().clock().now_us();
    for table in session.engine().database().tables() {
        let definition = table.definition();
        let name = TableRef { schema: Some(definition.schema_name.clone()), name: definition.name.clone() };
        if super::continuous::is_reserved(&definition.schema_name) {
            continue;
        }
        if let Err(error) = retention::apply(session, &name, now_us).await {
            tracing::error!(%error, table = %name, "retention was not applied; it will be tried again");
        }
    }
}
