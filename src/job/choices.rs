//! Values of an asset that its answer is chosen from.
//!
//! A property of an output schema names them by `x-assay-choices`. It knows assets, no schema and no grammar.

use crate::domain::{Asset, Content};

/// The word in `x-assay-choices` that stands for a product's candidate categories.
pub(super) const CANDIDATE_CATEGORIES: &str = "candidate_categories";

/// What an output schema's `x-assay-choices` may name, with the asset's own values.
pub fn choices(asset: &Asset) -> Vec<(String, Vec<String>)> {
    match &asset.content {
        Content::Product(product) => {
            vec![(CANDIDATE_CATEGORIES.to_owned(), product.candidate_categories.clone())]
        }
        Content::Ad(_) => Vec::new(),
    }
}
