//! `assay submit`: assets from JSON lines, CSV files or folders of pictures are enqueued on a topic.

mod csv_file;
mod draft;
mod folder;
mod json_lines;
mod send;

pub use draft::{Draft, Found, Problem};
pub use json_lines::read as read_json_lines;
pub use send::{SubmitOptions, run};
