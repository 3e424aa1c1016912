//! `CALL save_prefix(name, prompt, ..)`, `CALL restore_prefix(name)`, `CALL drop_prefix(name)`: what a model has computed
//! of the beginning of a prompt, kept on disk for later processes.
//!
//! The arguments are those of `generate_response`, with any expression without a parameter. The engine computes and
//! takes the prefix, the store keeps it; here they meet, and here what older weights made is dropped.

use std::sync::Arc;

use arrow_array::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::Statement as Sql;
use futures::FutureExt;
use futures::future::BoxFuture;
use hypr_common::clock::{Clock, SystemClock};
use hypr_common::{Error, ErrorKind, Result};
use hypr_inference::api::{Inference, Task};
use hypr_storage::{PrefixStore, SavedPrefix};

use crate::call::{Arguments, text_of};
use crate::{Outcome, Session, ai, error};

/// What is done with a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Save,
    Restore,
    Drop,
}

/// One such statement.
#[derive(Clone, Debug)]
pub(crate) struct PrefixStatement {
    verb: Verb,
    arguments: Arguments,
}

impl PrefixStatement {
    /// The statement, if it is one.
    ///
    /// # Errors
    /// `InvalidInput` for arguments that are no expressions.
    pub(crate) fn of(statement: &Sql) -> Result<Option<Self>> {
        let Some((name, arguments)) = Arguments::of_call(statement) else { return Ok(None) };
        let verb = match name.as_str() {
            "save_prefix" => Verb::Save,
            "restore_prefix" => Verb::Restore,
            "drop_prefix" => Verb::Drop,
            _ => return Ok(None),
        };
        let fits = |arguments: &Arguments| match verb {
            Verb::Save => arguments.args.len() >= 2,
            Verb::Restore | Verb::Drop => arguments.args.len() == 1 && arguments.options.is_empty(),
        };
        match arguments.filter(fits) {
            Some(arguments) => Ok(Some(Self { verb, arguments })),
            None => Err(usage(verb)),
        }
    }

    /// Runs it; as many rows are affected as there are tokens.
    ///
    /// # Errors
    /// Those of the engine and of the store.
    pub(crate) fn run<'a>(&'a self, session: &'a Session) -> BoxFuture<'a, Result<Outcome>> {
        // A type of its own: the arguments are a statement that is run inside this one.
        self.run_in(session).boxed()
    }

    async fn run_in(&self, session: &Session) -> Result<Outcome> {
        let engine = session.engine();
        let (store, inference) = (engine.prefixes(), engine.inference());
        let values = self.arguments.values(session).await?;
        let name = text_of(&values, 0)?.ok_or_else(|| Error::invalid("the name of a prefix is NULL"))?;
        match self.verb {
            Verb::Save => {
                let request = self.request(&values)?;
                let prefix = inference.prefix(request).await?;
                let saved = store.save(&name, &prefix, SystemClock.now_us())?;
                current(store, inference.as_ref())?;
                Ok(Outcome::Affected(saved.tokens.len() as u64))
            }
            Verb::Restore => match inference.restore_prefix(store.load(&name)?).await {
                Ok(tokens) => Ok(Outcome::Affected(tokens as u64)),
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    // Perhaps only the kernels are others; those of older weights are of no use to anybody.
                    current(store, inference.as_ref())?;
                    Err(error)
                }
                Err(error) => Err(error),
            },
            Verb::Drop => {
                store.remove(&name)?;
                Ok(Outcome::Affected(0))
            }
        }
    }

    fn request(&self, values: &RecordBatch) -> Result<hypr_inference::GenerateRequest> {
        let Arguments { args, options: named } = &self.arguments;
        let texts = (1..args.len()).map(|at| text_of(values, at)).collect::<Result<Vec<_>>>()?;
        let mut texts = texts.into_iter();
        let Some(prompt) = texts.next().flatten() else {
            return Err(Error::invalid("the prompt of save_prefix is NULL"));
        };
        let mut options = Vec::with_capacity(named.len());
        for (at, (name, _)) in named.iter().enumerate() {
            let column = values.column(args.len() + at);
            let value = ScalarValue::try_from_array(column, 0).map_err(error::from_datafusion)?;
            options.push((name.as_str(), value));
        }
        ai::request_of(prompt, texts.flatten().collect(), &options)
    }
}

fn usage(verb: Verb) -> Error {
    Error::invalid(match verb {
        Verb::Save => "write CALL save_prefix('name', prompt [, passage, ..] [, option => value, ..])",
        Verb::Restore => "write CALL restore_prefix('name')",
        Verb::Drop => "write CALL drop_prefix('name')",
    })
}

/// The saved prefixes that today's weights would compute; others are deleted.
///
/// # Errors
/// Those of the store.
pub(crate) fn current(store: &Arc<PrefixStore>, inference: &dyn Inference) -> Result<Vec<SavedPrefix>> {
    store.retain(|origin| match inference.identity(Task::Generate, Some(&origin.model_id)) {
        Ok(Some(now)) => now.version == origin.model_version && now.adapter_version == origin.adapter_version,
        // Unknown, or not to be told: only what is known to be stale goes.
        Ok(None) => true,
        Err(error) => error.kind() != ErrorKind::NotFound,
    })
}
