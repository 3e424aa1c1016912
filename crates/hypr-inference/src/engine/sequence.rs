//! One request that is being answered: its tokens, its cache, and what becomes of its logits.
//!
//! Invariant: between two steps `tokens` is everything the sequence consists of, and the cache holds a beginning of it.
//! So a sequence may lose its cache then, and computes the same again. Within a step guesses may stand at the end of
//! `tokens` (`super::speculation`).

use std::collections::VecDeque;
use std::sync::Arc;

use hypr_common::{Error, Result};
use hypr_tensor::KvShape;

use super::choices::Choices;
use super::fairness::{Stream, WRITTEN};
use super::metrics::{Counters, add};
use super::speculation::{Guessing, Speculator};
use super::{GenerateJob, Reply, Ticket, guarded};
use crate::api::{FinishReason, GenerateRequest, Generation, Token, TokenLogprobs};
use crate::block_pool::{BlockKey, BlockPool, PrefixId};
use crate::grammar::Grammar;
use crate::kv_cache::{KvCache, KvPrecision};
use crate::logprobs;
use crate::model::Model;
use crate::prompt;
use crate::sampler::Sampler;
use crate::tokenizer::TextStream;
use crate::tools::ToolParser;

/// The parser of a request's constraint, or of a call of its tools where that is required.
fn grammar(model: &Model, request: &GenerateRequest, tools: Option<&ToolParser>) -> Result<Option<Grammar>> {
    let constraint = request.constraint.as_ref().or_else(|| tools.and_then(ToolParser::constraint));
    constraint.map(|constraint| model.grammars()?.start(constraint)).transpose()
}

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
    /// Prompt, answer and, within a step, guesses.
    tokens: Vec<u32>,
    /// How many at the end of `tokens` are guesses.
    guessed: usize,
    speculator: Option<Speculator>,
    /// Of the first of `tokens`.
    pub cache: KvCache,
    sampler: Sampler,
    grammar: Option<Grammar>,
    /// Tokens that the grammar has taken and that come next without a choice.
    forced: VecDeque<u32>,
    tools: Option<ToolParser>,
    output: TextStream,
    text: String,
    /// What may be answered, where not everything may.
    choices: Option<Choices>,
    /// How many of the likeliest tokens are wanted beside each.
    wanted_logprobs: Option<usize>,
    logprobs: Vec<TokenLogprobs>,
    max_tokens: usize,
    prompt_tokens: usize,
    completion_tokens: usize,
    context_passages_used: usize,
}

impl Sequence {
    /// Builds the prompt of a request. `draft` is the model that its speculation names, `arrival` numbers the requests. One
    /// that is over before its first pass is answered then.
    pub fn start(
        job: GenerateJob,
        (opened, draft): (Opened, Option<Opened>),
        pool: &BlockPool,
        (stream, arrival): (Arc<Stream>, u64),
        counters: &Counters,
    ) -> std::result::Result<Self, (Reply, Error)> {
        let GenerateJob { ticket, mut request, reply, .. } = job;
        let choices = std::mem::take(&mut request.choices);
        let built = guarded(|| {
            let choices = Choices::new(&opened.model, choices)?;
            request.max_tokens = choices.as_ref().map_or(request.max_tokens, Choices::longest);
            let tools = ToolParser::of(&opened.model, &request)?;
            let grammar = grammar(&opened.model, &request, tools.as_ref())?;
            if choices.is_some() && grammar.is_some() {
                return Err(Error::invalid("choices and a grammar contradict each other; give one of them"));
            }
            Ok((prompt::build(&opened.model, &request)?, choices, grammar, tools))
        });
        let (built, choices, grammar, tools) = match built {
            Ok(built) => built,
            Err(error) => return Err((reply, error)),
        };
        let shape = opened.model.transformer().kv_shape(KvPrecision::F16);
        let mut sequence = Self {
            cache: KvCache::new(pool.clone(), shape),
            sampler: Sampler::new(request.sampling, request.logit_bias, &built.tokens),
            grammar,
            forced: VecDeque::new(),
            tools,
            output: TextStream::new(request.stop),
            text: String::new(),
            choices,
            wanted_logprobs: request.logprobs,
            logprobs: Vec::new(),
            max_tokens: request.max_tokens,
            prompt_tokens: built.tokens.len(),
            completion_tokens: 0,
            context_passages_used: built.context_passages_used,
            tokens: built.tokens,
            guessed: 0,
            speculator: request.speculative.and_then(|speculative| Speculator::new(&speculative, draft, pool)),
            reply: Some(reply),
            ticket: Some(ticket),
            priority: request.priority,
            stream,
            arrival,
            opened,
        };
        let begun = match sequence.max_tokens {
            0 => sequence.finish(None, FinishReason::Length),
            _ => guarded(|| sequence.force(counters)),
        };
        if let Err(error) = begun {
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
        self.tokens.len() - self.guessed - self.cache.tokens()
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

    /// How many rows of logits a pass of its next `n` tokens gives: one after its last token, and one after each guess.
    pub fn rows(&self, n: usize) -> usize {
        (n + 1).saturating_sub(self.pending())
    }

    /// Its next `n` tokens, guesses included, beside the cache that they go into.
    pub fn chunk(&mut self, n: usize) -> (&[u32], &mut KvCache) {
        let first = self.cache.tokens();
        (&self.tokens[first..first + n], &mut self.cache)
    }

    /// Takes over what other sequences have computed of its tokens; returns how many.
    pub fn adopt_prefix(&mut self) -> usize {
        self.cache.adopt_prefix(self.opened.root, &self.tokens)
    }

    /// The full block of its tokens that it computes next, where others could take that over.
    pub fn next_block(&self) -> Option<BlockKey> {
        self.cache.next_block(self.opened.root, &self.tokens)
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

    /// Gives up what a draft model has computed for it; `false` where there is nothing.
    pub fn release_draft(&mut self) -> bool {
        self.speculator.as_mut().is_some_and(Speculator::release)
    }

    /// How many tokens it may guess before its next pass, which gives one more than are right.
    pub fn guess_limit(&self) -> usize {
        let length = self.speculator.as_ref().map_or(0, Speculator::length).max(self.forced.len());
        let left = self.max_tokens.saturating_sub(self.completion_tokens + 1);
        length.min(left).min(self.model().transformer().max_positions().saturating_sub(self.tokens.len()))
    }

    /// What a draft model needs to know of it.
    pub fn guessing(&mut self) -> Option<(&mut Speculator, Guessing<'_>)> {
        let speculator = self.speculator.as_mut().filter(|_| self.forced.is_empty())?;
        let config = self.opened.model.config();
        let guessing = Guessing {
            tokens: &mut self.tokens,
            guessed: &mut self.guessed,
            sampler: &mut self.sampler,
            vocab_size: config.vocab_size,
            ends: &config.eos_token_ids,
        };
        Some((speculator, guessing))
    }

    /// Guesses what needs no model: what a grammar forces, or what followed its last tokens before.
    pub fn look_up(&mut self) {
        let limit = self.guess_limit();
        let found: Vec<u32> = match &self.speculator {
            _ if !self.forced.is_empty() => self.forced.iter().copied().take(limit).collect(),
            Some(speculator) => speculator.look_up(&self.tokens, limit).to_vec(),
            None => return,
        };
        self.guessed += found.len();
        self.tokens.extend(found);
    }

    /// Drops the guesses that the grammar refuses, that are more than `room`, or that there are no blocks for; returns how
    /// many are left.
    pub fn keep_guesses(&mut self, room: usize, has_room: impl Fn(KvShape, usize) -> bool) -> usize {
        let known = self.tokens.len() - self.guessed;
        let mut kept = self.guessed.min(room);
        if let (Some(grammar), true) = (&mut self.grammar, self.forced.is_empty()) {
            kept = kept.min(grammar.admits(&self.tokens[known..]));
        }
        let wanted = 1 + kept;
        if kept > 0 && !(has_room(self.shape(), self.cache.missing_blocks(wanted)) && self.cache.reserve(wanted)) {
            kept = 0;
        }
        self.tokens.truncate(known + kept);
        self.guessed = kept;
        kept
    }

    /// Takes the logits after its last token and after each guess, `[rows, vocab]`: chooses the next tokens, as many as
    /// were guessed right and one more, and ends where it must.
    pub fn postprocess(&mut self, logits: &mut [f32], counters: &Counters) -> Result<()> {
        let known = self.tokens.len() - self.guessed;
        let guesses = self.tokens.split_off(known);
        self.guessed = 0;
        let outcome = self.choose_while_guessed(logits, &guesses, counters);
        let right = self.tokens[known..].iter().zip(&guesses).take_while(|(chosen, guess)| chosen == guess).count();
        self.cache.truncate(known + right);
        if let Some(speculator) = &mut self.speculator {
            speculator.learn(guesses.len(), right, known + right);
        }
        outcome
    }

    /// Chooses tokens while what is chosen is what was guessed.
    fn choose_while_guessed(&mut self, logits: &mut [f32], guesses: &[u32], counters: &Counters) -> Result<()> {
        let known = self.tokens.len();
        let vocab_size = self.model().config().vocab_size;
        while !self.is_answered() {
            let at = self.tokens.len() - known;
            if guesses.get(..at) != Some(&self.tokens[known..]) {
                break;
            }
            let Some(row) = logits.get_mut(at * vocab_size..(at + 1) * vocab_size) else { break };
            // The sampler changes the logits, and only then is the token known.
            let own = self.wanted_logprobs.map(|top| (row.to_vec(), top));
            let token = self.next_token(row)?;
            add(&counters.accepted_tokens, usize::from(guesses.get(at) == Some(&token)));
            let logprobs = own.map(|(own, top)| logprobs::of(&own, token, top));
            self.append(token, logprobs, counters)?;
            self.force(counters)?;
        }
        Ok(())
    }

    /// The token to append: the one that is forced, or one that may be chosen.
    fn next_token(&mut self, logits: &mut [f32]) -> Result<u32> {
        if let Some(token) = self.forced.pop_front() {
            self.sampler.observe(token);
            return Ok(token);
        }
        if let Some(choices) = &self.choices {
            choices.restrict(&self.tokens[self.prompt_tokens..], logits);
        }
        if let Some(grammar) = &mut self.grammar {
            grammar.mask(logits)?;
        }
        let token = self.sampler.sample(logits);
        if logits.get(token as usize) == Some(&f32::NEG_INFINITY) {
            return Err(Error::invalid("logit_bias forbids every token that could come next; allow one"));
        }
        match &mut self.grammar {
            Some(grammar) if !self.opened.model.config().eos_token_ids.contains(&token) => grammar.consume(token)?,
            _ => {}
        }
        Ok(token)
    }

    /// Asks the grammar what must come next. Where nobody wants to know how likely tokens are, it is appended at once, and
    /// the network reads it in one pass.
    fn force(&mut self, counters: &Counters) -> Result<()> {
        if self.is_answered() || !self.forced.is_empty() {
            return Ok(());
        }
        let Some(grammar) = &mut self.grammar else { return Ok(()) };
        self.forced.extend(grammar.force()?);
        while self.wanted_logprobs.is_none() && !self.is_answered() {
            let Some(token) = self.forced.pop_front() else { break };
            self.sampler.observe(token);
            self.append(token, None, counters)?;
        }
        Ok(())
    }

    /// Whether the answer has been sent.
    fn is_answered(&self) -> bool {
        self.reply.is_none()
    }

    /// Appends a token to the answer, and ends it where that was the last.
    fn append(&mut self, token: u32, logprobs: Option<TokenLogprobs>, counters: &Counters) -> Result<()> {
        // Counted before anyone is answered, so that who has an answer finds it counted.
        add(&counters.generated_tokens, 1);
        self.stream.charge(WRITTEN);
        if let Some(Reply::Whole(_)) = self.reply {
            self.logprobs.extend(logprobs.clone());
        }
        self.completion_tokens += 1;
        if self.choices.is_some() {
            return self.choose(token, logprobs);
        }
        if self.model().config().eos_token_ids.contains(&token) {
            return self.finish(None, FinishReason::Stop);
        }
        let text = self.output.push(self.opened.model.tokenizer(), token)?;
        let token = Token { text, id: token, logprobs };
        if self.output.stopped() || self.is_whole() {
            return self.finish(Some(token), FinishReason::Stop);
        }
        let length = self.tokens.len() + 1;
        if self.completion_tokens >= self.max_tokens || length >= self.model().transformer().max_positions() {
            return self.finish(Some(token), FinishReason::Length);
        }
        self.tokens.push(token.id);
        self.emit(token);
        Ok(())
    }

    /// Whether the grammar lets nothing follow.
    fn is_whole(&self) -> bool {
        self.forced.is_empty() && self.grammar.as_ref().is_some_and(Grammar::is_complete)
    }

    /// Goes on with `token` to a choice, or ends with the choice.
    fn choose(&mut self, token: u32, logprobs: Option<TokenLogprobs>) -> Result<()> {
        let is_end = self.model().config().eos_token_ids.contains(&token);
        if !is_end {
            self.tokens.push(token);
        }
        let written = &self.tokens[self.prompt_tokens..];
        let choice = self
            .choices
            .as_ref()
            .and_then(|choices| if is_end { choices.ended(written) } else { choices.finished(written) });
        match choice.map(str::to_owned) {
            Some(text) => self.finish(Some(Token { text, id: token, logprobs }), FinishReason::Stop),
            None if self.tokens.len() >= self.model().transformer().max_positions() => {
                self.finish(None, FinishReason::Length)
            }
            None if is_end => Err(Error::internal("an answer ended before it was one of its choices")),
            None => Ok(()),
        }
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
                self.emit(Token { text: rest, id, logprobs: None });
            }
        }
        if let Some(Reply::Whole(sender)) = self.reply.take() {
            let text = std::mem::take(&mut self.text);
            let (text, tool_calls) = match &self.tools {
                Some(tools) => tools.parse(&text),
                None => (text, Vec::new()),
            };
            // A caller that is gone needs no answer.
            let _ = sender.send(Ok(Generation {
                text,
                finish_reason: if tool_calls.is_empty() { finish_reason } else { FinishReason::ToolCalls },
                tool_calls,
                prompt_tokens: self.prompt_tokens,
                completion_tokens: self.completion_tokens,
                context_passages_used: self.context_passages_used,
                model_version: self.model().tables().version,
                logprobs: std::mem::take(&mut self.logprobs),
            }));
        }
        Ok(())
    }
}
