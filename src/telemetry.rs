//! Logs: for a person on a terminal, as JSON lines elsewhere; always on standard error.
//!
//! It knows no room; every room logs through `tracing` with fields and a constant message.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// How a log record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Pretty,
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("--log {filter:?} is not a filter: {detail}; try info, or warn,assay::pipeline=debug")]
    Filter { filter: String, detail: String },
    #[error("logging was set up before")]
    Twice,
}

/// Libraries that say too much at the level `info`. What Kafka clients complain of is logged by the source, with its job.
const QUIET: &str = "datafusion=warn,delta_kernel=warn,buoyant_kernel=warn,deltalake_core=warn,hyper=warn,h2=warn,\
rustyline=warn,object_store=warn,deltalake_core::writer::stats=error,librdkafka=off,rdkafka=off";

/// Sends log records that pass the filter to standard error from now on. Once per process.
pub fn init(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    let filter = parse(filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let outcome = match format {
        LogFormat::Json => builder.json().flatten_event(true).with_timer(SystemTime).try_init(),
        LogFormat::Pretty => builder.compact().with_target(false).without_time().try_init(),
    };
    outcome.map_err(|_| TelemetryError::Twice)
}

/// What the operator says stands behind the quiet list, so that it wins.
fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(format!("{QUIET},{filter}"))
        .map_err(|error| TelemetryError::Filter { filter: filter.to_owned(), detail: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_named() {
        let error = parse("assay=loud").unwrap_err();
        assert!(error.to_string().contains("assay=loud"), "{error}");
    }

    #[test]
    fn libraries_are_quiet_unless_they_are_asked() {
        assert!(parse("info").unwrap().to_string().contains("hyper=warn"));
        let asked = parse("info,hyper=debug").unwrap().to_string();
        assert!(asked.contains("hyper=debug") && !asked.contains("hyper=warn"), "{asked}");
    }
}
