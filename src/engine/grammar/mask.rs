//! A set of token ids: those that may come next.
//!
//! Knows no grammar. Invariant: ids at or beyond its size are not in it.

/// One bit for each token id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
    size: usize,
}

impl TokenMask {
    /// `words` holds id `i` in bit `i % 32` of word `i / 32`; bits at or beyond `size` are dropped.
    pub fn from_words(mut words: Vec<u32>, size: usize) -> Self {
        words.resize(size.div_ceil(32), 0);
        if let Some(last) = words.last_mut()
            && !size.is_multiple_of(32)
        {
            *last &= (1 << (size % 32)) - 1;
        }
        Self { words, size }
    }

    /// The set of these ids, out of `size`.
    pub fn of(ids: &[u32], size: usize) -> Self {
        let mut words = vec![0_u32; size.div_ceil(32)];
        for id in ids.iter().filter(|id| (**id as usize) < size) {
            words[*id as usize / 32] |= 1 << (id % 32);
        }
        Self { words, size }
    }

    /// Id `i` is bit `i % 32` of word `i / 32`.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// How many ids there are, in the set or not.
    #[cfg(test)]
    pub fn size(&self) -> usize {
        self.size
    }

    pub fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word & (1 << (id % 32)) != 0)
    }

    /// How many ids are in the set.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The ids in the set, ascending.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        let occupied = self.words.iter().enumerate().filter(|(_, word)| **word != 0);
        occupied.flat_map(|(place, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(place as u32 * 32 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_ids_it_was_made_of() {
        let mask = TokenMask::of(&[0, 31, 32, 69, 70], 70);
        assert_eq!(mask.ids().collect::<Vec<_>>(), [0, 31, 32, 69]);
        assert_eq!((mask.count(), mask.size()), (4, 70));
        assert!(mask.allows(69) && !mask.allows(70) && !mask.allows(1000));
    }

    #[test]
    fn bits_beyond_the_size_are_dropped() {
        let mask = TokenMask::from_words(vec![u32::MAX; 9], 33);
        assert_eq!((mask.count(), mask.allows(32), mask.allows(33)), (33, true, false));
        assert_eq!(TokenMask::from_words(vec![1], 64).ids().collect::<Vec<_>>(), [0]);
    }
}
