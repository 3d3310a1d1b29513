//! The embeddings of all products by one system, at length one.
//!
//! It knows no model and no table. Invariant: every product has a vector, all have the same length in numbers, and each has
//! length one unless it is zero.

use std::collections::HashMap;

/// Vectors by the ids of the products.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Embeddings {
    dimensions: usize,
    vectors: HashMap<String, Vec<f32>>,
}

/// What is wrong with vectors that were read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum EmbeddingsError {
    #[error("{missing} of {products} products have no embedding, {id} among them")]
    Missing { missing: usize, products: usize, id: String },
    #[error("the embedding of {id} has {found} dimensions, others have {expected}")]
    Dimensions { id: String, found: usize, expected: usize },
}

impl Embeddings {
    /// Brings the vectors of `products` to length one.
    pub fn new(mut read: HashMap<String, Vec<f32>>, products: &[&str]) -> Result<Self, EmbeddingsError> {
        let missing: Vec<&&str> = products.iter().filter(|id| read.get(**id).is_none_or(Vec::is_empty)).collect();
        if let Some(id) = missing.first() {
            let (missing, products, id) = (missing.len(), products.len(), (**id).to_owned());
            return Err(EmbeddingsError::Missing { missing, products, id });
        }
        let mut vectors = HashMap::new();
        let mut dimensions = None;
        for id in products {
            let vector = read.remove(*id).unwrap_or_default();
            let expected = *dimensions.get_or_insert(vector.len());
            if vector.len() != expected {
                return Err(EmbeddingsError::Dimensions { id: (*id).to_owned(), found: vector.len(), expected });
            }
            vectors.insert((*id).to_owned(), unit(vector));
        }
        Ok(Self { dimensions: dimensions.unwrap_or(0), vectors })
    }

    /// Late fusion: the unit vectors of two systems one after the other, at length one again. The dot product of two such
    /// vectors is the mean of the two systems' own.
    pub fn concatenated(&self, other: &Self) -> Self {
        let joined = |id: &String, vector: &Vec<f32>| {
            let second = other.vectors.get(id).into_iter().flatten();
            (id.clone(), unit(vector.iter().chain(second).copied().collect()))
        };
        let vectors = self.vectors.iter().map(|(id, vector)| joined(id, vector)).collect();
        Self { dimensions: self.dimensions + other.dimensions, vectors }
    }

    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The vector of a product; empty for an id that is none.
    pub fn of(&self, id: &str) -> &[f32] {
        self.vectors.get(id).map_or(&[], Vec::as_slice)
    }
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let squares: f64 = vector.iter().map(|value| f64::from(*value).powi(2)).sum();
    let length = squares.sqrt().max(f64::MIN_POSITIVE);
    for value in &mut vector {
        *value = (f64::from(*value) / length) as f32;
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vectors: &[(&str, &[f32])]) -> HashMap<String, Vec<f32>> {
        vectors.iter().map(|(id, vector)| ((*id).to_owned(), vector.to_vec())).collect()
    }

    #[test]
    fn vectors_have_length_one_and_zero_stays_zero() {
        let found = Embeddings::new(read(&[("a", &[3.0, 4.0]), ("b", &[0.0, 0.0])]), &["a", "b"]).unwrap();
        assert_eq!((found.of("a"), found.of("b"), found.dimensions()), (&[0.6, 0.8][..], &[0.0, 0.0][..], 2));
    }

    #[test]
    fn both_halves_of_a_concatenation_weigh_the_same() {
        let products = ["a", "b"];
        let one = Embeddings::new(read(&[("a", &[9.0]), ("b", &[1.0])]), &products).unwrap();
        let two = Embeddings::new(read(&[("a", &[0.0, 0.1]), ("b", &[0.2, 0.0])]), &products).unwrap();
        let joined = one.concatenated(&two);
        assert_eq!(joined.dimensions(), 3);
        let dot: f32 = joined.of("a").iter().zip(joined.of("b")).map(|(a, b)| a * b).sum();
        // Equal by the first, at a right angle by the second.
        assert!((dot - 0.5).abs() < 1e-6, "{dot}");
    }

    #[test]
    fn a_product_without_an_embedding_is_named() {
        let error = Embeddings::new(read(&[("a", &[1.0]), ("b", &[])]), &["a", "b", "c"]).unwrap_err();
        assert_eq!(error.to_string(), "2 of 3 products have no embedding, b among them");
        let error = Embeddings::new(read(&[("a", &[1.0]), ("b", &[1.0, 2.0])]), &["a", "b"]).unwrap_err();
        assert_eq!(error.to_string(), "the embedding of b has 2 dimensions, others have 1");
    }
}
