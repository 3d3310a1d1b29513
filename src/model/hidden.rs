//! Last hidden states of a step's wanted rows, where the step left them.
//!
//! Invariant: the host's sums are of rows one after the other, so that they do not depend on how a step cuts its
//! sequences; a device adds them up itself, so that one row a sequence comes back.

use candle_core::{DType, Result, Tensor};

/// States of a step's wanted rows.
#[derive(Debug, Clone)]
pub enum HiddenStates {
    /// `[wanted, hidden]`, row after row.
    Host(Vec<f32>),
    /// `[wanted, hidden]`, in the format of activations.
    Device(Tensor),
}

impl Default for HiddenStates {
    fn default() -> Self {
        Self::Host(Vec::new())
    }
}

impl HiddenStates {
    /// Takes over `[wanted, hidden]`: to the host, unless it lies on a device that adds them up.
    pub fn of(states: Tensor) -> Result<Self> {
        if states.device().is_cuda() {
            return Ok(Self::Device(states));
        }
        Ok(Self::Host(states.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?))
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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn groups_add_up_to_the_same_wherever_the_states_lie() {
        let states = Tensor::arange(0.0_f32, 12.0, &Device::Cpu).unwrap().reshape((6, 2)).unwrap();
        let counts = [2, 0, 3, 1];
        let rows = HiddenStates::of(states.clone()).unwrap().grouped(&counts, 2).unwrap();
        assert_eq!(rows, [vec![0.0, 1.0, 2.0, 3.0], vec![], vec![4.0, 5.0, 6.0, 7.0, 8.0, 9.0], vec![10.0, 11.0]]);
        let sums = HiddenStates::Device(states).grouped(&counts, 2).unwrap();
        assert_eq!(sums, [[2.0, 4.0], [0.0, 0.0], [18.0, 21.0], [10.0, 11.0]]);
    }
}
