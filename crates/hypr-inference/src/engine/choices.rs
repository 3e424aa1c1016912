//! Answers that are one of a list: each token is the likeliest of those that go on with one of the choices.
//!
//! Invariant: what is answered is a choice as it was written, whatever its tokens decode to; the lowest-numbered of
//! choices with the same tokens. A choice that another goes on from ends where the model ends its answer there.

use hypr_common::{Error, Result};

use crate::model::Model;

/// The choices of one request.
#[derive(Debug)]
pub(super) struct Choices {
    texts: Vec<String>,
    /// Of each text.
    tokens: Vec<Vec<u32>>,
    /// Tokens that end an answer.
    ends: Vec<u32>,
}

impl Choices {
    /// The choices `texts` for `model`; `None` where there are none, and anything may be answered.
    ///
    /// # Errors
    /// `InvalidInput` for a choice without a token, or with one that ends answers.
    pub fn new(model: &Model, texts: Vec<String>) -> Result<Option<Self>> {
        if texts.is_empty() {
            return Ok(None);
        }
        // After a chat template an answer starts a text; without one it goes on with the prompt's.
        let before = if model.has_chat_template() { "" } else { " " };
        let mut tokens = Vec::with_capacity(texts.len());
        for text in &texts {
            let own = model.tokenizer().encode(&format!("{before}{text}"), false)?;
            if own.is_empty() {
                return Err(Error::invalid(format!("the choice '{text}' has no token; leave it out")));
            }
            if own.iter().any(|token| model.config().eos_token_ids.contains(token)) {
                let message = format!("the choice '{text}' holds a token that ends answers; write it otherwise");
                return Err(Error::invalid(message));
            }
            tokens.push(own);
        }
        Ok(Some(Self { texts, tokens, ends: model.config().eos_token_ids.clone() }))
    }

    /// The most tokens that an answer takes, its end included.
    pub fn longest(&self) -> usize {
        self.tokens.iter().map(Vec::len).max().unwrap_or(0) + 1
    }

    /// Forbids every token that does not go on from `written` to a choice.
    pub fn restrict(&self, written: &[u32], logits: &mut [f32]) {
        let mut kept: Vec<(usize, f32)> = Vec::new();
        let mut keep = |token: u32| kept.extend(logits.get(token as usize).map(|logit| (token as usize, *logit)));
        for tokens in &self.tokens {
            match tokens.strip_prefix(written) {
                Some([next, ..]) => keep(*next),
                Some([]) => self.ends.iter().copied().for_each(&mut keep),
                None => {}
            }
        }
        logits.fill(f32::NEG_INFINITY);
        for (token, logit) in kept {
            logits[token] = logit;
        }
    }

    /// The choice that `written` is, where nothing goes on from it.
    pub fn finished(&self, written: &[u32]) -> Option<&str> {
        let goes_on = |tokens: &Vec<u32>| tokens.len() > written.len() && tokens.starts_with(written);
        if self.tokens.iter().any(goes_on) { None } else { self.ended(written) }
    }

    /// The choice that `written` is.
    pub fn ended(&self, written: &[u32]) -> Option<&str> {
        self.tokens.iter().position(|tokens| tokens == written).map(|at| self.texts[at].as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leads_to_a_choice_is_left() {
        let texts = ["a", "ab", "c", "again a"].map(str::to_owned).to_vec();
        let choices = Choices { texts, tokens: vec![vec![1], vec![1, 2], vec![3], vec![1]], ends: vec![0] };
        let left = |written: &[u32]| {
            let mut logits = [0.5, 0.4, 0.3, 0.2, 9.0];
            choices.restrict(written, &mut logits);
            (0..5).filter(|at| logits[*at] > f32::NEG_INFINITY).collect::<Vec<_>>()
        };
        assert_eq!(left(&[]), [1, 3]);
        assert_eq!(left(&[1]), [0, 2]);
        assert_eq!((choices.finished(&[1]), choices.ended(&[1])), (None, Some("a")));
        assert_eq!((choices.finished(&[1, 2]), choices.finished(&[3])), (Some("ab"), Some("c")));
        assert_eq!(choices.longest(), 3);
    }
}
