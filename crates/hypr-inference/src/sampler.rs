//! Chooses the next token from the logits.
//!
//! Order of the steps: bias, repetition penalty, temperature, top-k, top-p, then one draw; temperature 0 takes the most
//! likely token, the lowest id among equals.
//!
//! A draw is a race: each candidate gets a time, exponentially distributed with its probability as the rate, and the
//! first wins, which it does with that probability (the Gumbel-max trick in its exponential form). The random number
//! behind a token's time is a hash of the seed, the place in the answer and the token. So no state moves from draw to
//! draw, a draw that is repeated gives the same, and another model that draws at the same place with the same seed
//! mostly finds the same token where it is of the same opinion (Daliri, Musco and Suresh, "Coupling without
//! Communication and Drafter-Invariant Speculative Decoding", arXiv:2408.07978), which makes it a good guess.
//!
//! Invariant: the same seed, place, logits and history give the same token on every machine, and no step depends on the
//! order of equal logits.

use crate::api::Sampling;

/// What SplitMix64 adds to its state from number to number.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The random numbers of one place in an answer, one a token.
#[derive(Clone, Copy, Debug)]
struct Noise(u64);

impl Noise {
    fn at(seed: u64, place: u64) -> Self {
        Self(mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(place.wrapping_mul(GOLDEN))))
    }

    /// Uniform between 0 and 1, neither of them included.
    fn unit(self, token: u32) -> f64 {
        let bits = mix(self.0.wrapping_add((u64::from(token) + 1).wrapping_mul(GOLDEN)));
        ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }
}

/// The sampler of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    /// Token and what is added to its logit.
    bias: Vec<(u32, f32)>,
    /// Tokens chosen so far.
    place: u64,
    /// Tokens of prompt and answer, each once; kept only where they are penalised.
    seen: Vec<u32>,
    is_seen: Vec<bool>,
    /// Scratch: logit and token of those that are still possible.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler for a sequence that starts with `prompt`. `bias` is added to the logits of its tokens; those outside the
    /// vocabulary are passed over.
    pub fn new(sampling: Sampling, bias: Vec<(u32, f32)>, prompt: &[u32]) -> Self {
        let mut sampler =
            Self { sampling, bias, place: 0, seen: Vec::new(), is_seen: Vec::new(), candidates: Vec::new() };
        for &token in prompt {
            sampler.see(token);
        }
        sampler
    }

    fn penalises(&self) -> bool {
        self.sampling.repetition_penalty != 1.0
    }

    fn see(&mut self, token: u32) {
        if !self.penalises() {
            return;
        }
        let index = token as usize;
        if self.is_seen.len() <= index {
            self.is_seen.resize(index + 1, false);
        }
        if !std::mem::replace(&mut self.is_seen[index], true) {
            self.seen.push(token);
        }
    }

    /// Takes note of the answer's next token.
    pub fn observe(&mut self, token: u32) {
        self.place += 1;
        self.see(token);
    }

    /// Chooses the answer's next token from `logits`, `[vocab]`, which bias and penalty change in place, and takes note
    /// of it.
    pub fn sample(&mut self, logits: &mut [f32]) -> u32 {
        let token = self.guess(logits, 0);
        self.observe(token);
        token
    }

    /// The token that [`Sampler::sample`] would choose from `logits` when `ahead` more tokens have been observed, those
    /// tokens' penalties left aside.
    pub fn guess(&mut self, logits: &mut [f32], ahead: usize) -> u32 {
        for &(token, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if self.penalises() {
            self.penalise(logits);
        }
        if self.sampling.temperature > 0.0 {
            self.draw(logits, Noise::at(self.sampling.seed, self.place + ahead as u64))
        } else {
            argmax(logits)
        }
    }

    /// Source: CTRL, arXiv:1909.05858, with the sign rule of Hugging Face.
    fn penalise(&self, logits: &mut [f32]) {
        let penalty = self.sampling.repetition_penalty;
        for &token in &self.seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }

    fn draw(&mut self, logits: &[f32], noise: Noise) -> u32 {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        let candidates = &mut self.candidates;
        candidates.clear();
        let possible = |&(logit, _): &(f32, u32)| logit > f32::NEG_INFINITY;
        candidates.extend(logits.iter().copied().zip(0..).filter(possible));
        if candidates.is_empty() {
            return argmax(logits);
        }
        // Most likely first, the lower id among equals: a total order, so that the cuts are reproducible.
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, order);
            candidates.truncate(top_k);
        }
        let max = candidates.iter().fold(f32::NEG_INFINITY, |max, &(logit, _)| max.max(logit));
        let weight = |logit: f32| (f64::from(logit - max) / f64::from(temperature)).exp();
        if top_p < 1.0 {
            keep_nucleus(candidates, f64::from(top_p), weight, order);
        }
        let mut first = (f64::INFINITY, u32::MAX);
        for &(logit, id) in candidates.iter() {
            let (weight, unit) = (weight(logit), noise.unit(id));
            // -ln u is at least 1 - u, so most are known to lose without a logarithm.
            if 1.0 - unit <= first.0 * weight || first.1 == u32::MAX {
                let time = (-unit.ln() / weight, id);
                first = if time < first { time } else { first };
            }
        }
        // Logits that are not finite may leave no winner.
        if first.1 == u32::MAX { argmax(logits) } else { first.1 }
    }
}

/// Keeps the fewest most likely candidates whose probabilities reach `top_p` (arXiv:1904.09751). Candidates are
/// sorted a growing run at a time, because the nucleus is usually a few of many.
fn keep_nucleus(
    candidates: &mut Vec<(f32, u32)>,
    top_p: f64,
    weight: impl Fn(f32) -> f64,
    order: impl Fn(&(f32, u32), &(f32, u32)) -> std::cmp::Ordering + Copy,
) {
    let total: f64 = candidates.iter().map(|&(logit, _)| weight(logit)).sum();
    let (mut sorted, mut reached) = (0, 0.0);
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let run = 64.max(sorted * 4).min(rest.len());
        if run < rest.len() {
            rest.select_nth_unstable_by(run - 1, order);
        }
        rest[..run].sort_unstable_by(order);
        for index in sorted..sorted + run {
            reached += weight(candidates[index].0);
            if reached >= top_p * total {
                candidates.truncate(index + 1);
                return;
            }
        }
        sorted += run;
    }
}

/// The largest logit's token, the lowest among equals; 0 where there is none.
pub fn argmax(logits: &[f32]) -> u32 {
    const LANES: usize = 32;
    // The maximum in lanes, then its first place: both loops vectorise.
    let chunks = logits.chunks_exact(LANES);
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    let max = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |max, &logit| if logit > max { logit } else { max });
    logits.iter().position(|&logit| logit == max).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_k: usize, top_p: f32, seed: u64) -> Sampling {
        Sampling { temperature, top_k, top_p, repetition_penalty: 1.0, seed }
    }

    fn draws(sampling: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, Vec::new(), &[]);
        (0..n).map(|_| sampler.sample(&mut logits.to_vec())).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut logits: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32).collect();
        logits[77] = 5000.0;
        logits[500] = 5000.0;
        assert_eq!(draws(Sampling::default(), &logits, 1), [77]);
        assert_eq!(argmax(&[f32::NAN, 1.0, 2.0]), 2);
        assert_eq!(argmax(&[]), 0);
    }

    #[test]
    fn frequencies_follow_the_softmax_and_the_seed() {
        let logits = [0.0, 1.0, 2.0, -40.0];
        let first = draws(sampling(1.0, 0, 1.0, 7), &logits, 20_000);
        assert_eq!(first, draws(sampling(1.0, 0, 1.0, 7), &logits, 20_000));
        assert_ne!(first, draws(sampling(1.0, 0, 1.0, 8), &logits, 20_000));
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        for (id, &logit) in logits.iter().enumerate() {
            let wanted = f64::from(logit).exp() / total;
            let got = first.iter().filter(|&&t| t as usize == id).count() as f64 / 20_000.0;
            assert!((wanted - got).abs() < 0.02, "token {id}: {got} for {wanted}");
        }
        // Half the temperature squares the odds.
        let cold = draws(sampling(0.5, 0, 1.0, 7), &logits, 20_000);
        let odds = cold.iter().filter(|&&t| t == 2).count() as f64 / cold.iter().filter(|&&t| t == 1).count() as f64;
        assert!((odds - std::f64::consts::E.powi(2)).abs() < 0.8, "odds {odds}");
    }

    #[test]
    fn top_k_and_top_p_cut_the_unlikely() {
        let logits: Vec<f32> = (0..500).map(|i| -(i as f32) / 100.0).collect();
        assert!(draws(sampling(1.0, 3, 1.0, 1), &logits, 2000).iter().all(|&t| t < 3));
        assert!(draws(sampling(1.0, 3, 1.0, 1), &logits, 2000).contains(&2));
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let mut reached = 0.0;
        let nucleus = 1 + logits
            .iter()
            .position(|&l| {
                reached += f64::from(l).exp() / total;
                reached >= 0.5
            })
            .unwrap() as u32;
        let drawn = draws(sampling(1.0, 0, 0.5, 1), &logits, 20_000);
        assert_eq!(drawn.iter().max().copied(), Some(nucleus - 1));
        assert!(draws(sampling(1.0, 0, 1e-9, 1), &logits, 100).iter().all(|&t| t == 0));
    }

    #[test]
    fn the_penalty_makes_seen_tokens_less_likely() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, Vec::new(), &[0, 0]);
        let logits = [3.0, 2.0, 1.7, -1.0];
        let picked: Vec<u32> = (0..3).map(|_| sampler.sample(&mut logits.to_vec())).collect();
        assert_eq!(picked, [1, 2, 0]);
    }

    #[test]
    fn a_bias_lifts_and_forbids() {
        let mut sampler = Sampler::new(Sampling::default(), vec![(0, f32::NEG_INFINITY), (2, 5.0), (9, 1.0)], &[]);
        assert_eq!(sampler.sample(&mut [9.0, 3.0, 1.0]), 2);
        let mut warm = Sampler::new(sampling(1.0, 0, 1.0, 1), vec![(0, f32::NEG_INFINITY)], &[]);
        assert!((0..500).all(|_| warm.sample(&mut [9.0, 3.0, 1.0]) != 0));
    }

    #[test]
    fn a_guess_is_what_will_be_chosen_there() {
        let logits: Vec<f32> = (0..50).map(|i| ((i * 31) % 17) as f32 / 4.0).collect();
        let mut sampler = Sampler::new(sampling(1.0, 0, 0.95, 3), Vec::new(), &[]);
        let guesses: Vec<u32> = (0..40).map(|ahead| sampler.guess(&mut logits.clone(), ahead)).collect();
        let chosen: Vec<u32> = (0..40).map(|_| sampler.sample(&mut logits.clone())).collect();
        assert_eq!(guesses, chosen);
        assert!(chosen.iter().collect::<std::collections::BTreeSet<_>>().len() > 5);
    }

    /// Two distributions drawn with the same noise agree at least as often as (1 - tv) / (1 + tv) says (arXiv:2408.07978,
    /// theorem 1).
    #[test]
    fn like_distributions_drawn_with_one_seed_mostly_agree() {
        let target: Vec<f32> = (0..20).map(|i| -(i as f32) / 3.0).collect();
        let other: Vec<f32> = target.iter().enumerate().map(|(i, logit)| logit + [0.3, -0.2, 0.1][i % 3]).collect();
        let softmax = |logits: &[f32]| {
            let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            logits.iter().map(|&logit| f64::from(logit).exp() / total).collect::<Vec<_>>()
        };
        let tv: f64 = softmax(&target).iter().zip(softmax(&other)).map(|(p, q)| (p - q).abs() / 2.0).sum();
        let n = 20_000;
        let (first, second) = (draws(sampling(1.0, 0, 1.0, 5), &target, n), draws(sampling(1.0, 0, 1.0, 5), &other, n));
        let equal = first.iter().zip(&second).filter(|(a, b)| a == b).count() as f64 / n as f64;
        // Less five standard deviations of a share of 20,000.
        let least = (1.0 - tv) / (1.0 + tv) - 5.0 * 0.5 / (n as f64).sqrt();
        assert!(tv > 0.05 && equal >= least && equal < 1.0, "{equal} agree, tv {tv}");
    }

    #[test]
    fn logits_that_are_not_numbers_still_give_a_token() {
        assert_eq!(draws(sampling(1.0, 0, 1.0, 1), &[f32::NAN; 4], 3), [0, 0, 0]);
        assert!(draws(sampling(1.0, 0, 0.9, 1), &[f32::NAN, 1.0, f32::NEG_INFINITY], 50).iter().all(|&t| t == 1));
    }
}
