//! Models: weights, tokenizers and forward passes. This room knows tokens and pixels, not products.
