//! `PollFlightInfo`: a statement starts, and its client asks from time to time whether it is done.
//!
//! A query is done when it is planned: its rows are computed as its endpoints are read. A statement without a result,
//! which may take long, runs on its own; its first answers carry a descriptor to ask with again. `CancelFlightInfo`
//! of such an answer stops it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{FlightDescriptor, FlightInfo, PollInfo};
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::HyprFlightSql;

/// Statements at once that somebody polls.
const MAX_POLLED: usize = 4096;
/// How long one call waits for a statement to be done before it says that it is not.
const PATIENCE: Duration = Duration::from_millis(500);
/// A statement that nobody asked about for this long is stopped, a result forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// What the command of a descriptor to ask with again holds.
#[derive(Clone, PartialEq, Message)]
struct PollHandle {
    /// Tells it from Flight SQL's commands, which are `Any`s.
    #[prost(string, tag = "15")]
    kind: String,
    #[prost(bytes = "bytes", tag = "16")]
    id: Bytes,
}

const KIND: &str = "hyprstream poll";

type Planned = Result<FlightInfo, Status>;

/// Statements that are polled, by the id in their handle.
#[derive(Debug, Default)]
pub(super) struct Polls(Mutex<HashMap<Uuid, Polled>>);

#[derive(Debug)]
struct Polled {
    run: Option<JoinHandle<Planned>>,
    asked_at: Instant,
}

impl Polls {
    fn insert(&self, run: JoinHandle<Planned>) -> Result<Uuid, Status> {
        let mut polls = self.0.lock();
        if polls.len() >= MAX_POLLED {
            run.abort();
            return Err(Status::unavailable(format!("{MAX_POLLED} statements are polled; wait for some")));
        }
        let id = Uuid::now_v7();
        polls.insert(id, Polled { run: Some(run), asked_at: Instant::now() });
        Ok(id)
    }

    /// The statement, for one caller at a time.
    fn take(&self, id: Uuid) -> Result<JoinHandle<Planned>, Status> {
        let mut polls = self.0.lock();
        let polled = polls.get_mut(&id).ok_or_else(|| {
            Status::not_found("this statement does not exist, is done, or was not asked about for too long")
        })?;
        polled.asked_at = Instant::now();
        polled.run.take().ok_or_else(|| Status::unavailable("somebody else waits for this statement; ask again"))
    }

    fn put_back(&self, id: Uuid, run: JoinHandle<Planned>) {
        match self.0.lock().get_mut(&id) {
            Some(polled) => polled.run = Some(run),
            // Cancelled meanwhile.
            None => run.abort(),
        }
    }

    /// Stops the statement of an info that [`HyprFlightSql::poll`] gave.
    pub(super) fn cancel(&self, info: &FlightInfo) -> bool {
        let Ok(id) = Uuid::from_slice(&info.app_metadata) else { return false };
        match self.0.lock().remove(&id) {
            Some(polled) => {
                polled.run.inspect(JoinHandle::abort);
                true
            }
            None => false,
        }
    }

    /// Stops everything.
    pub(super) fn stop(&self) {
        for (_, polled) in self.0.lock().drain() {
            polled.run.inspect(JoinHandle::abort);
        }
    }

    pub(super) fn expire(&self, now: Instant) {
        self.0.lock().retain(|_, polled| {
            let keep = now.saturating_duration_since(polled.asked_at) < FORGET_AFTER;
            if !keep && let Some(run) = &polled.run {
                run.abort();
            }
            keep
        });
    }
}

impl HyprFlightSql {
    /// Starts a statement, or asks about one that was started.
    pub(super) async fn poll(self: &Arc<Self>, request: Request<FlightDescriptor>) -> Result<PollInfo, Status> {
        let asked = PollHandle::decode(request.get_ref().cmd.clone()).ok().filter(|handle| handle.kind == KIND);
        let id = match asked {
            Some(handle) => {
                Uuid::from_slice(&handle.id).map_err(|_| Status::invalid_argument("this descriptor is not ours"))?
            }
            None => {
                let service = Arc::clone(self);
                let run = tokio::spawn(async move {
                    FlightService::get_flight_info(&*service, request).await.map(Response::into_inner)
                });
                self.polls.insert(run)?
            }
        };
        let mut run = self.polls.take(id)?;
        match tokio::time::timeout(PATIENCE, &mut run).await {
            Ok(done) => {
                self.polls.0.lock().remove(&id);
                let info = match done {
                    Ok(planned) => planned?,
                    Err(stopped) if stopped.is_cancelled() => {
                        return Err(Status::cancelled("the statement was cancelled"));
                    }
                    Err(_) => return Err(Status::internal("the statement failed; the server's log says why")),
                };
                Ok(PollInfo { info: Some(info), flight_descriptor: None, progress: Some(1.0), expiration_time: None })
            }
            Err(_) => {
                self.polls.put_back(id, run);
                let id = Bytes::copy_from_slice(id.as_bytes());
                let handle = PollHandle { kind: KIND.to_owned(), id: id.clone() };
                let descriptor = FlightDescriptor::new_cmd(handle.encode_to_vec());
                let info = FlightInfo::new().with_descriptor(descriptor.clone()).with_app_metadata(id);
                let forgotten = std::time::SystemTime::now() + FORGET_AFTER;
                Ok(PollInfo {
                    info: Some(info),
                    flight_descriptor: Some(descriptor),
                    progress: None,
                    expiration_time: Some(forgotten.into()),
                })
            }
        }
    }
}
