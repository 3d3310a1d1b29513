//! What happens to the workers and their servers, and when. Pure: the same seed and length give the same plan.
//!
//! Steps are drawn like cards from a deck that is shuffled again when it is empty, so that also a short plan has each kind.

use std::fmt;
use std::time::Duration;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// One mishap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// SIGKILL; the worker is replaced at once.
    Kill { worker: usize },
    /// SIGSTOP, and SIGCONT when its session has long expired: a zombie.
    Freeze { worker: usize, length: Duration },
    /// SIGTERM; the worker is replaced when it has drained.
    Terminate { worker: usize },
    /// The wall clock of a worker jumps to so many seconds beside the truth.
    Clock { worker: usize, seconds: i64 },
    /// The store misbehaves towards a share of the requests.
    Weather { kind: Weather, share: f64, length: Duration },
    /// A broker ends, by SIGKILL or in order, and comes back.
    Broker { number: usize, kill: bool, length: Duration },
    /// `assay upkeep` beside the commits, twice at once.
    Upkeep,
}

/// How the store misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Answers with this status and does nothing.
    Refusing(u16),
    /// Does what it was asked, and answers 500.
    Forgetful,
    /// Does not answer before the client gives up.
    Silent,
    /// Ends its answer in the middle of the body.
    Cutting,
    /// Sends the body drop by drop.
    Slow,
}

/// A step and its time since the start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    pub at: Duration,
    pub step: Step,
}

impl fmt::Display for Moment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:8.1} s  {:?}", self.at.as_secs_f64(), self.step)
    }
}

#[derive(Debug, Clone, Copy)]
enum Card {
    Kill,
    Freeze,
    Terminate,
    Clock,
    Weather,
    Broker,
    Upkeep,
}

const DECK: [(Card, usize); 7] = [
    (Card::Kill, 10),
    (Card::Freeze, 2),
    (Card::Terminate, 2),
    (Card::Clock, 1),
    (Card::Weather, 4),
    (Card::Broker, 1),
    (Card::Upkeep, 1),
];

/// Until when nothing happens: the first worker has to start.
const CALM: Duration = Duration::from_secs(3);

/// The plan of a run.
pub fn plan(seed: u64, length: Duration, workers: usize) -> Vec<Moment> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut moments, mut deck) = (Vec::new(), Vec::new());
    let mut at = CALM;
    while at < length {
        if deck.is_empty() {
            deck = DECK.iter().flat_map(|(card, number)| std::iter::repeat_n(*card, *number)).collect();
            deck.shuffle(&mut random);
        }
        let card = deck.pop().expect("just filled");
        moments.push(Moment { at, step: draw(card, workers, &mut random) });
        at += Duration::from_millis(random.random_range(2_500..6_000));
    }
    moments
}

fn draw(card: Card, workers: usize, random: &mut ChaCha8Rng) -> Step {
    let worker = random.random_range(0..workers);
    match card {
        Card::Kill => Step::Kill { worker },
        Card::Freeze => Step::Freeze { worker, length: Duration::from_millis(random.random_range(4_500..8_000)) },
        Card::Terminate => Step::Terminate { worker },
        Card::Clock => Step::Clock { worker, seconds: random.random_range(-600..600) },
        Card::Weather => {
            let kinds = [
                Weather::Refusing(500),
                Weather::Refusing(503),
                Weather::Refusing(429),
                Weather::Forgetful,
                Weather::Silent,
                Weather::Cutting,
                Weather::Slow,
            ];
            let kind = kinds[random.random_range(0..kinds.len())];
            let length = Duration::from_millis(random.random_range(2_000..5_000));
            Step::Weather { kind, share: random.random_range(0.2..1.0), length }
        }
        Card::Broker => Step::Broker {
            number: random.random_range(1..=3),
            kill: random.random_bool(0.5),
            length: Duration::from_millis(random.random_range(3_000..8_000)),
        },
        Card::Upkeep => Step::Upkeep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_the_whole_plan() {
        let length = Duration::from_secs(90);
        assert_eq!(plan(7, length, 3), plan(7, length, 3));
        assert_ne!(plan(7, length, 3), plan(8, length, 3));
    }

    #[test]
    fn an_hour_has_three_hundred_kills_and_fifty_zombies() {
        for seed in 0..20 {
            let plan = plan(seed, Duration::from_secs(3600), 3);
            let count = |wanted: fn(&Step) -> bool| plan.iter().filter(|moment| wanted(&moment.step)).count();
            assert!(count(|step| matches!(step, Step::Kill { .. })) >= 300, "seed {seed}");
            assert!(count(|step| matches!(step, Step::Freeze { .. })) >= 50, "seed {seed}");
        }
    }
}
