//! Any text is a job or a list of problems, and a job's templates, fingerprint and model names can be had.
#![no_main]

use std::path::Path;

use assay::job::JobSpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match JobSpec::parse(Path::new("fuzz.toml"), text) {
        Ok(job) => assert!(!job.name.is_empty() && !job.topics.is_empty() && !job.fingerprint().is_empty()),
        Err(problems) => assert!(!problems.is_empty()),
    }
});
