//! Which seeds and which brands belong to training, validation and test.
//!
//! It knows no item. Invariant: no number gives two splits the same random stream, and no brand belongs to two of them. A
//! function that takes a [`Seed`] of one split does not accept one of another.

use std::fmt::Debug;
use std::marker::PhantomData;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A part of all that can be generated.
pub trait Split: Debug + Clone + Copy + PartialEq + Send + Sync + 'static {
    const NAME: &'static str;
    /// The two upper bits of its seeds.
    const RANGE: u64;
    /// Whether its texts use syllables that the others never have.
    const NEW_SYLLABLES: bool;
    /// How many brands come again and again, as in a shop.
    const HOUSE_BRANDS: u64 = 0;

    /// Whether it has the brands of this tenth of the brand space.
    fn has_tenth(tenth: u64) -> bool;
}

/// What a model learns from: eight tenths of the brands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Training;

/// What decides when a model is good enough: a tenth of the brands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validation;

/// What a finished model is told of nothing about: a tenth of the brands, some of syllables of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test;

/// What `assay demo` shows: as unknown to a model as [`Test`], with brands of the same tenth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shop;

impl Split for Shop {
    const NAME: &'static str = "demo";
    const RANGE: u64 = 0;
    const NEW_SYLLABLES: bool = true;
    const HOUSE_BRANDS: u64 = 12;

    fn has_tenth(tenth: u64) -> bool {
        Test::has_tenth(tenth)
    }
}

impl Split for Training {
    const NAME: &'static str = "training";
    const RANGE: u64 = 1;
    const NEW_SYLLABLES: bool = false;

    fn has_tenth(tenth: u64) -> bool {
        tenth >= 2
    }
}

impl Split for Validation {
    const NAME: &'static str = "validation";
    const RANGE: u64 = 2;
    const NEW_SYLLABLES: bool = false;

    fn has_tenth(tenth: u64) -> bool {
        tenth == 1
    }
}

impl Split for Test {
    const NAME: &'static str = "test";
    const RANGE: u64 = 3;
    const NEW_SYLLABLES: bool = true;

    fn has_tenth(tenth: u64) -> bool {
        tenth == 0
    }
}

const BITS: u32 = 62;

/// A seed of one split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed<S> {
    number: u64,
    split: PhantomData<S>,
}

/// Seeds have 62 bits; the other two say which split they belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("seed {number} is too large; take one below 2^62")]
pub struct SeedTooLarge {
    pub number: u64,
}

impl<S: Split> Seed<S> {
    pub fn new(number: u64) -> Result<Self, SeedTooLarge> {
        if number >> BITS == 0 { Ok(Self { number, split: PhantomData }) } else { Err(SeedTooLarge { number }) }
    }

    /// The number over all splits.
    fn key(self) -> u64 {
        S::RANGE << BITS | self.number
    }

    /// The stream of one thing: whatever else is drawn, it stays the same.
    pub(super) fn stream(self, stream: u64) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.key());
        random.set_stream(stream);
        random
    }

    /// A seed for one picture, which no other split can draw.
    pub(super) fn of_picture(random: &mut impl Rng) -> u64 {
        S::RANGE << BITS | random.random::<u64>() >> 2
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_same_number_is_another_seed_in_every_split() {
        let mut first_draws = HashSet::new();
        for number in (0..200).chain([(1 << 62) - 1]) {
            let keys = [
                Seed::<Shop>::new(number).unwrap().key(),
                Seed::<Training>::new(number).unwrap().key(),
                Seed::<Validation>::new(number).unwrap().key(),
                Seed::<Test>::new(number).unwrap().key(),
            ];
            assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
            first_draws.extend(keys.map(|key| ChaCha8Rng::seed_from_u64(key).random::<u128>()));
        }
        assert_eq!(first_draws.len(), 4 * 201);
        assert_eq!(Seed::<Test>::new(1 << 62), Err(SeedTooLarge { number: 1 << 62 }));
    }

    #[test]
    fn every_tenth_of_the_brands_belongs_to_one_split() {
        for tenth in 0..10 {
            let owners = [Training::has_tenth(tenth), Validation::has_tenth(tenth), Test::has_tenth(tenth)];
            assert_eq!(owners.iter().filter(|owns| **owns).count(), 1, "{tenth}");
        }
    }
}
