//! Running sequences: what is scheduled into a pass and what becomes of its logits.

use std::sync::Arc;

use hypr_common::{Error, Result};
use hypr_tensor::Kernels;

use super::{GenerateJob, Reply, guarded};
use crate::api::{FinishReason, Generation, Token};
use crate::kv_cache::{KvCache, KvPrecision};
use crate::model::Model;
use crate::prompt;
use crate::sampler::Sampler;
use crate::tokenizer::TextStream;
use crate::transformer::{Chunk, Workspace};

/// Prompt tokens in one pass: enough for full speed, few enough that running sequences do not stall.
const PASS_TOKENS: usize = 512;

/// One request that is being generated.
#[derive(Debug)]
pub(super) struct Sequence {
    model: Arc<Model>,
    reply: Option<Reply>,
    cache: KvCache,
    /// Tokens that the network has not seen: the rest of the prompt, or the last generated token.
    pending: Vec<u32>,
    sampler: Sampler,
    output: TextStream,
    text: String,
    max_tokens: usize,
    prompt_tokens: usize,
    completion_tokens: usize,
    context_passages_used: usize,
}

impl Sequence {
    /// Builds the prompt of a request.
    pub fn start(job: GenerateJob, model: Arc<Model>) -> std::result::Result<Self, (Reply, Error)> {
        let GenerateJob { ticket, request, reply, .. } = job;
        drop(ticket);
        let built = match guarded(|| prompt::build(&model, &request)) {
            Ok(built) => built,
            Err(error) => return Err((reply, error)),
        };
        Ok(Self {
            cache: model.transformer().new_cache(KvPrecision::F16),
            sampler: Sampler::new(request.sampling, &built.tokens),
            output: TextStream::new(request.stop),
            text: String::new(),
            max_tokens: request.max_tokens,
            prompt_tokens: built.tokens.len(),
            completion_tokens: 0,
            context_passages_used: built.context_passages_used,
            pending: built.tokens,
            reply: Some(reply),
            model,
        })
    }

    /// Whether nobody waits for it, or it has been answered.
    pub fn is_over(&self) -> bool {
        self.reply.as_ref().is_none_or(Reply::is_abandoned)
    }

    /// Ends it with an error.
    pub fn fail(&mut self, error: Error) {
        if let Some(reply) = self.reply.take() {
            reply.fail(error);
        }
    }

    /// Takes the logits after its last token: chooses the next, and ends where it must.
    fn postprocess(&mut self, logits: &mut [f32]) -> Result<()> {
        if self.max_tokens == 0 {
            return self.finish(None, FinishReason::Length);
        }
        let token = self.sampler.sample(logits);
        self.completion_tokens += 1;
        if self.model.config().eos_token_ids.contains(&token) {
            return self.finish(None, FinishReason::Stop);
        }
        let text = self.output.push(self.model.tokenizer(), token)?;
        if self.output.stopped() {
            return self.finish(Some(Token { text, id: token }), FinishReason::Stop);
        }
        let length = self.cache.tokens() + 1;
        if self.completion_tokens >= self.max_tokens || length >= self.model.transformer().max_positions() {
            return self.finish(Some(Token { text, id: token }), FinishReason::Length);
        }
        self.emit(Token { text, id: token });
        self.pending.push(token);
        Ok(())
    }

    fn emit(&mut self, token: Token) {
        let reader_is_gone = match &mut self.reply {
            Some(Reply::Stream(sender)) => sender.try_send(Ok(token)).is_err(),
            _ => {
                self.text.push_str(&token.text);
                false
            }
        };
        if reader_is_gone {
            self.reply = None;
        }
    }

    /// Sends the last token with what was held back, and the answer.
    fn finish(&mut self, last: Option<Token>, finish_reason: FinishReason) -> Result<()> {
        let rest = if self.output.stopped() { String::new() } else { self.output.finish(self.model.tokenizer())? };
        match last {
            Some(mut token) => {
                token.text.push_str(&rest);
                self.emit(token);
            }
            None if rest.is_empty() => {}
            None => {
                let id = self.model.config().eos_token_ids.first().copied().unwrap_or(0);
                self.emit(Token { text: rest, id });
            }
        }
        if let Some(Reply::Whole(sender)) = self.reply.take() {
            // A caller that is gone needs no answer.
            let _ = sender.send(Ok(Generation {
                text: std::mem::take(&mut self.text),
                finish_reason,
                prompt_tokens: self.prompt_tokens,
                completion_tokens: self.completion_tokens,
                context_passages_used: self.context_passages_used,
                model_version: self.model.tables().version,
            }));
        }
        Ok(())
    }
}

/// The sequences of one pass, by place in the running list, and how many of its pending tokens each may run.
#[derive(Debug, Default)]
pub(super) struct Pass {
    pub members: Vec<(usize, usize)>,
}

/// Chooses what runs next: every sequence of one model that decodes, then pieces of prompts in order of arrival.
/// `turn` goes from pass to pass, so that models take turns.
pub(super) fn schedule(running: &[Sequence], turn: usize) -> Pass {
    let mut pass = Pass::default();
    if running.is_empty() {
        return pass;
    }
    let model = &running[turn % running.len()].model;
    let own = || running.iter().enumerate().filter(|(_, sequence)| Arc::ptr_eq(&sequence.model, model));
    pass.members.extend(own().filter(|(_, sequence)| sequence.pending.len() == 1).map(|(at, _)| (at, 1)));
    let mut left = PASS_TOKENS;
    for (at, sequence) in own().filter(|(_, sequence)| sequence.pending.len() > 1) {
        let tokens = sequence.pending.len().min(left);
        if tokens == 0 {
            break;
        }
        pass.members.push((at, tokens));
        left -= tokens;
    }
    pass.members.sort_unstable();
    pass
}

/// Runs a pass and postprocesses it. An error of the whole pass is returned; one of a sequence goes to its caller.
pub(super) fn run(pass: &Pass, running: &mut [Sequence], kernels: &Kernels, work: &mut Workspace) -> Result<()> {
    let mut members: Vec<&mut Sequence> = Vec::with_capacity(pass.members.len());
    let mut rest = &mut running[..];
    let mut first = 0;
    for &(at, _) in &pass.members {
        let Some((member, after)) = rest.split_at_mut(at - first).1.split_first_mut() else { break };
        members.push(member);
        rest = after;
        first = at + 1;
    }
    let Some(model) = members.first().map(|member| Arc::clone(&member.model)) else { return Ok(()) };
    let mut batch: Vec<Chunk<'_>> = members
        .iter_mut()
        .zip(&pass.members)
        .map(|(member, &(_, tokens))| Chunk {
            tokens: &member.pending[..tokens],
            logits: tokens == member.pending.len(),
            cache: Some(&mut member.cache),
        })
        .collect();
    model.transformer().forward(kernels, &mut batch, work)?;
    drop(batch);
    let mut rows = work.logits_mut().chunks_exact_mut(model.config().vocab_size);
    for (member, &(_, tokens)) in members.into_iter().zip(&pass.members) {
        member.pending.drain(..tokens);
        if member.pending.is_empty()
            && let Some(logits) = rows.next()
            && let Err(error) = member.postprocess(logits)
        {
            member.fail(error);
        }
    }
    Ok(())
}
