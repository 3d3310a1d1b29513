//! The assembly line: one stage, one file. `wiring` shows how they are joined; the coordinator owns the ledger.
//!
//! Source -> coordinator -> decode -> fetch -> prepare -> infer -> (outcomes back to the) coordinator -> commit.

mod admission;
mod commit;
mod coordinator;
mod decode;
mod error;
mod fetch;
mod finish;
mod infer;
mod options;
mod patience;
mod positions;
mod prepare;
mod progress;
mod rows;
mod tracked;
mod wiring;

pub use error::PipelineError;
pub use options::Options;
pub use progress::{Progress, Snapshot};
pub use wiring::{Mode, Parts, run};
