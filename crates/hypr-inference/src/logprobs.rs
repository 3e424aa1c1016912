//! How likely the model found a token, and which others it found likeliest.
//!
//! Of the model's own distribution: before bias, penalty, temperature and cuts, as OpenAI's and vLLM's `logprobs` are.

use crate::api::{Logprob, TokenLogprobs};

/// The logarithms of probabilities over `logits`, `[vocab]`: of `token`, and of the `top` likeliest, the likeliest
/// first and the lower id among equals. Logits that are not numbers count as impossible.
pub fn of(logits: &[f32], token: u32, top: usize) -> TokenLogprobs {
    let possible = |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { logit };
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &logit| max.max(possible(logit)));
    let sum: f64 = logits.iter().map(|&logit| f64::from(possible(logit) - max).exp()).sum();
    let logprob = |logit: f32| (f64::from(possible(logit) - max) - sum.ln()) as f32;
    let of_token =
        |id: u32| Logprob { id, logprob: logits.get(id as usize).map_or(f32::NEG_INFINITY, |&l| logprob(l)) };
    TokenLogprobs { token: of_token(token), top: likeliest(logits, top).into_iter().map(of_token).collect() }
}

/// The ids of the `n` largest logits, the largest first and the lower id among equals.
fn likeliest(logits: &[f32], n: usize) -> Vec<u32> {
    let n = n.min(logits.len());
    if n == 0 {
        return Vec::new();
    }
    let key = |id: u32| {
        let logit = logits[id as usize];
        if logit.is_nan() { f32::NEG_INFINITY } else { logit }
    };
    let order = |a: &u32, b: &u32| key(*b).total_cmp(&key(*a)).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.select_nth_unstable_by(n - 1, order);
    ids.truncate(n);
    ids.sort_unstable_by(order);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_softmax() {
        let logits = [1.0_f32, 3.0, f32::NAN, 3.0, -2.0, f32::NEG_INFINITY];
        let total: f64 = [1.0_f64, 3.0, 3.0, -2.0].iter().map(|l| l.exp()).sum();
        let wanted = |logit: f64| (logit - total.ln()) as f32;
        let found = of(&logits, 4, 3);
        assert_eq!(found.top.iter().map(|top| top.id).collect::<Vec<_>>(), [1, 3, 0]);
        for (found, logit) in [(found.token, -2.0), (found.top[0], 3.0), (found.top[1], 3.0), (found.top[2], 1.0)] {
            assert!((found.logprob - wanted(logit)).abs() < 1e-6, "{found:?}");
        }
        let all: f64 = of(&logits, 0, 99).top.iter().map(|top| f64::from(top.logprob).exp()).sum();
        assert!((all - 1.0).abs() < 1e-6);
        assert_eq!(of(&logits, 2, 0).token.logprob, f32::NEG_INFINITY);
        assert!(of(&logits, 1, 0).top.is_empty());
    }
}
