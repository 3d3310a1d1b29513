//! From a step's logits to what each answer's choice needs of them.
//!
//! On the host that is its row. A device that chooses itself is asked for the likeliest allowed tokens of all answers at
//! once, so that ids are all that comes back; only a row that is sampled from is copied. Invariant: whichever it is, an
//! answer goes on the same.

use std::collections::HashMap;

use super::choice::{Choice, Opinion};
use crate::engine::sequence::SequenceId;
use crate::model::{Likeliest, ModelError, StepRows};

/// What the model thinks of every answer that samples.
pub struct Opinions {
    /// Rows of logits, one after the other.
    rows: Vec<f32>,
    vocabulary: usize,
    of: HashMap<SequenceId, Kind>,
}

enum Kind {
    Row(usize),
    Likeliest(Likeliest),
}

impl Opinions {
    /// `sampling` are the answers of the rows of `logits`, in order. Waits for the device. Fails when it does.
    pub fn read(
        logits: StepRows,
        sampling: &[SequenceId],
        choices: &mut HashMap<SequenceId, Choice>,
        vocabulary: usize,
    ) -> Result<Self, ModelError> {
        let row = |(row, id): (usize, &SequenceId)| (*id, Kind::Row(row));
        let mut of: HashMap<SequenceId, Kind> = sampling.iter().enumerate().map(row).collect();
        if let StepRows::Host(rows) = logits {
            return Ok(Self { rows, vocabulary, of });
        }
        let wanted: Vec<Option<Vec<u32>>> = sampling
            .iter()
            .map(|id| choices.get_mut(id).and_then(Choice::mask).map(|mask| mask.words().to_vec()))
            .collect();
        let masks: Vec<Option<&[u32]>> = wanted.iter().map(Option::as_deref).collect();
        let best = logits.likeliest(&masks, vocabulary)?;
        let mut drawn = Vec::new();
        for (row, (id, best)) in sampling.iter().zip(best).enumerate() {
            let takes_likeliest = choices.get(id).is_none_or(Choice::takes_likeliest);
            of.insert(*id, if takes_likeliest { Kind::Likeliest(best) } else { Kind::Row(drawn.len()) });
            drawn.extend((!takes_likeliest).then_some(row as u32));
        }
        Ok(Self { rows: logits.rows(&drawn, vocabulary)?, vocabulary, of })
    }

    /// What is thought of this answer, if it samples.
    pub fn of(&self, id: SequenceId) -> Option<Opinion<'_>> {
        Some(match self.of.get(&id)? {
            Kind::Row(row) => Opinion::Logits(self.rows.get(row * self.vocabulary..(row + 1) * self.vocabulary)?),
            Kind::Likeliest(best) => Opinion::Likeliest(*best),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sampler::{Sampler, Sampling};

    #[test]
    fn from_a_device_come_ids_and_the_rows_that_are_sampled_from() {
        let rows: Vec<f32> = (0..12).map(|value| [1.0, 5.0, 2.0][value % 3] + value as f32).collect();
        let host = StepRows::Host(rows.clone());
        let device = StepRows::on_device_of_tests(rows.clone(), 3);
        let ids: Vec<SequenceId> = (0..4).map(SequenceId).collect();
        let warm = |id: &SequenceId| Sampling { temperature: f32::from(id.0 % 2 == 1), ..Sampling::default() };
        let mut choices: HashMap<SequenceId, Choice> =
            ids.iter().map(|id| (*id, Choice::new(None, Sampler::new(warm(id))))).collect();
        let known = Opinions::read(host, &ids, &mut choices, 3).unwrap();
        let found = Opinions::read(device, &ids, &mut choices, 3).unwrap();
        assert_eq!(found.rows.len(), 6);
        for (index, id) in ids.iter().enumerate() {
            let own = &rows[index * 3..index * 3 + 3];
            assert!(matches!(known.of(*id), Some(Opinion::Logits(row)) if row == own));
            match found.of(*id) {
                Some(Opinion::Logits(row)) => assert!(index % 2 == 1 && row == own),
                Some(Opinion::Likeliest(best)) => assert!(index % 2 == 0 && best.logit == own[1] && best.token == 1),
                None => panic!("nothing is thought of answer {index}"),
            }
        }
        assert!(found.of(SequenceId(9)).is_none());
    }
}
