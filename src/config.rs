//! The whole configuration: one section per room, each with the room's own Options.
//!
//! This is the only place that reads the environment. It knows the names of the sections and rules between keys; what a
//! key means is for its room to say. Invariant: a [`Config`] has passed every check that needs neither network nor job
//! files.

mod hub;
mod layers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

pub use self::hub::hub_options;
use self::layers::{Layers, Origins};
use crate::job::Problem;
use crate::query::JobTables;
use crate::{engine, media, pipeline, retry, sink, source, traces};

const SECTIONS: [&str; 10] =
    ["jobs", "source", "media", "tables", "engine", "models", "pipeline", "server", "run", "traces"];
const TABLE_SCHEMES: [&str; 8] = ["file", "s3", "s3a", "gs", "az", "abfs", "abfss", "memory"];

/// Everything that can be configured. Paths are absolute.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of the job files.
    pub jobs: PathBuf,
    pub source: SourceOptions,
    pub media: media::Options,
    pub tables: sink::Options,
    pub engine: engine::Options,
    /// By the name that jobs use.
    pub models: BTreeMap<String, engine::ModelOptions>,
    pub pipeline: pipeline::Options,
    pub server: ServerOptions,
    pub run: RunOptions,
    pub traces: traces::Options,
    origins: Origins,
}

/// Section `[source]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceOptions {
    pub kind: SourceKind,
    pub kafka: source::KafkaOptions,
    pub replay: source::ReplayOptions,
}

/// Where records come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    Kafka,
    Replay,
}

/// Section `[server]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerOptions {
    /// Serves /metrics, /healthz and /readyz.
    pub address: SocketAddr,
}

/// Section `[run]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunOptions {
    /// After SIGTERM: how long work in flight may settle before the last commit.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

impl Config {
    /// Where SQL finds the tables of a job.
    pub fn job_tables(&self, job: &str) -> JobTables {
        let url = format!("{}/{job}", self.tables.url.trim_end_matches('/'));
        JobTables { job: job.to_owned(), url, options: self.tables.options.clone() }
    }

    /// Reads the defaults, then the file (without one: `assay.toml` or `config.toml` of the current folder, if there is
    /// one), then the environment's `ASSAY__SECTION__KEY`, and validates the outcome. All problems are told.
    pub fn load(path: Option<&Path>) -> Result<Self, Vec<Problem>> {
        Self::load_with_jobs(path).1
    }

    /// The folder of job files as well, as soon as it is known, so that a check can look at jobs in spite of a
    /// configuration that is wrong elsewhere.
    pub fn load_with_jobs(path: Option<&Path>) -> (Option<PathBuf>, Result<Self, Vec<Problem>>) {
        let found = path
            .map(Path::to_owned)
            .or_else(|| ["assay.toml", "config.toml"].into_iter().map(PathBuf::from).find(|file| file.is_file()));
        let Some(file) = found else { return Self::assemble(None, environment()) };
        match std::fs::read_to_string(&file) {
            Ok(text) => Self::assemble(Some((&file, &text)), environment()),
            Err(error) => {
                let message = format!("cannot be read as the configuration: {error}");
                (None, Err(vec![Problem::of_file(&file, message)]))
            }
        }
    }

    /// The file that was read; none when only defaults and environment hold.
    pub fn file(&self) -> Option<&Path> {
        self.origins.file()
    }

    /// A complaint about a key such as `tables.partition_by[0]`, naming the file and line, or the variable, that set
    /// it.
    pub fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        self.origins.problem(key, message)
    }

    /// Checks values against each other. `load` has done so already; call it again after changing values.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = self.check_source();
        problems.extend(self.check_media());
        problems.extend(self.check_tables());
        problems.extend(self.check_capacity());
        let wrong = self.traces.validate().into_iter();
        problems.extend(wrong.map(|(key, message)| self.problem(&format!("traces.{key}"), message)));
        problems
    }

    fn assemble(
        file: Option<(&Path, &str)>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> (Option<PathBuf>, Result<Self, Vec<Problem>>) {
        let mut layers = match Layers::merge(file, environment) {
            Ok(layers) => layers,
            Err(problems) => return (None, Err(problems)),
        };
        let jobs: Option<PathBuf> = layers.take("jobs");
        (jobs.clone(), Self::from_layers(jobs, layers))
    }

    fn from_layers(jobs: Option<PathBuf>, mut layers: Layers) -> Result<Self, Vec<Problem>> {
        let source = layers.take("source");
        let media = layers.take("media");
        let tables = layers.take("tables");
        let engine = layers.take("engine");
        let models = layers.take("models");
        let pipeline = layers.take("pipeline");
        let server = layers.take("server");
        let run = layers.take("run");
        let traces = layers.take("traces");
        let (origins, problems) = layers.finish(&SECTIONS);
        let complete = || {
            Some(Self {
                jobs: jobs?,
                source: source?,
                media: media?,
                tables: tables?,
                engine: engine?,
                models: models?,
                pipeline: pipeline?,
                server: server?,
                run: run?,
                traces: traces?,
                origins,
            })
        };
        let Some(config) = complete().filter(|_| problems.is_empty()) else { return Err(problems) };
        let problems = config.validate();
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    fn check_source(&self) -> Vec<Problem> {
        let source = &self.source;
        match source.kind {
            SourceKind::Kafka if source.kafka.bootstrap_servers.trim().is_empty() => {
                vec![self.problem("source.kafka.bootstrap_servers", "is empty; name at least one broker as host:port")]
            }
            SourceKind::Replay if source.replay.topics.is_empty() => {
                vec![
                    self.problem(
                        "source.replay.topics",
                        "is empty; name a file or folder of JSON lines for each topic",
                    ),
                ]
            }
            SourceKind::Kafka | SourceKind::Replay => Vec::new(),
        }
    }

    fn check_media(&self) -> Vec<Problem> {
        let complaints = self.media.validate();
        let mut problems: Vec<Problem> = complaints
            .iter()
            .map(|complaint| {
                let text = complaint.to_string();
                match text.split_once(": ") {
                    Some((key, message)) if key.starts_with("media") => self.problem(key, message),
                    _ => self.problem("media", text),
                }
            })
            .collect();
        problems.extend(self.check_retry("media.retry", &self.media.retry));
        problems
    }

    fn check_tables(&self) -> Vec<Problem> {
        let tables = &self.tables;
        let mut problems = Vec::new();
        match Url::parse(&tables.url) {
            Ok(url) if TABLE_SCHEMES.contains(&url.scheme()) => {}
            Ok(_) => {
                problems.push(self.problem("tables.url", "must be a file://, s3://, gs:// or az:// URL, or a path"))
            }
            Err(error) => problems.push(self.problem("tables.url", format!("is no URL: {error}"))),
        }
        let mut seen = BTreeSet::new();
        for (index, column) in tables.partition_by.iter().enumerate() {
            if !seen.insert(column) {
                let key = format!("tables.partition_by[{index}]");
                problems.push(self.problem(&key, format!("is {column:?}, which is listed before; name it once")));
            }
        }
        if tables.upkeep.retention < Duration::from_secs(3600) {
            let message = "must be at least \"1h\": readers and commits may still use younger files";
            problems.push(self.problem("tables.upkeep.retention", message));
        }
        problems.extend(self.check_retry("tables.retry", &tables.retry));
        problems
    }

    fn check_retry(&self, section: &str, retry: &retry::Options) -> Vec<Problem> {
        let initial = (retry.initial.is_zero(), "initial", "must be more than zero");
        let maximum = (retry.maximum < retry.initial, "maximum", "must not be less than initial");
        [initial, maximum]
            .into_iter()
            .filter(|(is_wrong, ..)| *is_wrong)
            .map(|(_, name, message)| self.problem(&format!("{section}.{name}"), message))
            .collect()
    }

    fn check_capacity(&self) -> Vec<Problem> {
        let pipeline = &self.pipeline;
        let commit = &self.tables.commit;
        let zeros = [
            (commit.rows == 0, "tables.commit.rows"),
            (commit.bytes.as_u64() == 0, "tables.commit.bytes"),
            (commit.interval.is_zero(), "tables.commit.interval"),
            (self.tables.upkeep.target_file_size.as_u64() == 0, "tables.upkeep.target_file_size"),
            (self.engine.batch_tokens == 0, "engine.batch_tokens"),
            (self.engine.queue == 0, "engine.queue"),
            (pipeline.assets == 0, "pipeline.assets"),
            (pipeline.bytes.as_u64() == 0, "pipeline.bytes"),
            (self.run.grace.is_zero(), "run.grace"),
        ];
        let mut problems: Vec<Problem> = zeros
            .into_iter()
            .filter(|(is_zero, _)| *is_zero)
            .map(|(_, key)| self.problem(key, "must be more than zero"))
            .collect();
        let device = self.engine.device.as_str();
        let is_gpu = |number: &str| !number.is_empty() && number.chars().all(|c| c.is_ascii_digit());
        if device != "cpu" && !device.strip_prefix("cuda:").is_some_and(is_gpu) {
            problems.push(self.problem("engine.device", format!("is {device:?}; it must be \"cpu\" or \"cuda:0\"")));
        }
        if pipeline.media_reserve > pipeline.bytes {
            let message = "must not be more than pipeline.bytes, else no medium could ever be read";
            problems.push(self.problem("pipeline.media_reserve", message));
        }
        problems
    }
}

/// Where this user's programs keep data, as the XDG base directory specification says; none without a home.
pub fn data_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")?.join(".local/share")))?;
    Some(base.join("assay"))
}

/// Variables that are not Unicode cannot be ours: every name of ours is.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<Problem>> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::assemble(Some((Path::new("/etc/assay/assay.toml"), text)), environment).1
    }

    fn one_problem(text: &str, environment: &[(&str, &str)]) -> Problem {
        let mut problems = read(text, environment).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.remove(0)
    }

    #[test]
    fn the_defaults_are_a_valid_configuration() {
        let config = Config::assemble(None, std::iter::empty()).1.unwrap();
        assert_eq!(config.source.kind, SourceKind::Kafka);
        assert_eq!(config.jobs, std::path::absolute("jobs").unwrap());
        assert_eq!(config.tables.url, "file:///var/lib/assay/tables");
        assert_eq!(config.tables.commit.interval, Duration::from_secs(5));
        assert_eq!(config.server.address, "0.0.0.0:9464".parse().unwrap());
        assert_eq!(config.run.grace, Duration::from_secs(30));
        assert_eq!(config.file(), None);
    }

    #[test]
    fn a_file_wins_over_the_defaults_and_the_environment_over_the_file() {
        let text = "[tables.commit]\nrows = 5\ninterval = \"1s\"\n";
        let config = read(text, &[("ASSAY__TABLES__COMMIT__ROWS", "7"), ("HOME", "/home/me")]).unwrap();
        assert_eq!(config.tables.commit.rows, 7);
        assert_eq!(config.tables.commit.interval, Duration::from_secs(1));
        assert_eq!(config.tables.commit.bytes, bytesize::ByteSize::mib(64));
    }

    #[test]
    fn the_environment_sets_texts_lists_and_secrets() {
        let environment = [
            ("ASSAY__SOURCE__KAFKA__BOOTSTRAP_SERVERS", "one:9092,two:9092"),
            ("ASSAY__SOURCE__KAFKA__PROPERTIES__SASL_PASSWORD", "12345"),
            ("ASSAY__MEDIA__ALLOW", "[\"s3://shop/pictures\"]"),
            ("ASSAY__TABLES__OPTIONS__AWS_SECRET_ACCESS_KEY", "true"),
            ("ASSAY__MODELS__DEMO__PATH", "models/demo"),
            ("ASSAY__MODELS__FAR__PATH", "hf://org/name@v1"),
        ];
        let config = read("", &environment).unwrap();
        assert_eq!(config.source.kafka.bootstrap_servers, "one:9092,two:9092");
        assert_eq!(config.source.kafka.properties["sasl.password"], "12345");
        assert_eq!(config.media.allow, ["s3://shop/pictures"]);
        assert_eq!(config.tables.options["aws_secret_access_key"], "true");
        assert_eq!(config.models["demo"].path, Path::new("/etc/assay/models/demo"));
        assert_eq!(config.models["far"].path, Path::new("hf://org/name@v1"));
        let printed = format!("{config:?}");
        assert!(!printed.contains("12345") && !printed.contains("\"true\""), "{printed}");
    }

    #[test]
    fn relative_paths_start_from_the_folder_of_the_file() {
        let text = "jobs = \"../jobs\"\n[source.replay]\ntopics = { ads = \"data/ads.jsonl\" }\n\
                    [tables]\nurl = \"tables here\"\n[models.demo]\npath = \"./demo\"\n";
        let config = read(text, &[]).unwrap();
        assert_eq!(config.jobs, Path::new("/etc/jobs"));
        assert_eq!(config.source.replay.topics["ads"], Path::new("/etc/assay/data/ads.jsonl"));
        assert_eq!(config.tables.url, "file:///etc/assay/tables%20here");
        assert_eq!(config.models["demo"].path, Path::new("/etc/assay/demo"));
    }

    /// A file, and the line, key and words of the one complaint about it.
    const WRONG: [(&str, usize, &str, &str); 26] = [
        ("jobs = 3\n", 1, "jobs", "it must be"),
        ("[medium]\n", 1, "medium", "did you mean `media`?"),
        ("job = \"x\"\n", 1, "job", "did you mean `jobs`?"),
        ("\n[media]\nconcurency = 3\n", 3, "media.concurency", "did you mean `concurrency`?"),
        ("[media]\nconcurrency = 0\n", 2, "media.concurrency", "more than zero"),
        ("[media]\nstall_timeout = \"soon\"\n", 2, "media.stall_timeout", "\"soon\""),
        ("media = 5\n", 1, "media", "is 5; it must be a section"),
        ("[media]\nallow = [\n  \"s3://a\",\n  7,\n]\n", 4, "media.allow[1]", "is 7; it must be a text in quotes"),
        ("[media.retry]\nmaximum = \"1ms\"\n", 2, "media.retry.maximum", "less than initial"),
        ("[source]\nkind = \"file\"\n", 2, "source.kind", "one of kafka, replay"),
        ("[source]\nkind = \"replay\"\n", 1, "source.replay.topics", "is empty"),
        ("[source.kafka]\nbootstrap_servers = \"\"\n", 2, "source.kafka.bootstrap_servers", "at least one broker"),
        ("[source.kafka.properties]\n\"a.b\" = [12345]\n", 2, "source.kafka.properties.\"a.b\"", "a text in quotes"),
        ("[tables]\nurl = \"http://x\"\n", 2, "tables.url", "file://"),
        ("[tables]\npartition_by = [\"kind\",\n\"kind\"]\n", 3, "tables.partition_by[1]", "listed before"),
        ("[tables.commit]\nrows = -1\n", 2, "tables.commit.rows", "is -1; it must be a whole number, not negative"),
        ("[tables.commit]\nrows = 0\n", 2, "tables.commit.rows", "more than zero"),
        ("[tables.commit]\nbytes = \"big\"\n", 2, "tables.commit.bytes", "such as \"64MiB\""),
        ("[tables]\noptions = \"12345\"\n", 2, "tables.options", "a section of names and texts"),
        ("[tables.options]\naws_secret_access_key = 12345\n", 2, "tables.options.aws_secret_access_key", "a text"),
        ("[tables.upkeep]\nretention = \"5m\"\n", 2, "tables.upkeep.retention", "at least \"1h\""),
        ("[engine]\ndevice = \"gpu\"\n", 2, "engine.device", "\"cpu\" or \"cuda:0\""),
        ("[models.demo]\npaht = \"x\"\n", 2, "models.demo.paht", "did you mean `path`?"),
        ("[pipeline]\nmedia_reserve = \"1GiB\"\n", 2, "pipeline.media_reserve", "pipeline.bytes"),
        ("[server]\naddress = \"9464\"\n", 2, "server.address", "socket address"),
        ("[run]\ngrace = = \"1s\"\n", 2, "", "not TOML"),
    ];

    #[test]
    fn every_mistake_is_named_by_file_line_and_key() {
        for (text, line, key, words) in WRONG {
            let problem = one_problem(text, &[]);
            assert_eq!((problem.line, problem.key.as_str()), (Some(line), key), "{problem}");
            assert_eq!(problem.file, Path::new("/etc/assay/assay.toml"));
            assert!(problem.message.contains(words), "{words:?} is not in {problem}");
            assert!(!problem.message.contains("12345"), "{problem}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
        let text = "[media]\nx = 1\nconcurrency = \"many\"\ny = 2\n[run]\ngrace = 3\n[hello]\n";
        let problems = read(text, &[]).unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(keys, ["media.x", "media.concurrency", "media.y", "run.grace", "hello"]);
    }

    #[test]
    fn a_mistake_in_the_environment_names_the_variable() {
        let cases = [
            (("ASSAY__TABLES__COMMIT__ROWS", "many"), "tables.commit.rows"),
            (("ASSAY__TABLES__COMIT__ROWS", "5"), "tables.comit"),
            (("ASSAY__PIPELINE__ASSETS", "0"), "pipeline.assets"),
            (("ASSAY__HELLO", "x"), "hello"),
        ];
        for ((name, value), key) in cases {
            let problem = one_problem("", &[(name, value)]);
            assert_eq!(problem.key, key, "{problem}");
            assert_eq!(problem.file, PathBuf::from(format!("environment variable {name}")), "{problem}");
        }
        assert!(one_problem("", &[("ASSAY__TABLES____URL", "x")]).message.contains("names no key"));
    }

    #[test]
    fn the_folder_of_jobs_is_known_in_spite_of_mistakes_elsewhere() {
        let text = "jobs = \"work\"\n[run]\ngrace = 3\n";
        let (jobs, config) = Config::assemble(Some((Path::new("/etc/assay.toml"), text)), std::iter::empty());
        assert_eq!(jobs.as_deref(), Some(Path::new("/etc/work")));
        assert!(config.is_err());
    }

    #[test]
    fn a_file_that_is_not_there_is_a_problem() {
        let problems = Config::load(Some(Path::new("/nonexistent/assay.toml"))).unwrap_err();
        assert!(problems[0].to_string().starts_with("/nonexistent/assay.toml: cannot be read"), "{}", problems[0]);
    }
}
