//! All jobs of a folder.
//!
//! It knows which jobs would be in each other's way. Invariant: names and consumer groups are unique in a catalog.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::problem::Problem;
use super::spec::JobSpec;
use super::suggestion::did_you_mean;

/// The checked jobs of a folder, by name.
#[derive(Debug, Clone)]
pub struct JobCatalog {
    folder: PathBuf,
    jobs: BTreeMap<String, JobSpec>,
}

/// Nobody wrote a job of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no job {name:?} in {}; {help}", folder.display())]
pub struct UnknownJob {
    pub name: String,
    pub folder: PathBuf,
    /// The nearest job, or all of them.
    pub help: String,
}

impl JobCatalog {
    /// Reads every `*.toml` of the folder. All problems of all files are told.
    pub fn load(folder: &Path) -> Result<Self, Vec<Problem>> {
        let files = job_files(folder).map_err(|problem| vec![problem])?;
        let mut jobs = BTreeMap::new();
        let mut problems = Vec::new();
        for file in files {
            match JobSpec::load(&file) {
                Ok(job) => {
                    problems.extend(conflict(&job, &jobs));
                    jobs.insert(job.name.clone(), job);
                }
                Err(found) => problems.extend(found),
            }
        }
        match problems.is_empty() {
            true => Ok(Self { folder: folder.to_owned(), jobs }),
            false => Err(problems),
        }
    }

    /// The job of that name; the error lists what there is.
    pub fn get(&self, name: &str) -> Result<&JobSpec, UnknownJob> {
        self.jobs.get(name).ok_or_else(|| UnknownJob {
            name: name.to_owned(),
            folder: self.folder.clone(),
            help: did_you_mean(name, self.jobs.keys().map(String::as_str)),
        })
    }

    /// All jobs, ordered by name.
    pub fn jobs(&self) -> impl Iterator<Item = &JobSpec> {
        self.jobs.values()
    }
}

fn job_files(folder: &Path) -> Result<Vec<PathBuf>, Problem> {
    let unreadable = |error: std::io::Error| {
        Problem::of_file(folder, format!("cannot be read as the folder of job files: {error}; set the key jobs"))
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") && path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Problem::of_file(folder, "holds no job file; write one, such as product-embedding.toml"));
    }
    files.sort();
    Ok(files)
}

/// Two jobs of one group would split the partitions between them, and each would miss what the other reads.
fn conflict(job: &JobSpec, others: &BTreeMap<String, JobSpec>) -> Option<Problem> {
    let other = others.values().find(|other| other.group == job.group)?;
    let message = format!("is {:?}, which is the group of job {:?} too; give each job its own", job.group, other.name);
    Some(job.problem("group", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, group: &str) {
        let text = format!(
            "name = \"{name}\"\nkind = \"ad\"\ntopics = [\"t\"]\n{group}\n[[embeddings]]\ncolumn = \"e\"\n\
             model = \"m\"\ninput = \"image\"\n"
        );
        std::fs::write(folder.join(format!("{name}.toml")), text).unwrap();
    }

    #[test]
    fn the_jobs_that_come_with_assay_are_well_formed() {
        let catalog = JobCatalog::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs")).unwrap();
        let names: Vec<_> = catalog.jobs().map(|job| job.name.as_str()).collect();
        let annotating = ["ad-annotation", "ad-copy", "catalogue-mlperf", "product-annotation"];
        let mut all = [&annotating[..], &["ad-embedding", "cold-start-encoders", "product-embedding"]].concat();
        all.sort_unstable();
        assert_eq!(names, all);
        assert_eq!(catalog.get("ad-embedding").unwrap().group, "assay-ad-embedding");
    }

    #[test]
    fn an_unknown_job_is_answered_with_what_there_is() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "one", "");
        write(folder.path(), "three", "");
        std::fs::write(folder.path().join("notes.txt"), "no job").unwrap();
        let catalog = JobCatalog::load(folder.path()).unwrap();
        assert_eq!(catalog.get("thre").unwrap_err().help, "did you mean `three`?");
        assert_eq!(catalog.get("something").unwrap_err().help, "known are `one`, `three`");
    }

    #[test]
    fn two_jobs_of_one_group_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "one", "group = \"g\"");
        write(folder.path(), "two", "group = \"g\"");
        let problems = JobCatalog::load(folder.path()).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert_eq!((problems[0].key.as_str(), problems[0].line), ("group", Some(4)));
        assert!(problems[0].message.contains("job \"one\" too"), "{}", problems[0]);
    }

    #[test]
    fn the_problems_of_all_files_are_told() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "one", "gruop = \"g\"");
        write(folder.path(), "two", "topic = \"g\"");
        let problems = JobCatalog::load(folder.path()).unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["gruop", "topic"]);
    }

    #[test]
    fn a_folder_without_jobs_is_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        assert!(JobCatalog::load(folder.path()).unwrap_err()[0].message.contains("holds no job file"));
        let missing = folder.path().join("missing");
        assert!(JobCatalog::load(&missing).unwrap_err()[0].message.contains("cannot be read"));
    }
}
