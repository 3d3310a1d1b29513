//! The `assay` binary: hands the command line to [`assay::cli`] and turns its result into an exit code.

use std::process::ExitCode;

/// Rows and pictures are made on one thread and freed on another, which the system's allocator answers with growth.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    assay::cli::main()
}
