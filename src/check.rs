//! `assay check`: configuration, jobs and schemas together, without network and without loading a model.
//!
//! It knows what must fit between configuration and jobs. Invariant: every problem that can be found is told, not only
//! the first; what passes here fails later only for reasons that lie outside these files.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::config::{Config, SourceKind};
use crate::domain::{ColumnType, TableSchema};
use crate::engine::check_output_schema;
use crate::job::{JobCatalog, JobSpec, Problem, did_you_mean, join_key, results_schema};
use crate::model::{HubAddress, is_model};

/// What was found in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// The configuration file; none when only defaults and environment hold.
    pub file: Option<PathBuf>,
    pub jobs: Vec<String>,
    pub models: Vec<String>,
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => writeln!(f, "configuration: {}", file.display())?,
            None => writeln!(f, "configuration: built-in defaults and environment")?,
        }
        writeln!(f, "jobs: {}", self.jobs.join(", "))?;
        write!(f, "models: {}", self.models.join(", "))
    }
}

/// All problems as one error, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// For `map_err` in front of a question mark.
pub fn problems_error(problems: Vec<Problem>) -> Problems {
    Problems(problems)
}

/// Checks everything that can be checked on this machine alone. Mistakes in the configuration do not hide those in
/// jobs.
pub fn check(config_path: Option<&Path>) -> Result<CheckReport, Vec<Problem>> {
    let (jobs, config) = Config::load_with_jobs(config_path);
    let catalog = jobs.map(|folder| JobCatalog::load(&folder));
    match (config, catalog) {
        (Ok(config), Some(Ok(catalog))) => {
            let problems = mismatches(&config, &catalog);
            if problems.is_empty() { Ok(report(&config, &catalog)) } else { Err(problems) }
        }
        (config, catalog) => {
            let mut problems = config.err().unwrap_or_default();
            problems.extend(catalog.and_then(Result::err).unwrap_or_default());
            Err(problems)
        }
    }
}

/// What does not fit between a configuration and jobs that are well-formed by themselves.
pub fn mismatches(config: &Config, catalog: &JobCatalog) -> Vec<Problem> {
    let mut problems = model_folders(config);
    problems.extend(replay_files(config));
    for job in catalog.jobs() {
        problems.extend(models_of_job(config, job));
        problems.extend(output_of_job(job));
        problems.extend(replay_topics_of_job(config, job));
        problems.extend(partitions_of_job(config, job));
    }
    problems
}

fn report(config: &Config, catalog: &JobCatalog) -> CheckReport {
    CheckReport {
        file: config.file().map(Path::to_owned),
        jobs: catalog.jobs().map(|job| job.name.clone()).collect(),
        models: config.models.keys().cloned().collect(),
    }
}

fn model_folders(config: &Config) -> Vec<Problem> {
    let complaints = config.models.iter().filter_map(|(name, model)| {
        let key = join_key(&join_key("models", name), "path");
        let complaint = match HubAddress::read(&model.path) {
            Err(error) => format!("is no place of the hub: {error}"),
            // Whether it is there is for the hub to say, and a check needs no network.
            Ok(Some(_)) => return None,
            Ok(None) if is_model(&model.path) => return None,
            Ok(None) => format!(
                "is {}, which holds no config.json; name the folder of a Hugging Face model, a GGUF file or hf://org/name",
                model.path.display()
            ),
        };
        Some(config.problem(&key, complaint))
    });
    complaints.collect()
}

fn replay_files(config: &Config) -> Vec<Problem> {
    if config.source.kind != SourceKind::Replay {
        return Vec::new();
    }
    let missing = config.source.replay.topics.iter().filter(|(_, path)| !path.exists());
    missing
        .map(|(topic, path)| {
            let key = join_key("source.replay.topics", topic);
            config.problem(&key, format!("is {}, which does not exist", path.display()))
        })
        .collect()
}

fn models_of_job(config: &Config, job: &JobSpec) -> Vec<Problem> {
    let embeddings = job.embeddings.iter().enumerate();
    let embedders = embeddings.map(|(index, embedding)| (format!("embeddings[{index}].model"), &embedding.model));
    let generator = job.annotate.iter().map(|annotate| ("annotate.model".to_owned(), &annotate.model));
    let named = embedders.chain(generator);
    let unlisted = named.filter(|(_, model)| !config.models.contains_key(model.as_ref()));
    unlisted
        .map(|(key, model)| {
            let help = did_you_mean(model, config.models.keys().map(String::as_str));
            let section = join_key("models", model);
            job.problem(&key, format!("is {model:?}, but the configuration has no [{section}]; {help}"))
        })
        .collect()
}

/// Features of an output schema that no grammar can enforce.
fn output_of_job(job: &JobSpec) -> Option<Problem> {
    let annotate = job.annotate.as_ref()?;
    let refusal = check_output_schema(&annotate.output).err()?;
    Some(Problem::of_file(&annotate.output_file, refusal))
}

fn replay_topics_of_job(config: &Config, job: &JobSpec) -> Vec<Problem> {
    if config.source.kind != SourceKind::Replay {
        return Vec::new();
    }
    let replayed = &config.source.replay.topics;
    let topics = job.topics.iter().enumerate();
    topics
        .filter(|(_, topic)| !replayed.contains_key(*topic))
        .map(|(index, topic)| {
            let help = did_you_mean(topic, replayed.keys().map(String::as_str));
            let message = format!("is {topic:?}, but source.replay.topics names no file for it; {help}");
            job.problem(&format!("topics[{index}]"), message)
        })
        .collect()
}

fn partitions_of_job(config: &Config, job: &JobSpec) -> Vec<Problem> {
    // The length of embeddings does not matter here: they cannot partition a table anyway.
    let Ok(schema) = results_schema(job, |_| Some(1)) else { return Vec::new() };
    let columns = config.tables.partition_by.iter().enumerate();
    columns
        .filter_map(|(index, name)| Some((index, partition_complaint(&schema, &job.name, name)?)))
        .map(|(index, message)| config.problem(&format!("tables.partition_by[{index}]"), message))
        .collect()
}

fn partition_complaint(schema: &TableSchema, job: &str, name: &str) -> Option<String> {
    let Some(position) = schema.position(name) else {
        let help = did_you_mean(name, schema.columns.iter().map(|column| column.name.as_str()));
        return Some(format!("is {name:?}, which is no column of job {job:?}; {help}"));
    };
    let nested = matches!(
        schema.columns[position].kind,
        ColumnType::Embedding { .. }
            | ColumnType::List(_)
            | ColumnType::Struct(_)
            | ColumnType::Map
            | ColumnType::Bytes
    );
    nested.then(|| format!("is {name:?}, which holds more than one value per row in job {job:?}; use a plain column"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct House(tempfile::TempDir);

    impl House {
        fn new() -> Self {
            let house = Self(tempfile::tempdir().unwrap());
            std::fs::create_dir_all(house.0.path().join("demo")).unwrap();
            std::fs::create_dir_all(house.0.path().join("jobs")).unwrap();
            house.write("demo/config.json", "{}");
            house.write("assay.toml", "[models.demo]\npath = \"demo\"\n");
            house.write("jobs/mugs.toml", &Self::job("mugs", ""));
            house
        }

        fn job(name: &str, more: &str) -> String {
            format!(
                "name = \"{name}\"\nkind = \"ad\"\ntopics = [\"ads\"]\n[[embeddings]]\ncolumn = \"e\"\nmodel = \"demo\"\n\
                 input = \"image\"\n{more}"
            )
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).unwrap();
        }

        fn check(&self) -> Result<CheckReport, Vec<Problem>> {
            check(Some(&self.0.path().join("assay.toml")))
        }

        /// File name, line and key of each problem, and all messages.
        fn complaints(&self) -> (Vec<(String, Option<usize>, String)>, String) {
            let problems = self.check().unwrap_err();
            let messages = problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n");
            let places = problems.into_iter().map(|problem| {
                (problem.file.file_name().unwrap().to_string_lossy().into_owned(), problem.line, problem.key)
            });
            (places.collect(), messages)
        }
    }

    fn place(file: &str, line: usize, key: &str) -> (String, Option<usize>, String) {
        (file.to_owned(), Some(line), key.to_owned())
    }

    #[test]
    fn what_fits_together_passes() {
        let report = House::new().check().unwrap();
        assert_eq!((report.jobs, report.models), (vec!["mugs".to_owned()], vec!["demo".to_owned()]));
    }

    #[test]
    fn a_model_must_be_listed_and_its_folder_must_hold_one() {
        let house = House::new();
        house.write("assay.toml", "\n[models.dmeo]\npath = \"nowhere\"\n");
        let (places, messages) = house.complaints();
        assert_eq!(places, [place("assay.toml", 3, "models.dmeo.path"), place("mugs.toml", 6, "embeddings[0].model")]);
        assert!(messages.contains("did you mean `dmeo`?"), "{messages}");
        assert!(messages.contains("no config.json"), "{messages}");
    }

    #[test]
    fn a_generator_must_be_listed_and_its_schema_must_be_one_that_a_grammar_enforces() {
        let house = House::new();
        let unique = r#"{"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": true, "items": {"type": "string"}}}}"#;
        house.write("jobs/out.json", unique);
        let annotate = "[annotate]\nmodel = \"llama\"\nprompt = \"{body}\"\noutput = \"out.json\"\n";
        house.write("jobs/mugs.toml", &House::job("mugs", annotate));
        let (places, messages) = house.complaints();
        let files: Vec<&str> = places.iter().map(|(file, _, _)| file.as_str()).collect();
        assert_eq!(files, ["mugs.toml", "out.json"]);
        assert_eq!(places[0], place("mugs.toml", 9, "annotate.model"));
        assert!(messages.contains("uniqueItems"), "{messages}");
    }

    #[test]
    fn replay_must_cover_the_topics_of_every_job() {
        let house = House::new();
        let config =
            "[models.demo]\npath = \"demo\"\n[source]\nkind = \"replay\"\n[source.replay.topics]\nad = \"x.jsonl\"\n";
        house.write("assay.toml", config);
        let (places, messages) = house.complaints();
        assert_eq!(places, [place("assay.toml", 6, "source.replay.topics.ad"), place("mugs.toml", 3, "topics[0]")]);
        assert!(messages.contains("did you mean `ad`?"), "{messages}");
    }

    #[test]
    fn partition_columns_must_be_plain_columns_of_every_job() {
        let house = House::new();
        let config = "[models.demo]\npath = \"demo\"\n[tables]\npartition_by = [\"kind\", \"knid\", \"e\"]\n";
        house.write("assay.toml", config);
        let (places, messages) = house.complaints();
        assert_eq!(
            places,
            [place("assay.toml", 4, "tables.partition_by[1]"), place("assay.toml", 4, "tables.partition_by[2]")]
        );
        assert!(messages.contains("did you mean `kind`?"), "{messages}");
    }

    #[test]
    fn mistakes_in_the_configuration_do_not_hide_those_in_jobs() {
        let house = House::new();
        house.write("assay.toml", "[models.demo]\npath = \"demo\"\n[run]\ngrace = 5\n");
        house.write("jobs/mugs.toml", &House::job("cups", ""));
        let (places, _) = house.complaints();
        assert_eq!(places, [place("assay.toml", 4, "run.grace"), place("mugs.toml", 1, "name")]);
    }

    #[test]
    fn a_mistake_prints_as_file_line_key_and_message() {
        let house = House::new();
        house.write("assay.toml", "[media]\nalow = []\n[models.demo]\npath = \"demo\"\n");
        let problems = problems_error(house.check().unwrap_err()).to_string();
        assert!(problems.ends_with("assay.toml:2: media.alow: is not a key that is known here; did you mean `allow`?"));
    }
}
