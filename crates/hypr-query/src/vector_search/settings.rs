//! What a session sets with `SET`: how wide its searches look (`SET hnsw.ef_search = 100`), and whether it takes answers
//! of models from the cache (`SET ai.cache = off`).
//!
//! The settings lie in the session's configuration, which its clones share, so that a `SET` counts from the next
//! statement on and until the session ends.

use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::prelude::SessionConfig;
use datafusion::sql::parser::{ResetStatement, Statement};
use datafusion::sql::sqlparser::ast::{ContextModifier, Expr, ObjectName, Set, Statement as Sql, Value};
use hypr_common::{Error, Result};
use hypr_storage::ann::Effort;

use crate::{Outcome, Session};

/// What can be set, by the names of pgvector and of Lance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    EfSearch,
    Nprobes,
    RefineFactor,
    AiCache,
}

/// Names, what they set, and the largest value.
const SETTINGS: [(&str, Setting, usize); 5] = [
    ("hnsw.ef_search", Setting::EfSearch, 100_000),
    ("ivf.nprobes", Setting::Nprobes, 1_000_000),
    ("ivf.refine_factor", Setting::RefineFactor, 1000),
    ("ivfflat.probes", Setting::Nprobes, 1_000_000),
    ("ai.cache", Setting::AiCache, AI_CACHE_OFF),
];

/// The values of `ai.cache`, which SQL spells `on` and `off`.
const AI_CACHE_ON: usize = 1;
const AI_CACHE_OFF: usize = 2;

/// The settings of one session; 0 where nothing is set.
#[derive(Debug, Default)]
pub(crate) struct SearchSettings {
    ef_search: AtomicUsize,
    nprobes: AtomicUsize,
    refine_factor: AtomicUsize,
    ai_cache: AtomicUsize,
}

impl SearchSettings {
    fn slot(&self, setting: Setting) -> &AtomicUsize {
        match setting {
            Setting::EfSearch => &self.ef_search,
            Setting::Nprobes => &self.nprobes,
            Setting::RefineFactor => &self.refine_factor,
            Setting::AiCache => &self.ai_cache,
        }
    }

    fn effort(&self) -> Effort {
        let value = |setting| Some(self.slot(setting).load(Ordering::Relaxed)).filter(|value| *value > 0);
        Effort {
            ef_search: value(Setting::EfSearch),
            nprobes: value(Setting::Nprobes),
            refine_factor: value(Setting::RefineFactor),
        }
    }

    /// What the session of `config` has set.
    pub(crate) fn of(config: &SessionConfig) -> Effort {
        config.get_extension::<Self>().map_or_else(Effort::default, |settings| settings.effort())
    }

    /// Whether the session of `config` has set anything.
    pub(crate) fn is_changed(config: &SessionConfig) -> bool {
        let settings = config.get_extension::<Self>();
        settings.is_some_and(|settings| {
            SETTINGS.iter().any(|(_, setting, _)| settings.slot(*setting).load(Ordering::Relaxed) != 0)
        })
    }

    /// Whether the session of `config` takes answers of models from the cache and leaves its own there.
    pub(crate) fn keeps_answers(config: &SessionConfig) -> bool {
        let settings = config.get_extension::<Self>();
        settings.is_none_or(|settings| settings.ai_cache.load(Ordering::Relaxed) != AI_CACHE_OFF)
    }
}

/// `SET name = value`, or with no value `RESET name` and `SET name = DEFAULT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetSearch {
    setting: Setting,
    value: Option<usize>,
}

impl SetSearch {
    /// The statement, if it sets something.
    ///
    /// # Errors
    /// `Unsupported` for a name that cannot be set, `InvalidInput` for a value out of bounds.
    pub(crate) fn of(statement: &Statement) -> Result<Option<Self>> {
        let (scope, name, value) = match statement {
            Statement::Statement(sql) => match sql.as_ref() {
                Sql::Set(Set::SingleAssignment { scope, hivevar: false, variable, values }) => {
                    match values.as_slice() {
                        [value] => (*scope, variable, Some(value)),
                        _ => return Err(Error::invalid(format!("SET {variable} takes one value"))),
                    }
                }
                Sql::Set(set) if !matches!(set, Set::SetTransaction { .. }) => {
                    return Err(Error::unsupported(format!("SET is not available in this form; there is {}", known())));
                }
                _ => return Ok(None),
            },
            Statement::Reset(ResetStatement::Variable(name)) => (None, name, None),
            _ => return Ok(None),
        };
        let Some((name, setting, most)) = named(name) else {
            let verb = if value.is_some() { "SET" } else { "RESET" };
            return Err(Error::unsupported(format!("{verb} is not available for {name}; there is {}", known())));
        };
        if matches!(scope, Some(ContextModifier::Local)) {
            let message =
                format!("SET LOCAL {name} has no use: inside a transaction every row is compared; leave LOCAL out");
            return Err(Error::unsupported(message));
        }
        let value = match value {
            None => None,
            Some(Expr::Identifier(word)) if word.value.eq_ignore_ascii_case("default") => None,
            Some(value) if setting == Setting::AiCache => Some(on_or_off(name, value)?),
            Some(value) => match number(value).filter(|number| (1..=most).contains(number)) {
                Some(number) => Some(number),
                None => return Err(Error::invalid(format!("{name} is a whole number from 1 to {most}, not {value}"))),
            },
        };
        Ok(Some(Self { setting, value }))
    }

    /// Sets it for the session.
    ///
    /// # Errors
    /// `Unsupported` where nothing is kept between statements.
    pub(crate) fn run(&self, session: &Session) -> Result<Outcome> {
        if !session.scope.lasts() {
            return Err(Error::unsupported(
                "SET needs a session that lasts: let the client keep cookies (ADBC: \
                 adbc.flight.sql.rpc.with_cookie_middleware=true)",
            ));
        }
        let settings = session.state.config().get_extension::<SearchSettings>();
        let settings = settings.ok_or_else(|| Error::internal("the session has no settings of searches"))?;
        settings.slot(self.setting).store(self.value.unwrap_or(0), Ordering::Relaxed);
        Ok(Outcome::Affected(0))
    }
}

fn named(name: &ObjectName) -> Option<(&'static str, Setting, usize)> {
    let name = name.to_string().replace('"', "");
    SETTINGS.into_iter().find(|(known, ..)| known.eq_ignore_ascii_case(&name))
}

fn known() -> String {
    SETTINGS.map(|(name, ..)| name).join(", ")
}

fn on_or_off(name: &str, value: &Expr) -> Result<usize> {
    let word = value.to_string();
    match word.trim_matches('\'').to_ascii_lowercase().as_str() {
        "on" | "true" | "1" => Ok(AI_CACHE_ON),
        "off" | "false" | "0" => Ok(AI_CACHE_OFF),
        _ => Err(Error::invalid(format!("{name} is on or off, not {value}"))),
    }
}

/// A whole number, written as one or, as some clients do, in quotation marks.
fn number(value: &Expr) -> Option<usize> {
    let Expr::Value(value) = value else { return None };
    match &value.value {
        Value::Number(digits, _) | Value::SingleQuotedString(digits) => digits.parse().ok(),
        _ => None,
    }
}
