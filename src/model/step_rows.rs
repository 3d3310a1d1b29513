//! What a step computed for its wanted rows, logits or hidden states, where it left them: on the host, or on a device that
//! chooses the likeliest tokens and adds states up itself, so that little comes back.
//!
//! Invariants: what is likeliest is the same on both: of equal tokens the first, and a NaN before all, so that it shows. The
//! host's sums are of rows one after the other, so that they do not depend on how a step cuts its sequences.

use candle_core::{DType, Result, Tensor};

use super::kernels::{Argument, Grid, Kernel, launch, suffix, unwritten};

/// Rows of a step, `[wanted, width]`; the width is the vocabulary or the length of a hidden state.
#[derive(Debug, Clone)]
pub enum StepRows {
    /// Row after row.
    Host(Vec<f32>),
    /// In the format of activations.
    Device(Tensor),
}

impl Default for StepRows {
    fn default() -> Self {
        Self::Host(Vec::new())
    }
}

/// The likeliest of the allowed tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likeliest {
    pub token: u32,
    /// Minus infinity where no token is allowed, or none has more.
    pub logit: f32,
}

impl Likeliest {
    /// The same, or why it is nothing to choose.
    pub fn checked(self) -> std::result::Result<Self, String> {
        match self.logit {
            logit if logit.is_nan() => Err(format!("the logit of token {} is not a number", self.token)),
            f32::INFINITY => Err(format!("the logit of token {} is infinite", self.token)),
            f32::NEG_INFINITY => Err("every allowed token has a logit of minus infinity".to_owned()),
            _ => Ok(self),
        }
    }
}

impl StepRows {
    /// Takes over `[wanted, width]`: to the host, unless it lies on a device that has our kernels.
    pub fn of(rows: Tensor) -> Result<Self> {
        if rows.device().is_cuda() {
            return Ok(Self::Device(rows));
        }
        Ok(Self::Host(rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?))
    }

    /// Rows as a device leaves them, in the memory of the host.
    #[cfg(test)]
    pub fn on_device_of_tests(values: Vec<f32>, width: usize) -> Self {
        let rows = values.len() / width;
        let values = Tensor::from_vec(values, (rows, width), &candle_core::Device::Cpu);
        Self::Device(values.expect("rows are whole"))
    }

    /// All of them, row after row. From a device a copy that waits for it.
    pub fn into_host(self) -> Result<Vec<f32>> {
        match self {
            Self::Host(values) => Ok(values),
            Self::Device(values) => values.to_dtype(DType::F32)?.flatten_all()?.to_vec1(),
        }
    }

    /// Those of some rows, row after row.
    pub fn rows(&self, rows: &[u32], width: usize) -> Result<Vec<f32>> {
        match self {
            Self::Host(values) => {
                let row = |row: &u32| &values[*row as usize * width..(*row as usize + 1) * width];
                Ok(rows.iter().flat_map(row).copied().collect())
            }
            Self::Device(_) if rows.is_empty() => Ok(Vec::new()),
            Self::Device(values) => {
                Self::Device(values.index_select(&Tensor::new(rows, values.device())?, 0)?).into_host()
            }
        }
    }

    /// The likeliest token of each row, out of `masks` where there are some: a bit for each token, the lowest first.
    pub fn likeliest(&self, masks: &[Option<&[u32]>], vocabulary: usize) -> Result<Vec<Likeliest>> {
        match self {
            Self::Host(logits) => {
                Ok(logits.chunks_exact(vocabulary).zip(masks).map(|(row, mask)| likeliest(row, *mask)).collect())
            }
            Self::Device(logits) if logits.device().is_cuda() => on_device(logits, masks),
            Self::Device(_) => Self::Host(self.clone().into_host()?).likeliest(masks, vocabulary),
        }
    }

    /// For each of some groups of neighbouring rows, `counts` long, states of `width` numbers that add up to its sum: all of
    /// them, or the sum. Waits for the device.
    pub fn grouped(&self, counts: &[usize], width: usize) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Host(states) => {
                let mut rest = states.as_slice();
                let group = |count: &usize| {
                    let (own, later) = rest.split_at(count * width);
                    rest = later;
                    own.to_vec()
                };
                Ok(counts.iter().map(group).collect())
            }
            Self::Device(states) => {
                let groups = counts.iter().enumerate().flat_map(|(group, count)| vec![group as u32; *count]);
                let groups = Tensor::from_iter(groups, states.device())?;
                let sums = Tensor::zeros((counts.len(), width), DType::F32, states.device())?;
                sums.index_add(&groups, &states.to_dtype(DType::F32)?, 0)?.to_vec2()
            }
        }
    }
}

/// The likeliest token of one row; see [`StepRows::likeliest`].
pub fn likeliest(row: &[f32], mask: Option<&[u32]>) -> Likeliest {
    let mut best = Likeliest { token: 0, logit: f32::NEG_INFINITY };
    let see = |best: &mut Likeliest, token: usize, logit: f32| {
        if logit > best.logit || logit.is_nan() && !best.logit.is_nan() {
            *best = Likeliest { token: token as u32, logit };
        }
    };
    match mask {
        None => {
            const ABREAST: usize = 256;
            for (place, logits) in row.chunks(ABREAST).enumerate() {
                // Few pieces have more than all before them, so most are only compared, many at a time.
                if logits.iter().fold(false, |any, logit| any | (*logit > best.logit) | logit.is_nan()) {
                    logits.iter().enumerate().for_each(|(at, logit)| see(&mut best, place * ABREAST + at, *logit));
                }
            }
        }
        Some(words) => {
            // Most words of a schema's masks are empty.
            for (place, (word, logits)) in words.iter().zip(row.chunks(32)).enumerate().filter(|(_, both)| *both.0 != 0)
            {
                let allowed = logits.iter().enumerate().filter(|(bit, _)| word & (1 << bit) != 0);
                allowed.for_each(|(bit, logit)| see(&mut best, place * 32 + bit, *logit));
            }
        }
    }
    best
}

fn on_device(logits: &Tensor, masks: &[Option<&[u32]>]) -> Result<Vec<Likeliest>> {
    const THREADS: usize = 1024;
    let (rows, vocabulary) = logits.dims2()?;
    let device = logits.device();
    let words = vocabulary.div_ceil(32);
    let masks = match masks.iter().any(Option::is_some) {
        false => None,
        true => {
            let mut all = Vec::with_capacity(rows * words);
            for mask in masks {
                let until = all.len() + words;
                match mask {
                    Some(mask) => all.extend(mask.iter().take(words)),
                    None => all.resize(until, u32::MAX),
                }
                all.resize(until, 0);
            }
            Some(Tensor::from_vec(all, (rows, words), device)?)
        }
    };
    let chosen = unwritten((rows, 2), DType::U32, device)?;
    let arguments = [
        Argument::Tensor(logits),
        Argument::optional(masks.as_ref()),
        Argument::Tensor(&chosen),
        Argument::Count(vocabulary),
    ];
    let name = format!("choose_{}", suffix(logits.dtype())?);
    launch(device, Kernel::Choose, &name, Grid::new((rows, 1), THREADS), &arguments)?;
    let chosen = chosen.to_vec2::<u32>()?;
    Ok(chosen.iter().map(|row| Likeliest { token: row[0], logit: f32::from_bits(row[1]) }).collect())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_likeliest_is_the_first_of_the_highest_that_are_allowed() {
        let mut row = vec![0.0; 70];
        (row[5], row[40], row[69]) = (2.0, 3.0, 3.0);
        assert_eq!(likeliest(&row, None), Likeliest { token: 40, logit: 3.0 });
        assert_eq!(likeliest(&row, Some(&[1 << 5 | 1, 0, 0])), Likeliest { token: 5, logit: 2.0 });
        assert_eq!(likeliest(&row, Some(&[0, 0, 1 << 5])), Likeliest { token: 69, logit: 3.0 });
        assert_eq!(likeliest(&row, Some(&[0; 3])).logit, f32::NEG_INFINITY);
    }

    #[test]
    fn a_logit_that_is_no_number_shows_if_it_is_allowed() {
        let row = [1.0, f32::NAN, 5.0];
        assert!(likeliest(&row, None).logit.is_nan());
        assert_eq!(likeliest(&row, Some(&[0b101])).token, 2);
    }

    #[test]
    fn groups_add_up_to_the_same_wherever_the_states_lie() {
        let states = Tensor::arange(0.0_f32, 12.0, &Device::Cpu).unwrap().reshape((6, 2)).unwrap();
        let counts = [2, 0, 3, 1];
        let rows = StepRows::of(states.clone()).unwrap().grouped(&counts, 2).unwrap();
        assert_eq!(rows, [vec![0.0, 1.0, 2.0, 3.0], vec![], vec![4.0, 5.0, 6.0, 7.0, 8.0, 9.0], vec![10.0, 11.0]]);
        let sums = StepRows::Device(states).grouped(&counts, 2).unwrap();
        assert_eq!(sums, [[2.0, 4.0], [0.0, 0.0], [18.0, 21.0], [10.0, 11.0]]);
    }
}
