//! `ai_agg`: the texts of a group become one text, also where they do not fit the model's context.
//!
//! The texts are cut into parts that the model reads whole, in order; each part is answered by the instruction, and the
//! answers are texts to combine, in order, until there is one. What a part is depends on the texts before it alone, so a
//! group that has grown at its end asks anew only for its last parts.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use hypr_common::{Error, ErrorKind};
use hypr_inference::api::GenerateRequest;

use super::answers::Caller;
use super::request::{Aggregation, Kept, Request, messages, prompt_of};
use crate::ai::answer::{Answer, Outcome};

/// The share of the context that the answer to a part may take, so that several answers fit one request.
const PARTIAL_SHARE: usize = 8;

/// One text from the texts of `job`.
pub(super) async fn aggregate(caller: &Caller, job: Aggregation) -> Outcome {
    let window = caller.inference.window(job.base.model.as_deref()).map_err(Arc::new)?;
    let asked = |instruction: &str| messages(instruction.to_owned(), job.system.as_deref());
    let mut parts = window.parts(&job.texts, &asked(&job.instruction), job.base.max_tokens).map_err(Arc::new)?;
    let partial_tokens = job.base.max_tokens.min((window.context_tokens() / PARTIAL_SHARE).max(1));
    let mut instruction = job.instruction.clone();
    while parts.len() > 1 {
        let before = parts.len();
        let texts = answers(caller, &job, &instruction, parts, partial_tokens).await?;
        if texts.is_empty() {
            return Ok(Answer::Text(Arc::from("")));
        }
        instruction = format!(
            "The paragraphs above are answers for parts of a text, in order. Combine them into one answer to: {}",
            job.instruction
        );
        parts = window.parts(&texts, &asked(&instruction), job.base.max_tokens).map_err(Arc::new)?;
        if parts.len() >= before {
            let message =
                "ai_agg does not get on: the instruction leaves too little of the model's context; shorten it";
            return Err(Arc::new(Error::new(ErrorKind::ResourceExhausted, message)));
        }
    }
    let last = parts.pop().unwrap_or_default();
    answer(caller, &job, &instruction, last, job.base.max_tokens).await
}

/// The answers for `parts`, in order, as many at a time as the operator may run.
async fn answers(
    caller: &Caller,
    job: &Aggregation,
    instruction: &str,
    parts: Vec<Vec<String>>,
    max_tokens: usize,
) -> Result<Vec<String>, Arc<Error>> {
    let asked = stream::iter(parts.into_iter().map(|part| answer(caller, job, instruction, part, max_tokens)));
    let answers: Vec<Answer> = asked.buffered(caller.options.max_in_flight.max(1)).try_collect().await?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            Answer::Text(text) if text.trim().is_empty() => None,
            Answer::Text(text) => Some(text.to_string()),
            Answer::Vector(_) => None,
        })
        .collect())
}

async fn answer(
    caller: &Caller,
    job: &Aggregation,
    instruction: &str,
    context: Vec<String>,
    max_tokens: usize,
) -> Outcome {
    let prompt = prompt_of(instruction.to_owned(), job.system.as_deref());
    let request = GenerateRequest { prompt, context, max_tokens, ..job.base.clone() };
    let kept = job.identity.as_ref().map(|identity| Kept::of(identity, &Request::Generate(request.clone())));
    caller.generation(request, kept, None).await
}
