//! Chat templates as Hugging Face's tokenizers have them: Jinja with Python's methods.
//!
//! A template comes with the model and is trusted as the weights are; it renders text and can do nothing else. It knows no
//! ids. Invariant: what a template refuses (`raise_exception`) is a bad input, with the template's own words.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::Deserialize;
use serde_json::ser::Formatter;

use crate::model::api::ModelError;
use crate::model::tokenizer::TOKENIZER_CONFIG;
use crate::model::weights::read_json;

const TEMPLATE_FILE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";
const NAME: &str = "chat";

/// The names under which templates know the special tokens.
const SPECIALS: [&str; 7] =
    ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"];

/// A model's template.
pub struct ChatTemplate {
    file: PathBuf,
    environment: Environment<'static>,
    specials: Vec<(&'static str, String)>,
}

/// A message as templates see it.
#[derive(Debug, Clone)]
pub struct TemplateMessage {
    pub role: &'static str,
    /// The text, or a list of parts.
    pub content: Value,
}

/// One template, or several by name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl ChatTemplate {
    /// Reads the template of a model directory: chat_template.jinja, else chat_template.json, else the one in
    /// tokenizer_config.json. None when there is none.
    pub fn load(directory: &Path) -> Result<Option<Self>, ModelError> {
        let config_file = directory.join(TOKENIZER_CONFIG);
        let config: serde_json::Map<String, serde_json::Value> =
            if config_file.is_file() { read_json(&config_file)? } else { Default::default() };
        let Some((file, source)) = find(directory, &config_file, &config)? else { return Ok(None) };
        let specials = SPECIALS.iter().filter_map(|name| Some((*name, text_of(config.get(*name)?)?))).collect();
        Self::new(&file, &source, specials).map(Some)
    }

    /// The template `source`, which `file` has, with the special tokens under the names that templates know.
    pub fn new(file: &Path, source: &str, specials: Vec<(&'static str, String)>) -> Result<Self, ModelError> {
        let mut environment = environment();
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|error| ModelError::malformed(file, describe(&error)))?;
        Ok(Self { file: file.to_owned(), environment, specials })
    }

    /// Renders the chat, open for the assistant's answer.
    pub fn render(&self, messages: &[TemplateMessage]) -> Result<String, ModelError> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role, content => message.content.clone() })
            .collect();
        let shared = context! {
            messages => messages,
            add_generation_prompt => true,
            tools => (),
            documents => (),
            ..Value::from_pairs(self.specials.iter().map(|(name, text)| (*name, text.as_str())))
        };
        let template =
            self.environment.get_template(NAME).map_err(|error| ModelError::malformed(&self.file, &error))?;
        template.render(shared).map_err(|error| {
            let file = self.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            ModelError::Input { detail: format!("{file} refuses these messages: {}", describe(&error)) }
        })
    }

    /// Whether a rendered chat already begins with the token that starts a text.
    pub fn start_token(&self) -> Option<&str> {
        self.specials.iter().find(|(name, _)| *name == SPECIALS[0]).map(|(_, text)| text.as_str())
    }
}

fn find(
    directory: &Path,
    config_file: &Path,
    config: &serde_json::Map<String, serde_json::Value>,
) -> Result<Option<(PathBuf, String)>, ModelError> {
    #[derive(Deserialize)]
    struct File {
        chat_template: Templates,
    }
    let file = directory.join(TEMPLATE_FILE);
    if file.is_file() {
        let source =
            std::fs::read_to_string(&file).map_err(|source| ModelError::Read { path: file.clone(), source })?;
        return Ok(Some((file, source)));
    }
    let file = directory.join(TEMPLATE_JSON);
    if file.is_file() {
        let found: File = read_json(&file)?;
        return Ok(Some((file.clone(), chosen(found.chat_template, &file)?)));
    }
    let Some(value) = config.get("chat_template").filter(|value| !value.is_null()) else { return Ok(None) };
    let templates: Templates = serde_json::from_value(value.clone()).map_err(|_| {
        ModelError::malformed(config_file, "chat_template: write a text, or a list of name and template")
    })?;
    Ok(Some((config_file.to_owned(), chosen(templates, config_file)?)))
}

/// The one that is called `default`, else the first.
fn chosen(templates: Templates, file: &Path) -> Result<String, ModelError> {
    match templates {
        Templates::One(source) => Ok(source),
        Templates::Named(mut named) => {
            let index = named.iter().position(|template| template.name == "default").unwrap_or(0);
            match named.is_empty() {
                true => Err(ModelError::malformed(file, "chat_template: the list is empty")),
                false => Ok(named.swap_remove(index).template),
            }
        }
    }
}

/// A special token is a text, or an object with its content.
fn text_of(value: &serde_json::Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters are valid"));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_filter("tojson", to_json);
    environment
}

/// `generation` blocks mark what the assistant wrote, for training; here they are nothing.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let block = &rest[start..start + length + 2];
        let word = block.trim_start_matches("{%").trim_end_matches("%}").trim_matches('-').trim_matches('+').trim();
        out.push_str(&rest[..start]);
        match word {
            "generation" => out.push_str(&block.replace("generation", "if true")),
            "endgeneration" => out.push_str(&block.replace("endgeneration", "endif")),
            _ => out.push_str(block),
        }
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    out
}

/// `json.dumps` of Python, without escapes for other alphabets: a space after commas and colons.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent").unwrap_or(None);
    // Other options change nothing in what a template shows.
    for key in ["ensure_ascii", "sort_keys", "separators"] {
        let _: Option<Value> = options.get(key).unwrap_or(None);
    }
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let json = serde_json::to_value(&value).map_err(failed)?;
    let mut bytes = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
            serde::Serialize::serialize(&json, &mut serializer).map_err(failed)?;
        }
        None => {
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Spaced);
            serde::Serialize::serialize(&json, &mut serializer).map_err(failed)?;
        }
    }
    Ok(Value::from_safe_string(String::from_utf8_lossy(&bytes).into_owned()))
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The template's words, and where.
fn describe(error: &Error) -> String {
    let words = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{words} (line {line})"),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(files: &[(&str, &str)]) -> Result<Option<ChatTemplate>, ModelError> {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).unwrap();
        }
        ChatTemplate::load(directory.path())
    }

    fn render(source: &str) -> Result<String, ModelError> {
        let template = template(&[(TEMPLATE_FILE, source), (TOKENIZER_CONFIG, r#"{"bos_token": {"content": "<s>"}}"#)]);
        let user = TemplateMessage { role: "user", content: Value::from(" Hi ") };
        template.unwrap().unwrap().render(&[user])
    }

    #[test]
    fn templates_are_found_where_tokenizers_keep_them() {
        let list = r#"{"chat_template": [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]}"#;
        assert_eq!(template(&[(TOKENIZER_CONFIG, list)]).unwrap().unwrap().render(&[]).unwrap(), "b");
        let both = [(TEMPLATE_JSON, r#"{"chat_template": "c"}"#), (TOKENIZER_CONFIG, list)];
        assert_eq!(template(&both).unwrap().unwrap().render(&[]).unwrap(), "c");
        assert!(template(&[]).unwrap().is_none());
    }

    #[test]
    fn pythons_methods_blocks_and_json_are_known() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {% if m['role'] == 'user' %}\n{{ m.content.strip().upper() }}\
            {% endif %}{% endfor %}{%- generation %}!{% endgeneration %}{{ {'a': [1, 'é<']} | tojson }}";
        assert_eq!(render(source).unwrap(), "<s>HI!{\"a\": [1, \"é<\"]}");
    }

    #[test]
    fn a_refusal_is_told_in_the_templates_words() {
        let refusal = render("{{ raise_exception('no system here') }}").unwrap_err().to_string();
        assert!(refusal.contains("no system here") && refusal.contains(TEMPLATE_FILE), "{refusal}");
        let broken = template(&[(TEMPLATE_FILE, "a\n{% if %}")]).err().expect("broken").to_string();
        assert!(broken.contains(TEMPLATE_FILE) && broken.contains("line 2"), "{broken}");
    }
}
