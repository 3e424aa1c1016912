//! `CALL load_model('name' [, pin => true])`, `CALL pin_model('name')`, `CALL unpin_model('name')` and
//! `CALL unload_model('name' [, timeout_s => 30])`: which models are in memory.
//!
//! Models load themselves with their first request; these say it ahead of time, or against the order in which the engine
//! would make room. Each answers 1 where it changed something and 0 where all was as wanted. The arguments are any
//! expressions without a parameter.

use std::time::Duration;

use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::Statement as Sql;
use futures::FutureExt;
use futures::future::BoxFuture;
use hypr_common::{Error, ErrorKind, Result};

use crate::call::{Arguments, text_of};
use crate::{Outcome, Session};

/// What is done with a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Load,
    Pin,
    Unpin,
    Unload,
}

/// One such statement.
#[derive(Clone, Debug)]
pub(crate) struct ModelStatement {
    verb: Verb,
    arguments: Arguments,
}

impl ModelStatement {
    /// The statement, if it is one.
    ///
    /// # Errors
    /// `InvalidInput` for arguments that it does not take.
    pub(crate) fn of(statement: &Sql) -> Result<Option<Self>> {
        let Some((name, arguments)) = Arguments::of_call(statement) else { return Ok(None) };
        let (verb, option) = match name.as_str() {
            "load_model" => (Verb::Load, Some("pin")),
            "pin_model" => (Verb::Pin, None),
            "unpin_model" => (Verb::Unpin, None),
            "unload_model" => (Verb::Unload, Some("timeout_s")),
            _ => return Ok(None),
        };
        let fits = |arguments: &Arguments| {
            arguments.args.len() == 1 && arguments.options.iter().all(|(name, _)| Some(name.as_str()) == option)
        };
        match arguments.filter(fits) {
            Some(arguments) => Ok(Some(Self { verb, arguments })),
            None => Err(usage(verb)),
        }
    }

    /// Runs it; one row is affected where it changed something.
    ///
    /// # Errors
    /// Those of the engine; `Busy` where requests outlast the time that an unload waits for them.
    pub(crate) fn run<'a>(&'a self, session: &'a Session) -> BoxFuture<'a, Result<Outcome>> {
        // A type of its own: the arguments are a statement that is run inside this one.
        self.run_in(session).boxed()
    }

    async fn run_in(&self, session: &Session) -> Result<Outcome> {
        let values = self.arguments.values(session).await?;
        let inference = session.engine().inference();
        let model = text_of(&values, 0)?.ok_or_else(|| Error::invalid("the name of a model is NULL"))?;
        let option = match values.num_columns() {
            1 => None,
            _ => Some(ScalarValue::try_from_array(values.column(1), 0).map_err(crate::error::from_datafusion)?),
        };
        let changed = match self.verb {
            Verb::Load => inference.load_model(&model, pin(option)?).await?,
            Verb::Pin => inference.load_model(&model, true).await?,
            Verb::Unpin => inference.unpin_model(&model).await?,
            Verb::Unload => {
                let unloaded = inference.unload_model(&model);
                match seconds(option)? {
                    None => unloaded.await?,
                    Some(timeout) => tokio::time::timeout(timeout, unloaded).await.unwrap_or_else(|_| {
                        Err(Error::new(
                            ErrorKind::Busy,
                            format!(
                                "model '{model}' still answers requests after {} s; it takes no new ones, and its \
                                 memory is free when they are over",
                                timeout.as_secs_f64()
                            ),
                        ))
                    })?,
                }
            }
        };
        Ok(Outcome::Affected(u64::from(changed)))
    }
}

fn pin(option: Option<ScalarValue>) -> Result<bool> {
    match option {
        None | Some(ScalarValue::Boolean(Some(false))) => Ok(false),
        Some(ScalarValue::Boolean(Some(true))) => Ok(true),
        Some(other) => Err(Error::invalid(format!("pin is {other}; write pin => true or pin => false"))),
    }
}

fn seconds(option: Option<ScalarValue>) -> Result<Option<Duration>> {
    let Some(value) = option else { return Ok(None) };
    let wrong = || Error::invalid(format!("timeout_s is {value}; give seconds, 0 or more"));
    let seconds = value.cast_to(&arrow_schema::DataType::Float64).map_err(|_| wrong())?;
    let ScalarValue::Float64(Some(seconds)) = seconds else { return Err(wrong()) };
    Duration::try_from_secs_f64(seconds).map(Some).map_err(|_| wrong())
}

fn usage(verb: Verb) -> Error {
    Error::invalid(match verb {
        Verb::Load => "write CALL load_model('name' [, pin => true])",
        Verb::Pin => "write CALL pin_model('name')",
        Verb::Unpin => "write CALL unpin_model('name')",
        Verb::Unload => "write CALL unload_model('name' [, timeout_s => 30])",
    })
}
