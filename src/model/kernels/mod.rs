//! Assay's own CUDA kernels, and the one way to launch them.
//!
//! A kernel is a `.cu` file here, compiled to PTX by build.rs when the build has the feature `cuda`. What a kernel is for
//! is known to the layer that launches it. Without CUDA there is no device to launch on, and launching fails.

mod launch;

pub use launch::{Argument, Grid, Kernel, is_narrow, launch, suffix, unwritten};
