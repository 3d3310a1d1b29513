//! One job as its file describes it.
//!
//! It knows the keys of a job file and their rules, and nothing of how a job runs. Invariant: a [`JobSpec`] is complete
//! and consistent in itself; whether its models exist is for the configuration to say. Every complaint names file, key
//! and line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::annotate::{Annotate, read_annotate};
use super::annotation::is_column_name;
use super::columns::fixed_result_columns;
use super::key_lines::KeyLines;
use super::problem::Problem;
use super::prompt::{Template, read_template};
use super::reader::{Reader, Section};
use crate::domain::AssetKind;

/// A checked job file.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// Equals the file's stem.
    pub name: String,
    pub kind: AssetKind,
    /// At least one; none twice.
    pub topics: Vec<String>,
    /// The Kafka consumer group.
    pub group: String,
    pub limits: Limits,
    pub embeddings: Vec<Embedding>,
    pub annotate: Option<Annotate>,
    file: PathBuf,
    lines: KeyLines,
}

/// What one asset may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of one medium.
    pub media_bytes: u64,
    /// Most pixels (width x height) of one picture.
    pub pixels: u64,
    /// Longest side of one picture in pixels.
    pub side: u32,
    /// Most media of one asset.
    pub media: usize,
    /// Work on one asset before inference: decoding, reading its media, preparing. Queues and outages do not count.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let deadline = Duration::from_secs(60);
        Self { media_bytes: 16 << 20, pixels: 40_000_000, side: 16_384, media: 8, deadline }
    }
}

/// One column of vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedding {
    pub column: String,
    /// The name under which the configuration lists it.
    pub model: Arc<str>,
    pub input: EmbeddingInput,
}

/// What of an asset is embedded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddingInput {
    /// The first medium with the role `main`, else the first; the column is null when the asset has none.
    Image,
    Text(Template),
    /// The prompt of `[annotate]` as its model has read it: no computation of its own.
    Prompt(Pooling),
}

/// Which hidden states of a prompt make its embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// That of the last token.
    Last,
    /// The mean over the tokens that follow the instruction.
    Mean,
}

impl Pooling {
    /// As job files spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Mean => "mean",
        }
    }
}

impl JobSpec {
    /// Reads and checks a job file.
    pub fn load(file: &Path) -> Result<Self, Vec<Problem>> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| vec![Problem::of_file(file, format!("cannot be read: {error}"))])?;
        Self::parse(file, &text)
    }

    /// Checks the text of a job file. `file` gives the name that the job must have, and the folder of
    /// `annotate.output`.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<Problem>> {
        let reader = Reader::parse(file, text).map_err(|problem| vec![problem])?;
        let read = Parts::read(&reader, file);
        let (problems, lines) = reader.finish();
        match read {
            Some(parts) if problems.is_empty() => Ok(parts.into_spec(file, lines)),
            _ => Err(problems),
        }
    }

    /// A complaint about one of the file's keys, with its line.
    pub fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        let line = self.lines.line(key);
        Problem { line, key: key.to_owned(), ..Problem::of_file(&self.file, message) }
    }

    /// The names of the models that the job needs, each once, in the order of the file.
    pub fn models(&self) -> Vec<Arc<str>> {
        let annotate = self.annotate.iter().map(|annotate| &annotate.model);
        let mut models: Vec<Arc<str>> = Vec::new();
        for model in self.embeddings.iter().map(|embedding| &embedding.model).chain(annotate) {
            if !models.contains(model) {
                models.push(model.clone());
            }
        }
        models
    }

    /// The most pictures of an asset that any part of the job looks at.
    pub fn pictures(&self) -> usize {
        let embedded = self.embeddings.iter().any(|embedding| embedding.input == EmbeddingInput::Image);
        let shown = self.annotate.as_ref().map_or(0, |annotate| annotate.images);
        shown.max(usize::from(embedded))
    }

    /// 16 hexadecimal digits that differ whenever what the job writes about an asset may differ: kind, limits,
    /// embeddings, annotations and their schema count; comments, the order of keys, the name, topics and group do not.
    pub fn fingerprint(&self) -> String {
        let embeddings: Vec<Value> = self.embeddings.iter().map(canonical_embedding).collect();
        let annotate = self.annotate.as_ref().map(Annotate::canonical);
        let limits = &self.limits;
        let canonical = json!({
            "kind": self.kind.as_str(),
            "limits": {
                "media_bytes": limits.media_bytes,
                "pixels": limits.pixels,
                "side": limits.side,
                "media": limits.media,
                "deadline_ms": limits.deadline.as_millis() as u64,
            },
            "embeddings": embeddings,
            "annotate": annotate,
        });
        let digest = Sha256::digest(canonical.to_string());
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

fn canonical_embedding(embedding: &Embedding) -> Value {
    let (input, template) = match &embedding.input {
        EmbeddingInput::Image => ("image", None),
        EmbeddingInput::Text(template) => ("text", Some(template.source())),
        EmbeddingInput::Prompt(pooling) => ("prompt", Some(pooling.as_str())),
    };
    json!({"column": embedding.column, "model": *embedding.model, "input": input, "template": template})
}

/// What could be read; complete only when the reader has no complaint.
struct Parts {
    name: String,
    kind: AssetKind,
    topics: Vec<String>,
    group: Option<String>,
    limits: Limits,
    embeddings: Vec<Embedding>,
    annotate: Option<Annotate>,
}

impl Parts {
    fn read(reader: &Reader, file: &Path) -> Option<Self> {
        let mut root = reader.root();
        let name = read_name(&mut root, file);
        let kind = read_kind(&mut root);
        let topics = read_topics(&mut root);
        let group = root.text("group");
        if group.is_some_and(|group| group.trim().is_empty()) {
            root.complain("group", "is empty; leave it out for \"assay-{name}\"");
        }
        let limits = root.section("limits").map_or_else(Limits::default, read_limits);
        let sections = root.sections("embeddings");
        let asks_for_nothing = sections.is_empty();
        let embeddings: Vec<_> = sections.into_iter().map(|section| read_embedding(section, kind)).collect();
        let annotate_section = root.section("annotate");
        if asks_for_nothing && annotate_section.is_none() {
            let message = "is missing; add an [[embeddings]] or an [annotate] section, else the job has nothing to do";
            root.complain("embeddings", message);
        }
        let annotate = annotate_section.map(|section| read_annotate(section, kind, reader, file));
        root.finish();
        let embeddings: Vec<Embedding> = embeddings.into_iter().collect::<Option<_>>()?;
        let annotate = annotate.map_or(Some(None), |annotate| annotate.map(Some))?;
        check_columns(reader, &embeddings, annotate.as_ref());
        check_prompt_embeddings(reader, &embeddings, annotate.as_ref());
        let group = group.map(str::to_owned);
        Some(Self { name: name?, kind: kind?, topics: topics?, group, limits, embeddings, annotate })
    }

    fn into_spec(self, file: &Path, lines: KeyLines) -> JobSpec {
        JobSpec {
            group: self.group.unwrap_or_else(|| format!("assay-{}", self.name)),
            name: self.name,
            kind: self.kind,
            topics: self.topics,
            limits: self.limits,
            embeddings: self.embeddings,
            annotate: self.annotate,
            file: file.to_owned(),
            lines,
        }
    }
}

fn read_name(root: &mut Section<'_>, file: &Path) -> Option<String> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let name = root.required_text("name", &stem)?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends_well = |name: &str| !name.starts_with('-') && !name.ends_with('-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) || !ends_well(name) {
        let rule = "use up to 64 lower-case letters, digits and hyphens, no hyphen first or last";
        root.complain("name", format!("is {name:?}; {rule}"));
    } else if name != stem {
        root.complain("name", format!("is {name:?} but the file is {stem}.toml; rename one of them"));
    }
    Some(name.to_owned())
}

fn read_kind(root: &mut Section<'_>) -> Option<AssetKind> {
    let word = root.required_text("kind", "product")?;
    let kind = [AssetKind::Product, AssetKind::Ad].into_iter().find(|kind| kind.as_str() == word);
    if kind.is_none() {
        root.complain("kind", format!("is {word:?}; it must be \"product\" or \"ad\""));
    }
    kind
}

fn read_topics(root: &mut Section<'_>) -> Option<Vec<String>> {
    let Some(topics) = root.texts("topics") else {
        root.complain_if_absent("topics", "is missing; add it, for example topics = [\"products\"]");
        return None;
    };
    if topics.is_empty() {
        root.complain("topics", "is empty; name at least one topic");
    }
    for (index, topic) in topics.iter().enumerate() {
        let key = format!("topics[{index}]");
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if topic.is_empty() || topic.len() > 249 || matches!(*topic, "." | "..") || !topic.chars().all(allowed) {
            let rule = "Kafka allows up to 249 ASCII letters, digits, dots, underscores and hyphens";
            root.complain_at(&key, format!("is {topic:?}, which is no topic name; {rule}"));
        }
        if topics[..index].contains(topic) {
            root.complain_at(&key, format!("is {topic:?}, which is listed before; name each topic once"));
        }
    }
    Some(topics.into_iter().map(str::to_owned).collect())
}

fn read_limits(mut section: Section<'_>) -> Limits {
    let defaults = Limits::default();
    let limits = Limits {
        media_bytes: section.bytes("media_bytes").unwrap_or(defaults.media_bytes),
        pixels: section.count("pixels", 1 << 40).unwrap_or(defaults.pixels),
        side: section.count("side", 1 << 20).map_or(defaults.side, |side| side as u32),
        media: section.count("media", 1000).map_or(defaults.media, |media| media as usize),
        deadline: section.duration("deadline").unwrap_or(defaults.deadline),
    };
    section.finish();
    limits
}

fn read_embedding(mut section: Section<'_>, kind: Option<AssetKind>) -> Option<Embedding> {
    let column = section.required_text("column", "text_embedding");
    let model = section.required_text("model", "demo");
    let input = section.required_text("input", "text");
    let template = section.text("template");
    let pooling = read_pooling(&mut section, input);
    if model == Some("") {
        section.complain("model", "is empty; write a name that is listed under [models] of the configuration");
    }
    let input = match (input, template) {
        (Some("image"), None) => Some(EmbeddingInput::Image),
        (Some("prompt"), None) => pooling.map(EmbeddingInput::Prompt),
        (Some("image" | "prompt"), Some(_)) => {
            section.complain("template", "is for input = \"text\" only; remove it");
            None
        }
        (Some("text"), Some(template)) => read_template(&section, "template", template, kind).map(EmbeddingInput::Text),
        (Some("text"), None) => {
            let message = "is missing; say which text is embedded, for example template = \"{id}\"";
            section.complain_if_absent("template", message);
            None
        }
        (Some(other), _) => {
            section.complain("input", format!("is {other:?}; it must be \"image\", \"text\" or \"prompt\""));
            None
        }
        (None, _) => None,
    };
    section.finish();
    Some(Embedding { column: column?.to_owned(), model: model?.into(), input: input? })
}

/// The pooling of an embedding with `input = "prompt"`; the last token's without the key.
fn read_pooling(section: &mut Section<'_>, input: Option<&str>) -> Option<Pooling> {
    let word = section.text("pooling");
    match (input, word) {
        (Some("prompt"), None | Some("last")) => Some(Pooling::Last),
        (Some("prompt"), Some("mean")) => Some(Pooling::Mean),
        (Some("prompt"), Some(other)) => {
            section.complain("pooling", format!("is {other:?}; it must be \"last\" or \"mean\""));
            None
        }
        (_, Some(_)) => {
            section.complain("pooling", "is for input = \"prompt\" only; remove it");
            None
        }
        (_, None) => None,
    }
}

/// No two columns of the results table may have one name; tables do not tell upper from lower case.
fn check_columns(reader: &Reader, embeddings: &[Embedding], annotate: Option<&Annotate>) {
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for column in fixed_result_columns() {
        owners.insert(column.name, "a column that every results table has".to_owned());
    }
    for column in annotate.iter().flat_map(|annotate| &annotate.columns) {
        if let Some(owner) = owners.insert(column.name.to_lowercase(), "a property of annotate.output".to_owned()) {
            let message = format!("has the property {:?}, which is the name of {owner}; rename it", column.name);
            reader.complain("annotate.output", message);
        }
    }
    for (index, embedding) in embeddings.iter().enumerate() {
        let (key, name) = (format!("embeddings[{index}].column"), &embedding.column);
        if !is_column_name(name) {
            let rule = "use ASCII letters, digits and underscores, not a digit first";
            reader.complain(&key, format!("is {name:?}, which is no column name; {rule}"));
        }
        if let Some(owner) = owners.insert(name.to_lowercase(), format!("the column of embeddings[{index}]")) {
            reader.complain(&key, format!("is {name:?}, which is the name of {owner}; choose another"));
        }
    }
}

/// A prompt's embedding comes from the pass that annotates.
fn check_prompt_embeddings(reader: &Reader, embeddings: &[Embedding], annotate: Option<&Annotate>) {
    let asking = embeddings.iter().enumerate().filter(|(_, one)| matches!(one.input, EmbeddingInput::Prompt(_)));
    for (order, (index, embedding)) in asking.enumerate() {
        match annotate {
            None => {
                let message =
                    "is \"prompt\", which is that of [annotate]; add that section or embed \"text\" or \"image\"";
                reader.complain(&format!("embeddings[{index}].input"), message);
            }
            Some(annotate) if annotate.model != embedding.model => {
                let message =
                    format!("is {:?}, but [annotate] runs {:?}; name the same", embedding.model, annotate.model);
                reader.complain(&format!("embeddings[{index}].model"), message);
            }
            Some(_) if order > 0 => {
                let message = "is \"prompt\" for the second time; one embedding of the prompt is enough";
                reader.complain(&format!("embeddings[{index}].input"), message);
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"name = "mugs"
kind = "product"
topics = ["products", "more"]

[limits]
media_bytes = "1MiB"
deadline = "5s"

[[embeddings]]
column = "picture"
model = "demo"
input = "image"

[[embeddings]]
column = "words"
model = "demo"
input = "text"
template = "{title}"
"#;

    fn parse(text: &str) -> Result<JobSpec, Vec<Problem>> {
        JobSpec::parse(Path::new("jobs/mugs.toml"), text)
    }

    #[test]
    fn a_job_file_is_read_with_its_defaults() {
        let job = parse(GOOD).unwrap();
        assert_eq!(job.group, "assay-mugs");
        assert_eq!(job.topics, ["products", "more"]);
        let limits = Limits { media_bytes: 1 << 20, deadline: Duration::from_secs(5), ..Limits::default() };
        assert_eq!(job.limits, limits);
        assert_eq!(job.embeddings[0].input, EmbeddingInput::Image);
        assert_eq!(job.embeddings[1].column, "words");
        assert_eq!(job.models(), [Arc::from("demo")]);
        assert_eq!(job.annotate, None);
    }

    #[test]
    fn a_problem_found_later_still_knows_its_line() {
        let problem = parse(GOOD).unwrap().problem("embeddings[1].model", "is unknown");
        assert_eq!(problem.to_string(), "jobs/mugs.toml:16: embeddings[1].model: is unknown");
    }

    /// A text of the good file, what a careless person writes instead, and the line, key and words of the complaint.
    const WRONG: [(&str, &str, usize, &str, &str); 33] = [
        ("name = \"mugs\"", "name = \"Mugs\"", 1, "name", "lower-case letters"),
        ("name = \"mugs\"", "name = \"cups\"", 1, "name", "the file is mugs.toml"),
        ("name = \"mugs\"", "name = 3", 1, "name", "is of type integer; it must be a text"),
        ("name = \"mugs\"", "name = mugs", 1, "", "this is not TOML"),
        ("kind = \"product\"", "kind = \"products\"", 2, "kind", "must be \"product\" or \"ad\""),
        ("kind = \"product\"", "kind = \"ad\"", 18, "embeddings[1].template", "{title} is no placeholder of kind ad"),
        ("topics = [\"products\", \"more\"]", "topics = []", 3, "topics", "at least one topic"),
        ("topics = [\"products\", \"more\"]", "topics = \"products\"", 3, "topics", "must be a list of texts"),
        ("topics = [\"products\", \"more\"]", "topics = [\"a b\"]", 3, "topics[0]", "no topic name"),
        ("topics = [\"products\", \"more\"]", "topics = [\n\"a\",\n\"a\"]", 5, "topics[1]", "listed before"),
        ("topics = [\"products\", \"more\"]", "topics = [\"a\"]\ngroup = \" \"", 4, "group", "is empty"),
        ("topics = [\"products\", \"more\"]", "topics = [\"a\"]\ngruop = \"g\"", 4, "gruop", "did you mean `group`?"),
        ("[limits]", "[limit]", 5, "limit", "did you mean `limits`?"),
        ("media_bytes = \"1MiB\"", "media_bytes = 1048576", 6, "limits.media_bytes", "such as \"16MiB\""),
        ("media_bytes = \"1MiB\"", "media_bytes = \"much\"", 6, "limits.media_bytes", "is \"much\""),
        ("media_bytes = \"1MiB\"", "pixels = 0", 6, "limits.pixels", "must be from 1"),
        ("media_bytes = \"1MiB\"", "side = -5", 6, "limits.side", "is -5"),
        ("media_bytes = \"1MiB\"", "bytes = \"1MiB\"", 6, "limits.bytes", "known are `media_bytes`"),
        ("deadline = \"5s\"", "deadline = \"5 bananas\"", 7, "limits.deadline", "such as \"60s\""),
        ("deadline = \"5s\"", "deadline = \"0s\"", 7, "limits.deadline", "above zero"),
        ("column = \"picture\"\n", "", 9, "embeddings[0].column", "is missing"),
        ("column = \"picture\"", "column = \"the picture\"", 10, "embeddings[0].column", "no column name"),
        ("column = \"picture\"", "column = \"Topic\"", 10, "embeddings[0].column", "every results table has"),
        ("column = \"words\"", "column = \"Picture\"", 15, "embeddings[1].column", "the column of embeddings[0]"),
        ("input = \"image\"", "input = \"sound\"", 12, "embeddings[0].input", "\"image\", \"text\" or \"prompt\""),
        ("input = \"image\"", "input = \"prompt\"", 12, "embeddings[0].input", "that of [annotate]"),
        (
            "input = \"image\"",
            "input = \"prompt\"\npooling = \"max\"",
            13,
            "embeddings[0].pooling",
            "\"last\" or \"mean\"",
        ),
        ("input = \"image\"", "input = \"image\"\npooling = \"last\"", 13, "embeddings[0].pooling", "remove it"),
        ("input = \"image\"", "input = \"prompt\"\ntemplate = \"{id}\"", 13, "embeddings[0].template", "remove it"),
        ("input = \"image\"", "input = \"image\"\ntemplate = \"{id}\"", 13, "embeddings[0].template", "remove it"),
        ("template = \"{title}\"", "", 14, "embeddings[1].template", "is missing"),
        ("{title}", "{titel}", 18, "embeddings[1].template", "did you mean `title`?"),
        ("{title}", "{title", 18, "embeddings[1].template", "character 1"),
    ];

    #[test]
    fn every_mistake_is_named_by_line_and_key() {
        for (right, wrong, line, key, words) in WRONG {
            assert!(GOOD.contains(right), "{right}");
            let problems = parse(&GOOD.replacen(right, wrong, 1)).unwrap_err();
            assert_eq!(problems.len(), 1, "{wrong}: {problems:?}");
            assert_eq!((problems[0].line, problems[0].key.as_str()), (Some(line), key), "{}", problems[0]);
            assert!(problems[0].message.contains(words), "{words:?} is not in {}", problems[0]);
        }
    }

    #[test]
    fn what_is_missing_altogether_is_named_without_a_line() {
        for (part, key) in [("name = \"mugs\"\n", "name"), ("topics = [\"products\", \"more\"]\n", "topics")] {
            let problems = parse(&GOOD.replacen(part, "", 1)).unwrap_err();
            assert_eq!((problems[0].line, problems[0].key.as_str()), (None, key));
        }
        let problems = parse("name = \"mugs\"\nkind = \"ad\"\ntopics = [\"t\"]\n").unwrap_err();
        assert!(problems[0].to_string().contains("embeddings: is missing; add an [[embeddings]]"), "{}", problems[0]);
    }

    #[test]
    fn all_mistakes_of_a_file_are_told_in_its_order() {
        let text = "name = 1\nkind = 2\ntopics = 3\nhello = 4\n[limits]\nside = 0\n[[embeddings]]\ninput = \"text\"\n";
        let problems = parse(text).unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
        let embedding = ["embeddings[0].column", "embeddings[0].model", "embeddings[0].template"];
        assert_eq!(keys, [&["name", "kind", "topics", "hello", "limits.side"][..], &embedding].concat());
    }

    #[test]
    fn the_fingerprint_follows_meaning_and_not_spelling() {
        let fingerprint = |text: &str| parse(text).unwrap().fingerprint();
        let good = fingerprint(GOOD);
        assert_eq!(good.len(), 16);
        assert!(good.chars().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase()));
        let reordered = GOOD.replace(
            "name = \"mugs\"\nkind = \"product\"",
            "# about mugs\nkind = \"product\"\ngroup = \"other\"\nname = \"mugs\"",
        );
        assert_eq!(fingerprint(&reordered), good);
        assert_eq!(fingerprint(&GOOD.replace("1MiB", "1024 KiB")), good);
        let meant =
            [("1MiB", "2MiB"), ("5s", "6s"), ("\"demo\"", "\"other\""), ("words", "texts"), ("{title}", "{id}")];
        for (from, to) in meant {
            assert_ne!(fingerprint(&GOOD.replacen(from, to, 1)), good, "{from} -> {to}");
        }
    }

    fn with_annotate(folder: &Path, output: &str) -> Result<JobSpec, Vec<Problem>> {
        std::fs::write(folder.join("output.json"), output).unwrap();
        let annotate = "[annotate]\nmodel = \"llama\"\nprompt = \"Describe {title}.\"\noutput = \"output.json\"\n";
        JobSpec::parse(&folder.join("mugs.toml"), &format!("{GOOD}{annotate}"))
    }

    #[test]
    fn annotations_bring_their_columns_and_count_in_the_fingerprint() {
        let folder = tempfile::tempdir().unwrap();
        let output = r#"{"type": "object", "properties": {"brand": {"type": "string"}}}"#;
        let job = with_annotate(folder.path(), output).unwrap();
        let annotate = job.annotate.as_ref().unwrap();
        assert_eq!(annotate.columns, [crate::domain::Column::optional("brand", crate::domain::ColumnType::Text)]);
        assert_eq!(job.models(), [Arc::from("demo"), Arc::from("llama")]);
        let spaced = with_annotate(folder.path(), &output.replace(' ', "\n  ")).unwrap();
        assert_eq!(spaced.fingerprint(), job.fingerprint());
        let other = with_annotate(folder.path(), &output.replace("brand", "maker")).unwrap();
        assert_ne!(other.fingerprint(), job.fingerprint());
    }

    #[test]
    fn what_is_wrong_with_an_output_schema_is_named_in_its_own_file() {
        let folder = tempfile::tempdir().unwrap();
        let cases = [
            ("{\n  \"type\": }", Some(2), "", "not JSON"),
            (r#"{"type": "objekt"}"#, None, "/type", "not a JSON Schema"),
            (r#"{"type": "object", "properties": {"a": {}}}"#, None, "/properties/a/type", "is missing"),
        ];
        for (output, line, key, words) in cases {
            let problems = with_annotate(folder.path(), output).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].file, folder.path().join("output.json"));
            assert_eq!((problems[0].line, problems[0].key.as_str()), (line, key), "{}", problems[0]);
            assert!(problems[0].message.contains(words), "{}", problems[0]);
        }
        let taken =
            r#"{"type": "object", "properties": {"picture": {"type": "string"}, "Offset": {"type": "string"}}}"#;
        let problems = with_annotate(folder.path(), taken).unwrap_err();
        let named: Vec<_> = problems.iter().map(|problem| (problem.line, problem.key.as_str())).collect();
        assert_eq!(named, [(Some(10), "embeddings[0].column"), (Some(22), "annotate.output")]);
        std::fs::remove_file(folder.path().join("output.json")).unwrap();
        let text = format!("{GOOD}[annotate]\nmodel = \"m\"\nprompt = \"{{id}}\"\noutput = \"output.json\"\n");
        let problems = JobSpec::parse(&folder.path().join("mugs.toml"), &text).unwrap_err();
        assert_eq!((problems[0].line, problems[0].key.as_str()), (Some(22), "annotate.output"));
    }
}
