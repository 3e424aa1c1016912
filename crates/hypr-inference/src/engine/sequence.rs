//! One request that is being answered: its tokens, its cache, and what becomes of its logits.
//!
//! Invariant: `tokens` is everything the sequence consists of, and the cache holds a beginning of it. So a sequence
//! may lose its cache at any time between two steps, and computes the same again.

use std::sync::Arc;

use hypr_common::{Error, Result};
use hypr_tensor::KvShape;

use super::fairness::Stream;
use super::{GenerateJob, Reply, Ticket, guarded};
use crate::api::{FinishReason, Generation, Token};
use crate::block_pool::{BlockPool, PrefixId};
use crate::kv_cache::{KvCache, KvPrecision};
use crate::model::Model;
use crate::prompt;
use crate::sampler::Sampler;
use crate::tokenizer::TextStream;

/// A model that is opened, and where the chains of blocks that it computes begin.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub model: Arc<Model>,
    pub root: PrefixId,
}

/// One request that is being generated.
#[derive(Debug)]
pub(super) struct Sequence {
    opened: Opened,
    reply: Option<Reply>,
    /// Its place in the bounded queue, until it first runs.
    ticket: Option<Ticket>,
    /// Whose turn it takes.
    stream: Arc<Stream>,
    priority: i32,
    arrival: u64,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// Of the first of `tokens`.
    pub cache: KvCache,
    sampler: Sampler,
    output: TextStream,
    text: String,
    max_tokens: usize,
    prompt_tokens: usize,
    completion_tokens: usize,
    context_passages_used: usize,
}

impl Sequence {
    /// Builds the prompt of a request. `arrival` numbers the requests. One that asks for no tokens is answered then.
    pub fn start(
        job: GenerateJob,
        opened: Opened,
        pool: &BlockPool,
        stream: Arc<Stream>,
        arrival: u64,
    ) -> std::result::Result<Self, (Reply, Error)> {
        let GenerateJob { ticket, request, reply, .. } = job;
        let built = match guarded(|| prompt::build(&opened.model, &request)) {
            Ok(built) => built,
            Err(error) => return Err((reply, error)),
        };
        let shape = opened.model.transformer().kv_shape(KvPrecision::F16);
        let mut sequence = Self {
            cache: KvCache::new(pool.clone(), shape),
            sampler: Sampler::new(request.sampling, &built.tokens),
            output: TextStream::new(request.stop),
            text: String::new(),
            max_tokens: request.max_tokens,
            prompt_tokens: built.tokens.len(),
            completion_tokens: 0,
            context_passages_used: built.context_passages_used,
            tokens: built.tokens,
            reply: Some(reply),
            ticket: Some(ticket),
            priority: request.priority,
            stream,
            arrival,
            opened,
        };
        if sequence.max_tokens == 0
            && let Err(error) = sequence.finish(None, FinishReason::Length)
        {
            sequence.fail(error);
        }
        Ok(sequence)
    }

    /// The model that answers.
    pub fn model(&self) -> &Arc<Model> {
        &self.opened.model
    }

    /// Whose turn it takes.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Orders requests: the smaller, the more it matters.
    pub fn urgency(&self) -> (i32, u64) {
        (self.priority, self.arrival)
    }

    /// What it keeps of a token.
    pub fn shape(&self) -> KvShape {
        self.cache.shape()
    }

    /// How many of its tokens the network has not seen: the rest of the prompt, or the last generated token.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.cache.tokens()
    }

    /// Whether its next pass is the second half of a token: one in, one out.
    pub fn decodes(&self) -> bool {
        self.pending() == 1
    }

    /// Whether it has run before, and lost its cache.
    pub fn is_resumed(&self) -> bool {
        self.ticket.is_none()
    }

    /// The most tokens that its cache may ever hold.
    pub fn longest(&self) -> usize {
        self.prompt_tokens.saturating_add(self.max_tokens).min(self.model().transformer().max_positions())
    }

    /// Its next `n` tokens beside the cache that they go into.
    pub fn chunk(&mut self, n: usize) -> (&[u32], &mut KvCache) {
        let first = self.cache.tokens();
        (&self.tokens[first..first + n], &mut self.cache)
    }

    /// Takes over what other sequences have computed of its tokens; returns how many.
    pub fn adopt_prefix(&mut self) -> usize {
        self.cache.adopt_prefix(self.opened.root, &self.tokens)
    }

    /// Lets others take over what is computed of its tokens.
    pub fn publish(&mut self) {
        self.cache.publish(self.opened.root, &self.tokens);
    }

    /// Gives up its place in the queue: it runs now.
    pub fn admitted(&mut self) {
        self.ticket = None;
    }

    /// Whether it has been answered, or nobody waits for it.
    pub fn is_over(&self) -> bool {
        self.reply.as_ref().is_none_or(Reply::is_abandoned)
    }

    /// Whether nobody waits for the answer that it still owes.
    pub fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_some_and(Reply::is_abandoned)
    }

    /// Ends it with an error.
    pub fn fail(&mut self, error: Error) {
        if let Some(reply) = self.reply.take() {
            reply.fail(error);
        }
    }

    /// Takes the logits after its last token: chooses the next, and ends where it must.
    pub fn postprocess(&mut self, logits: &mut [f32]) -> Result<()> {
        let token = self.sampler.sample(logits);
        self.completion_tokens += 1;
        if self.model().config().eos_token_ids.contains(&token) {
            return self.finish(None, FinishReason::Stop);
        }
        let text = self.output.push(self.opened.model.tokenizer(), token)?;
        if self.output.stopped() {
            return self.finish(Some(Token { text, id: token }), FinishReason::Stop);
        }
        let length = self.tokens.len() + 1;
        if self.completion_tokens >= self.max_tokens || length >= self.model().transformer().max_positions() {
            return self.finish(Some(Token { text, id: token }), FinishReason::Length);
        }
        self.emit(Token { text, id: token });
        self.tokens.push(token);
        Ok(())
    }

    fn emit(&mut self, token: Token) {
        match &mut self.reply {
            Some(Reply::Stream(sender)) => {
                if sender.try_send(Ok(token)).is_err() {
                    // Its reader is gone; the next look at it sees that.
                    sender.close_channel();
                }
            }
            _ => self.text.push_str(&token.text),
        }
    }

    /// Sends the last token with what was held back, and the answer.
    fn finish(&mut self, last: Option<Token>, finish_reason: FinishReason) -> Result<()> {
        let rest =
            if self.output.stopped() { String::new() } else { self.output.finish(self.opened.model.tokenizer())? };
        match last {
            Some(mut token) => {
                token.text.push_str(&rest);
                self.emit(token);
            }
            None if rest.is_empty() => {}
            None => {
                let id = self.model().config().eos_token_ids.first().copied().unwrap_or(0);
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
                model_version: self.model().tables().version,
            }));
        }
        Ok(())
    }
}
