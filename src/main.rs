//! The `assay` binary: hands the command line to [`assay::cli`] and turns its result into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    assay::heap::share();
    assay::cli::main()
}
