//! Sessions of clients that keep cookies: settings, and the transaction that `BEGIN` opened.
//!
//! The cookie `arrow_flight_session_id` names a session. It is offered with the first answer and costs nothing
//! until the client sets something, which makes it a session *with state*: its name then ends in `.s`, so that a
//! client whose state was lost, by a restart or by time, is told so instead of going on with defaults and
//! committing every statement on its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypr_common::{Error, ErrorKind, Result};
use hypr_query::{Session, Settings};
use parking_lot::Mutex;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::HyprFlightSql;
use super::session_options::{SessionOptionValue, SetError};
use crate::http::ConnectionId;

/// The cookie's name, as other Flight implementations call it.
const COOKIE: &str = "arrow_flight_session_id";
/// Sessions with state, over all clients.
const MAX_SESSIONS: usize = 16_384;
/// A session that was not used for this long is forgotten.
const SESSION_IDLE: Duration = Duration::from_secs(24 * 3600);
const STATEFUL: &str = ".s";

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Entry>>);

#[derive(Clone, Debug)]
struct Entry {
    /// Clones share the open transaction.
    session: Session,
    settings: Settings,
    used_at: Instant,
}

/// Who a request comes from; travels with the request.
#[derive(Debug)]
pub(super) struct Client {
    session: Session,
    /// Name of the session without its mark; `None` when the client sent no cookie.
    name: Option<String>,
    settings: Settings,
    connection: Option<ConnectionId>,
}

impl Client {
    pub(super) fn session(&self) -> Session {
        self.session.clone()
    }

    pub(super) fn connection(&self) -> Option<ConnectionId> {
        self.connection
    }

    pub(super) fn statement_timeout(&self) -> Option<Duration> {
        self.settings.statement_timeout
    }
}

impl Sessions {
    fn get(&self, name: &str) -> Option<Entry> {
        let mut sessions = self.0.lock();
        let entry = sessions.get_mut(name)?;
        entry.used_at = Instant::now();
        Some(entry.clone())
    }

    fn put(&self, name: &str, session: Session, settings: Settings) -> Result<()> {
        let now = Instant::now();
        let mut sessions = self.0.lock();
        if sessions.len() >= MAX_SESSIONS && !sessions.contains_key(name) {
            let message = format!("{MAX_SESSIONS} sessions are open; close those that are done");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        sessions.insert(name.to_owned(), Entry { session, settings, used_at: now });
        Ok(())
    }

    fn is_known(&self, name: &str) -> bool {
        self.0.lock().contains_key(name)
    }

    /// Rolls back transactions that were left alone, and forgets sessions that were left alone for long.
    pub(super) fn expire(&self, now: Instant, transaction_idle: Duration) {
        self.0.lock().retain(|_, entry| {
            let idle = now.saturating_duration_since(entry.used_at);
            let transaction = entry.session.transaction();
            if let Some(open) = transaction.filter(|open| idle > transaction_idle && open.is_used()) {
                // One owner is the session, one is here; a third is a statement that runs.
                if Arc::strong_count(&open) <= 2 {
                    tracing::warn!("rolled back a transaction that its client left");
                    open.rollback();
                }
            }
            idle <= SESSION_IDLE
        });
    }
}

impl HyprFlightSql {
    /// Finds out whose request this is, and notes it there.
    ///
    /// # Errors
    /// `Unauthenticated` for a session that had state and is gone; the cookie is then taken back.
    pub(super) fn enter<T>(&self, request: &mut Request<T>) -> Result<Arc<Client>, Status> {
        let connection = request.extensions().get::<ConnectionId>().copied();
        let cookie = cookie_of(request.metadata());
        let name = cookie.as_deref().map(|cookie| cookie.strip_suffix(STATEFUL).unwrap_or(cookie).to_owned());
        let known = name.as_deref().and_then(|name| self.sessions.get(name));
        let client = match (known, name) {
            (Some(Entry { session, settings, .. }), name) => Client { session, name, settings, connection },
            (None, Some(_)) if cookie.as_deref().is_some_and(|cookie| cookie.ends_with(STATEFUL)) => {
                let mut gone = Status::unauthenticated(
                    "this session is gone, with its settings and its open transaction: the server was restarted or the \
                     session was closed; connect again",
                );
                set_cookie(gone.metadata_mut(), "gone; Max-Age=0");
                return Err(gone);
            }
            (None, Some(name)) => {
                Client { session: self.session(), name: Some(name), settings: Settings::default(), connection }
            }
            (None, None) => {
                Client { session: self.visitor.clone(), name: None, settings: Settings::default(), connection }
            }
        };
        let client = Arc::new(client);
        request.extensions_mut().insert(Arc::clone(&client));
        Ok(client)
    }

    /// Keeps a session that has come to have state, and tells the client its name.
    pub(super) fn leave<T>(&self, client: &Client, answer: Result<Response<T>, Status>) -> Result<Response<T>, Status> {
        let cookie = match &client.name {
            None => Some(Uuid::now_v7().to_string()),
            Some(name) if client.session.has_state() && !self.sessions.is_known(name) => {
                self.sessions.put(name, client.session(), client.settings.clone()).map_err(crate::error::to_status)?;
                Some(format!("{name}{STATEFUL}"))
            }
            Some(_) => None,
        };
        let Some(cookie) = cookie else { return answer };
        match answer {
            Ok(mut response) => {
                offer(response.metadata_mut(), &cookie);
                Ok(response)
            }
            Err(mut status) => {
                offer(status.metadata_mut(), &cookie);
                Err(status)
            }
        }
    }

    /// Sets options of the client's session and answers which could not be set, and the session's cookie.
    pub(super) fn set_session_options(
        &self,
        client: &Client,
        options: &HashMap<String, SessionOptionValue>,
    ) -> Result<(BTreeMap<String, SetError>, String)> {
        let name = client.name.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
        let mut settings = client.settings.clone();
        let mut failed = BTreeMap::new();
        for (option, value) in options {
            if let Err(error) = super::session_options::set(&mut settings, option, value) {
                failed.insert(option.clone(), error);
            }
        }
        // A session without a cookie could not keep a transaction; this one can.
        let base = if client.name.is_some() { client.session() } else { self.session() };
        let session = base.with_settings(&settings)?;
        self.sessions.put(&name, session, settings)?;
        Ok((failed, format!("{name}{STATEFUL}")))
    }

    pub(super) fn session_options(&self, client: &Client) -> HashMap<String, SessionOptionValue> {
        super::session_options::shown(&client.settings)
    }

    /// Forgets the client's session; its open transaction is rolled back. False when it had none.
    pub(super) fn close_session(&self, client: &Client) -> bool {
        if let Some(open) = client.session.transaction() {
            open.rollback();
        }
        client.name.as_deref().is_some_and(|name| self.sessions.0.lock().remove(name).is_some())
    }
}

/// Whose request this is, as [`HyprFlightSql::enter`] noted.
pub(super) fn client_of<T>(request: &Request<T>) -> Result<Arc<Client>, Status> {
    request
        .extensions()
        .get::<Arc<Client>>()
        .cloned()
        .ok_or_else(|| Status::internal("a request came without its client"))
}

fn cookie_of(metadata: &MetadataMap) -> Option<String> {
    let all = metadata.get_all("cookie");
    let pairs = all.iter().filter_map(|value| value.to_str().ok()).flat_map(|cookies| cookies.split(';'));
    let mut values = pairs.filter_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='));
    values.find(|value| is_name(value)).map(str::to_owned)
}

/// Names are ours; whatever else stands in the cookie belongs to somebody else.
fn is_name(value: &str) -> bool {
    Uuid::parse_str(value.strip_suffix(STATEFUL).unwrap_or(value)).is_ok()
}

pub(super) fn offer(metadata: &mut MetadataMap, cookie: &str) {
    set_cookie(metadata, &format!("{cookie}; Path=/; HttpOnly"));
}

fn set_cookie(metadata: &mut MetadataMap, value: &str) {
    if let Ok(value) = MetadataValue::try_from(format!("{COOKIE}={value}")) {
        metadata.insert("set-cookie", value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(cookie: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("cookie", cookie.parse().unwrap());
        metadata
    }

    #[test]
    fn our_cookie_is_found_among_others_and_nonsense_is_not() {
        let id = Uuid::now_v7();
        let found = cookie_of(&metadata(&format!("a=b; {COOKIE}={id}.s;c=d")));
        assert_eq!(found, Some(format!("{id}.s")));
        assert_eq!(cookie_of(&metadata(&format!("{COOKIE}=gone"))), None);
        assert_eq!(cookie_of(&metadata(&format!("x{COOKIE}={id}"))), None);
        assert_eq!(cookie_of(&MetadataMap::new()), None);
    }
}
