//! The weights of a model: found in files, mapped, and held in the number format that was asked for.

mod directory;
mod drawn;
mod gguf_file;
mod held;
mod mapped;
mod packed;
mod precision;
mod rearranged;
mod rows;
mod scope;

pub use directory::{read_json, weight_files};
pub use drawn::{KEY as DRAWN_KEY, VALUE as DRAWN_VALUE};
pub use gguf_file::Metadata;
pub use held::{Held, HeldTensor};
#[cfg(target_arch = "x86_64")]
pub use packed::multiplies_bytes;
pub use packed::{BLOCK_INPUTS, BLOCK_LINES, Packed, PackedLine, PackedScales, TILE_OUTPUTS, packs};
pub use precision::Precision;
pub use scope::{Matrix, Scope, Usage, Weights};
