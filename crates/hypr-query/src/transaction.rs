//! Transactions of a session: `BEGIN`, `COMMIT`, `ROLLBACK` and savepoints as SQL, and what a statement inside one
//! may do.
//!
//! A session either commits every statement on its own, or is *inside* a transaction: its catalog is the
//! transaction's, so that whatever plans against the catalog reads and writes there. A statement inside that fails
//! takes back its own changes only; the transaction goes on.

use std::fmt;
use std::sync::Arc;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Ident, Set, Statement as Sql, TransactionAccessMode, TransactionIsolationLevel, TransactionMode,
};
use hypr_common::{Error, ErrorKind, Result};
use hypr_storage::{Mark, SavepointRef, Transaction};
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::dialect::ddl::normalize;
use crate::prepared::Action;
use crate::vector_search::settings::SearchSettings;
use crate::{Outcome, Session};

/// Which transactions a session's SQL may begin and end.
#[derive(Clone)]
pub(crate) enum Scope {
    /// Those of the slot, which every clone of the session shares.
    Session(Arc<Mutex<Option<Arc<Transaction>>>>),
    /// None: the caller keeps nothing between statements.
    Statement,
    /// The caller began this one, and ends it.
    Caller(Arc<Transaction>),
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session(_) => "session",
            Self::Statement => "statement",
            Self::Caller(_) => "caller",
        })
    }
}

impl Scope {
    /// True where what a statement sets is there for the next one.
    pub(crate) fn lasts(&self) -> bool {
        !matches!(self, Self::Statement)
    }

    /// The transaction to run the next statement in.
    pub(crate) fn current(&self) -> Option<Arc<Transaction>> {
        match self {
            Self::Session(slot) => slot.lock().clone(),
            Self::Statement => None,
            Self::Caller(transaction) => Some(Arc::clone(transaction)),
        }
    }
}

/// A statement about transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    Begin { read_only: bool },
    Commit,
    Rollback,
    Savepoint(String),
    RollbackTo(String),
    Release(String),
}

impl Control {
    /// The statement, if it is one about transactions.
    ///
    /// # Errors
    /// `Unsupported` for modes that there are not.
    pub(crate) fn of(statement: &Sql) -> Result<Option<Self>> {
        let name = |name: &Ident| normalize(name);
        Ok(Some(match statement {
            Sql::StartTransaction {
                modes,
                modifier: None,
                statements,
                exception: None,
                has_end_keyword: false,
                ..
            } if statements.is_empty() => Self::Begin { read_only: read_only(modes)? },
            Sql::StartTransaction { .. } => return Err(Error::unsupported("BEGIN takes no block of statements")),
            Sql::Commit { chain: false, modifier: None, .. } => Self::Commit,
            Sql::Rollback { chain: false, savepoint: None } => Self::Rollback,
            Sql::Rollback { chain: false, savepoint: Some(savepoint) } => Self::RollbackTo(name(savepoint)),
            Sql::Commit { .. } | Sql::Rollback { .. } => {
                return Err(Error::unsupported("AND CHAIN is not available; use BEGIN"));
            }
            Sql::Savepoint { name: savepoint } => Self::Savepoint(name(savepoint)),
            Sql::ReleaseSavepoint { name: savepoint } => Self::Release(name(savepoint)),
            Sql::Set(Set::SetTransaction { .. }) => {
                return Err(Error::unsupported("name the mode with BEGIN, as in BEGIN READ ONLY"));
            }
            _ => return Ok(None),
        }))
    }
}

/// Every level up to the one that there is gets that one, as the SQL standard allows.
fn read_only(modes: &[TransactionMode]) -> Result<bool> {
    let mut read_only = false;
    for mode in modes {
        match mode {
            TransactionMode::AccessMode(mode) => read_only = *mode == TransactionAccessMode::ReadOnly,
            TransactionMode::IsolationLevel(TransactionIsolationLevel::Serializable) => {
                return Err(Error::unsupported(
                    "SERIALIZABLE is not available; transactions are REPEATABLE READ (snapshot isolation)",
                ));
            }
            TransactionMode::IsolationLevel(_) => {}
        }
    }
    Ok(read_only)
}

impl Session {
    /// A session for one statement: `BEGIN` is refused, as what it begins would be lost.
    #[must_use]
    pub fn for_one_statement(mut self) -> Self {
        self.scope = Scope::Statement;
        self
    }

    /// A session inside `transaction`, which the caller ends.
    #[must_use]
    pub fn inside(mut self, transaction: Arc<Transaction>) -> Self {
        self.scope = Scope::Caller(transaction);
        self
    }

    /// The open transaction, if the next statement would run inside one.
    pub fn transaction(&self) -> Option<Arc<Transaction>> {
        self.scope.current()
    }

    /// Whether something would be lost if the next statement of the client ran in a new session.
    pub fn has_state(&self) -> bool {
        self.transaction().is_some() || SearchSettings::is_changed(self.state.config())
    }

    /// Runs a statement about transactions.
    pub(crate) async fn control(&self, control: &Control) -> Result<Outcome> {
        match (control, self.scope.current()) {
            (Control::Begin { read_only }, None) => self.begin(*read_only)?,
            (Control::Begin { .. }, Some(_)) => {
                return Err(Error::invalid("a transaction is open already; COMMIT or ROLLBACK it first"));
            }
            (Control::Commit | Control::Rollback, Some(_)) => self.end(control).await?,
            (Control::Savepoint(name), Some(open)) => {
                let _turn = open.turn().await;
                open.savepoint(name)?;
            }
            (Control::RollbackTo(name), Some(open)) => {
                let _turn = open.turn().await;
                open.rollback_to(SavepointRef::Name(name))?;
            }
            (Control::Release(name), Some(open)) => {
                let _turn = open.turn().await;
                open.release(SavepointRef::Name(name))?;
            }
            (_, None) => return Err(Error::invalid("no transaction is open; BEGIN one first (SQLSTATE 25P01)")),
        }
        Ok(Outcome::Affected(0))
    }

    fn begin(&self, read_only: bool) -> Result<()> {
        match &self.scope {
            Scope::Session(slot) => {
                *slot.lock() = Some(Arc::new(self.engine().database().begin(read_only)));
                Ok(())
            }
            Scope::Statement | Scope::Caller(_) => Err(Error::unsupported(
                "BEGIN needs a session that lasts: let the client keep cookies (ADBC: \
                 adbc.flight.sql.rpc.with_cookie_middleware=true), or begin the transaction through the driver \
                 (ADBC: autocommit off; Flight SQL: BeginTransaction)",
            )),
        }
    }

    async fn end(&self, control: &Control) -> Result<()> {
        let Scope::Session(slot) = &self.scope else {
            return Err(Error::invalid("the client's driver began this transaction; end it there"));
        };
        let Some(open) = slot.lock().take() else { return Ok(()) };
        let _turn = open.turn().await;
        if *control == Control::Commit {
            return open.commit().await;
        }
        open.rollback();
        Ok(())
    }

    /// This session as it is for the next statement.
    pub(crate) fn now(&self) -> Result<Self> {
        let Some(transaction) = self.scope.current() else {
            return Ok(self.clone());
        };
        transaction.check()?;
        let mut session = self.clone();
        session.catalog = self.catalog.inside(transaction);
        let mut state = (*self.state).clone();
        state.register_catalog_list(Arc::new(session.catalog.clone()));
        session.state = Arc::new(state);
        Ok(session)
    }

    /// Waits until no other statement of the transaction changes something.
    pub(crate) async fn begin_statement(&self) -> Result<Option<OpenStatement>> {
        let Some(transaction) = self.catalog.transaction() else {
            return Ok(None);
        };
        let turn = Arc::clone(transaction).turn().await;
        transaction.check_writable()?;
        let mark = transaction.mark()?;
        Ok(Some(OpenStatement { transaction: Arc::clone(transaction), mark, done: false, _turn: turn }))
    }
}

/// A statement that changes something inside a transaction. Dropped before it is done, its changes are undone.
pub(crate) struct OpenStatement {
    transaction: Arc<Transaction>,
    mark: Mark,
    done: bool,
    _turn: OwnedMutexGuard<()>,
}

impl OpenStatement {
    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for OpenStatement {
    fn drop(&mut self) {
        if !self.done {
            self.transaction.undo_to(&self.mark);
        }
    }
}

/// Refuses what a transaction could not take back.
pub(crate) fn check_inside(action: &Action, statement: &Statement) -> Result<()> {
    let allowed = matches!(
        action,
        Action::Query
            | Action::Change(_)
            | Action::CreateTable(_)
            | Action::Drop { views: false, .. }
            | Action::Control(_)
            | Action::Set(_)
    );
    if allowed {
        return Ok(());
    }
    let text = statement.to_string();
    let words: Vec<&str> = text.split_whitespace().take(2).collect();
    let message = format!("{} is not available inside a transaction; COMMIT first", words.join(" "));
    Err(Error::new(ErrorKind::Unsupported, message))
}
