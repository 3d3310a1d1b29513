//! Where the tables of one job lie. Store options may hold secrets and are never printed.

use std::collections::BTreeMap;
use std::fmt;

/// Where the tables of one job lie.
#[derive(Clone)]
pub struct JobTables {
    pub job: String,
    /// The folder of the job's tables: `results` and `rejections` lie in it.
    pub url: String,
    /// Keys of object_store; they may hold secrets.
    pub options: BTreeMap<String, String>,
}

impl fmt::Debug for JobTables {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("JobTables").field("job", &self.job).field("url", &self.url).finish_non_exhaustive()
    }
}
