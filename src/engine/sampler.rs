//! From logits to the next token.
//!
//! Knows neither model nor grammar, only which tokens are allowed. Temperature, top-k, top-p and min-p are applied in
//! that order, as Hugging Face transformers does; the repetition penalty comes first (Keskar et al., CTRL, 2019).
//! Invariant: what is sampled depends on the request's own logits, history and seed alone, and it is allowed.

use std::cmp::Ordering;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::grammar::TokenMask;
use crate::model::{Likeliest, likeliest};

/// Candidates that are looked at first for top-p; eight times as many in each further round.
const FIRST_LOOK: usize = 64;

/// How tokens are chosen: the likeliest, unless the temperature is above 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only the likeliest tokens that together have this probability; 1 takes all.
    pub top_p: f32,
    /// Only so many of the likeliest tokens; 0 takes all.
    pub top_k: usize,
    /// Only tokens with at least this fraction of the likeliest one's probability; 0 takes all.
    pub min_p: f32,
    /// Positive logits of tokens that came before are divided by it, negative ones multiplied; 1 changes nothing.
    pub repetition_penalty: f32,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Refuses values without a meaning, with the key and what to write.
    pub fn check(&self) -> Result<(), BadSampling> {
        let within = |key, value: f32, least: f32, most: f32| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(BadSampling { key, value, least, most }),
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
    }

    fn is_greedy(&self) -> bool {
        self.temperature <= 0.0 || self.top_k == 1
    }
}

/// A setting without a meaning.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{key} is {value}; write a number from {least} to {most}")]
pub struct BadSampling {
    pub key: &'static str,
    pub value: f32,
    pub least: f32,
    pub most: f32,
}

/// The model computed no usable number for any allowed token, or something that is no number.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("no token can be chosen: {detail}")]
pub struct NotFinite {
    pub detail: String,
}

/// Chooses the tokens of one request.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// Logits after the penalty; kept for its memory.
    penalised: Vec<f32>,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    token: u32,
    /// Probability as a multiple of the likeliest one's, once it is known.
    weight: f32,
}

impl Candidate {
    /// The likelier first; of equals the lower token.
    fn before(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

impl Sampler {
    pub fn new(sampling: Sampling) -> Self {
        let random = ChaCha8Rng::seed_from_u64(sampling.seed);
        Self { sampling, random, penalised: Vec::new(), candidates: Vec::new() }
    }

    /// Whether it looks at the likeliest allowed token alone.
    pub fn takes_likeliest(&self) -> bool {
        self.sampling.is_greedy() && self.sampling.repetition_penalty == 1.0
    }

    /// The next token, one of `mask` where there is one. `history` are the tokens that the repetition penalty counts.
    /// Fails when an allowed logit is NaN or infinite, or when none is above minus infinity.
    pub fn sample(&mut self, logits: &[f32], mask: Option<&TokenMask>, history: &[u32]) -> Result<u32, NotFinite> {
        let mut penalised = std::mem::take(&mut self.penalised);
        let logits = match self.sampling.repetition_penalty {
            1.0 => logits,
            penalty => {
                penalise(&mut penalised, logits, history, penalty);
                &penalised
            }
        };
        let highest = usable(likeliest(logits, mask.map(TokenMask::words)));
        let chosen = highest.map(|highest| match self.sampling.is_greedy() {
            true => highest.token,
            false => self.draw(logits, mask, highest.logit),
        });
        self.penalised = penalised;
        chosen
    }

    fn draw(&mut self, logits: &[f32], mask: Option<&TokenMask>, highest: f32) -> u32 {
        let Sampling { temperature, top_p, top_k, min_p, .. } = self.sampling;
        let all = &mut self.candidates;
        all.clear();
        let candidate = |token: u32| Some(Candidate { logit: *logits.get(token as usize)?, token, weight: 0.0 });
        match mask {
            Some(mask) => all.extend(mask.ids().filter_map(candidate)),
            None => all.extend((0..logits.len() as u32).filter_map(candidate)),
        }
        if top_k > 0 && top_k < all.len() {
            all.select_nth_unstable_by(top_k - 1, Candidate::before);
            all.truncate(top_k);
        }
        all.iter_mut().for_each(|candidate| candidate.weight = ((candidate.logit - highest) / temperature).exp());
        if top_p < 1.0 {
            keep_likeliest(all, f64::from(top_p));
        }
        all.retain(|candidate| candidate.weight >= min_p && candidate.weight > 0.0);
        let mut left = self.random.random::<f64>() * total(all);
        for candidate in all.iter() {
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                return candidate.token;
            }
        }
        // Rounding left a crumb; the last one takes it. The likeliest token is always there.
        all.last().map_or(0, |candidate| candidate.token)
    }
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// The token that a model likes best, unless there is nothing to like.
pub fn usable(best: Likeliest) -> Result<Likeliest, NotFinite> {
    best.checked().map_err(|detail| NotFinite { detail })
}

fn penalise(target: &mut Vec<f32>, logits: &[f32], history: &[u32], penalty: f32) {
    target.clear();
    target.extend_from_slice(logits);
    for token in history {
        // From the original, so that a token that came twice is penalised once.
        if let (Some(logit), Some(place)) = (logits.get(*token as usize), target.get_mut(*token as usize)) {
            *place = if *logit > 0.0 { logit / penalty } else { logit * penalty };
        }
    }
}

/// Keeps the fewest likeliest candidates that together have `share` of the weight. Sorts no more than it keeps, nearly.
fn keep_likeliest(all: &mut Vec<Candidate>, share: f64) {
    let wanted = share * total(all);
    let mut look = FIRST_LOOK;
    loop {
        let looked_at = look.min(all.len());
        if looked_at < all.len() {
            all.select_nth_unstable_by(looked_at, Candidate::before);
        }
        all[..looked_at].sort_unstable_by(Candidate::before);
        let mut sum = 0.0;
        let reached = all[..looked_at].iter().position(|candidate| {
            sum += f64::from(candidate.weight);
            sum >= wanted
        });
        match reached {
            Some(last) => return all.truncate(last + 1),
            None if looked_at == all.len() => return,
            None => look *= 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Probabilities 0.5, 0.25, 0.125, 0.0625 and 0.0625.
    const HALVES: [f32; 5] = [-std::f32::consts::LN_2, -1.386_294_4, -2.079_441_5, -2.772_588_7, -2.772_588_7];

    fn warm(change: impl FnOnce(&mut Sampling)) -> Sampling {
        let mut sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        change(&mut sampling);
        sampling
    }

    fn counts(sampling: Sampling, mask: Option<&TokenMask>) -> [usize; 5] {
        let mut sampler = Sampler::new(sampling);
        let mut counts = [0; 5];
        for _ in 0..8000 {
            counts[sampler.sample(&HALVES, mask, &[]).unwrap() as usize] += 1;
        }
        counts
    }

    fn assert_near(counts: [usize; 5], shares: [f64; 5]) {
        for (count, share) in counts.into_iter().zip(shares) {
            assert!((count as f64 - share * 8000.0).abs() < 200.0, "{counts:?}, expected {shares:?}");
            assert!(share > 0.0 || count == 0, "{counts:?}");
        }
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        assert_near(counts(warm(|_| ()), None), [0.5, 0.25, 0.125, 0.0625, 0.0625]);
        let allowed = TokenMask::of(&[1, 2, 4], 5);
        assert_near(counts(warm(|_| ()), Some(&allowed)), [0.0, 0.571, 0.286, 0.0, 0.143]);
        // Squared probabilities.
        assert_near(counts(warm(|sampling| sampling.temperature = 0.5), None), [0.738, 0.185, 0.046, 0.0155, 0.0155]);
    }

    #[test]
    fn the_unlikely_are_cut_off() {
        assert_near(counts(warm(|sampling| sampling.top_k = 2), None), [0.667, 0.333, 0.0, 0.0, 0.0]);
        assert_near(counts(warm(|sampling| sampling.top_p = 0.8), None), [0.571, 0.286, 0.143, 0.0, 0.0]);
        assert_near(counts(warm(|sampling| sampling.top_p = 0.01), None), [1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_near(counts(warm(|sampling| sampling.min_p = 0.3), None), [0.667, 0.333, 0.0, 0.0, 0.0]);
        // 0.667 of the two that are left are enough.
        let both = warm(|sampling| (sampling.top_k, sampling.top_p) = (2, 0.6));
        assert_near(counts(both, None), [1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_first_of_the_highest_is_taken_without_temperature() {
        let mut sampler = Sampler::new(Sampling::default());
        let logits = [1.0, 3.0, 3.0, f32::NEG_INFINITY];
        assert_eq!(sampler.sample(&logits, None, &[]), Ok(1));
        assert_eq!(sampler.sample(&logits, Some(&TokenMask::of(&[0, 2, 3], 4)), &[]), Ok(2));
    }

    #[test]
    fn what_came_before_is_penalised_once() {
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::default() });
        assert_eq!(sampler.sample(&[4.0, 1.5, -1.0], None, &[0]), Ok(0));
        assert_eq!(sampler.sample(&[4.0, 3.0, -1.0], None, &[0, 0, 9]), Ok(1));
        assert_eq!(sampler.sample(&[4.0, 1.5, -1.0], None, &[0, 0, 0]), Ok(0));
        assert_eq!(sampler.sample(&[-1.5, -1.0, -9.0], None, &[1]), Ok(0));
    }

    #[test]
    fn what_is_no_number_is_an_error() {
        for sampling in [Sampling::default(), warm(|_| ())] {
            let mut sampler = Sampler::new(sampling);
            let nan = sampler.sample(&[1.0, f32::NAN, 0.0], None, &[]).unwrap_err();
            assert!(nan.detail.contains("token 1"), "{nan}");
            assert!(sampler.sample(&[f32::NEG_INFINITY; 3], None, &[]).is_err());
            assert!(sampler.sample(&[0.0, f32::INFINITY], None, &[]).is_err());
            assert!(sampler.sample(&[0.0, 1.0], Some(&TokenMask::of(&[], 2)), &[]).is_err());
            assert!(sampler.sample(&[0.0, f32::NEG_INFINITY], Some(&TokenMask::of(&[1], 2)), &[]).is_err());
            assert!(sampler.sample(&[], None, &[]).is_err());
        }
    }

    #[test]
    fn settings_without_a_meaning_are_refused_with_their_key() {
        assert_eq!(Sampling::default().check(), Ok(()));
        for (sampling, key) in [
            (warm(|sampling| sampling.temperature = -1.0), "temperature"),
            (warm(|sampling| sampling.temperature = f32::NAN), "temperature"),
            (warm(|sampling| sampling.top_p = 0.0), "top_p"),
            (warm(|sampling| sampling.min_p = 1.5), "min_p"),
            (warm(|sampling| sampling.repetition_penalty = 0.0), "repetition_penalty"),
        ] {
            assert_eq!(sampling.check().unwrap_err().key, key);
        }
    }

    proptest! {
        #[test]
        fn one_candidate_is_the_likeliest(
            logits in prop::collection::vec(-20.0_f32..20.0, 1..300),
            seed in any::<u64>(),
        ) {
            let sample = |sampling| Sampler::new(sampling).sample(&logits, None, &[]).unwrap();
            let greedy = sample(Sampling::default());
            prop_assert!(logits.iter().all(|logit| *logit <= logits[greedy as usize]));
            prop_assert_eq!(sample(warm(|sampling| (sampling.top_k, sampling.seed) = (1, seed))), greedy);
            prop_assert_eq!(sample(warm(|sampling| (sampling.top_p, sampling.seed) = (1e-9, seed))), greedy);
        }

        #[test]
        fn a_seed_always_gives_the_same_tokens(
            logits in prop::collection::vec(-5.0_f32..5.0, 100..2000),
            sampling in (0.1_f32..2.0, 0.1_f32..=1.0, 0_usize..200, 0.0_f32..0.5, any::<u64>()),
        ) {
            let (temperature, top_p, top_k, min_p, seed) = sampling;
            let sampling = Sampling { temperature, top_p, top_k, min_p, seed, ..Sampling::default() };
            let (mut one, mut other) = (Sampler::new(sampling.clone()), Sampler::new(sampling));
            for _ in 0..5 {
                prop_assert_eq!(one.sample(&logits, None, &[]), other.sample(&logits, None, &[]));
            }
        }

        #[test]
        fn the_likeliest_are_kept_as_a_full_sort_would(
            logits in prop::collection::vec(-3.0_f32..3.0, 1..1500),
            share in 0.01_f64..0.999,
        ) {
            let candidate = |(logit, token): (&f32, u32)| Candidate { logit: *logit, token, weight: logit.exp() };
            let mut sorted: Vec<_> = logits.iter().zip(0..).map(candidate).collect();
            let mut kept = sorted.clone();
            sorted.sort_by(Candidate::before);
            keep_likeliest(&mut kept, share);
            let (sum, wanted) = (total(&kept), share * total(&sorted));
            let last = f64::from(kept.last().unwrap().weight);
            prop_assert!(sum >= wanted - 1e-6 && sum - last <= wanted + 1e-6);
            let tokens = |list: &[Candidate]| list.iter().map(|candidate| candidate.token).collect::<Vec<_>>();
            prop_assert_eq!(tokens(&kept), tokens(&sorted[..kept.len()]));
        }
    }
}
