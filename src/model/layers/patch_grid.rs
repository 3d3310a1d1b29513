//! The patches of one picture as Qwen's towers take them: in the order of the squares that are merged.
//!
//! Squares go row by row, and the patches within a square too, so that each square is a run of rows. Knows no tensors.
//! Invariant: both sides of a grid are multiples of the square's side.

use crate::model::api::{ModelError, VisionInput};

/// Rows and columns of patches, and the side of the square that becomes one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchGrid {
    pub rows: usize,
    pub columns: usize,
    pub merge: usize,
}

impl PatchGrid {
    /// The grid of `image`, whose patches have `values` values each. Fails with [`ModelError::Input`] when the numbers do
    /// not fit each other.
    pub fn of(image: &VisionInput, merge: usize, values: usize) -> Result<Self, ModelError> {
        let (rows, columns) = image.grid;
        let fits = rows * columns > 0
            && rows % merge == 0
            && columns % merge == 0
            && image.values.len() == rows * columns * values
            && image.tokens == rows * columns / (merge * merge);
        if fits {
            return Ok(Self { rows, columns, merge });
        }
        let detail = format!(
            "a picture of {rows} x {columns} patches with {} values and {} tokens, where {merge} x {merge} patches of \
             {values} values make a token",
            image.values.len(),
            image.tokens
        );
        Err(ModelError::Input { detail })
    }

    /// Number of patches.
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Row and column of each patch, in order.
    pub fn places(&self) -> Vec<[usize; 2]> {
        let merge = self.merge;
        let mut places = Vec::with_capacity(self.len());
        for row in (0..self.rows).step_by(merge) {
            for column in (0..self.columns).step_by(merge) {
                places.extend((0..merge * merge).map(|inner| [row + inner / merge, column + inner % merge]));
            }
        }
        places
    }

    /// The squares of each window of `side` x `side` of them, windows row by row; smaller at the right and lower edge.
    pub fn windows(&self, side: usize) -> Vec<Vec<usize>> {
        let (rows, columns) = (self.rows / self.merge, self.columns / self.merge);
        let mut windows = Vec::new();
        for top in (0..rows).step_by(side) {
            for left in (0..columns).step_by(side) {
                let across = left..columns.min(left + side);
                let down = top..rows.min(top + side);
                windows.push(down.flat_map(|row| across.clone().map(move |column| row * columns + column)).collect());
            }
        }
        windows
    }
}

/// Positions on the time, height and width axes; a picture has no time.
pub fn grid_positions(places: &[[usize; 2]]) -> Vec<[u32; 3]> {
    // No grid is that large: its patches would not fit into memory.
    let axis = |place: usize| u32::try_from(place).unwrap_or(u32::MAX);
    places.iter().map(|[row, column]| [0, axis(*row), axis(*column)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: PatchGrid = PatchGrid { rows: 4, columns: 6, merge: 2 };

    #[test]
    fn patches_of_a_square_follow_each_other() {
        let places = GRID.places();
        assert_eq!(places.len(), GRID.len());
        assert_eq!(places[..5], [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]);
        assert_eq!(places[12], [2, 0]);
    }

    #[test]
    fn windows_cover_all_squares_and_are_cut_at_the_edges() {
        assert_eq!(GRID.windows(2), [vec![0, 1, 3, 4], vec![2, 5]]);
        assert_eq!(GRID.windows(8), [vec![0, 1, 2, 3, 4, 5]]);
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let image = |grid: (usize, usize), values: usize, tokens: usize| {
            let image = VisionInput { values: vec![0.0; values], grid, tokens, hash: [0; 32] };
            PatchGrid::of(&image, 2, 3)
        };
        assert_eq!(image((4, 6), 72, 6).unwrap(), GRID);
        for (grid, values, tokens) in [((3, 6), 54, 4), ((4, 6), 71, 6), ((4, 6), 72, 5), ((0, 6), 0, 0)] {
            let refusal = image(grid, values, tokens).unwrap_err();
            assert!(matches!(refusal, ModelError::Input { .. }), "{refusal}");
        }
    }
}
