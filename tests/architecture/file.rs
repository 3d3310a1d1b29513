//! One source file: its place among the modules, what of it is test code, the modules it declares and the paths it names.
//!
//! It knows no rule and no other file. Paths are as they are written; what they mean is for the tree to say.

use super::tokens::{Kind, Token, after_closing, tokens};

/// A path as it is written, groups of `use` unfolded.
#[derive(Debug, Clone)]
pub struct Path {
    pub segments: Vec<String>,
    pub line: usize,
    pub test: bool,
    /// The module in which it is written.
    pub module: Vec<String>,
    /// The name that it brings into scope, `*` for all: a `use` only.
    pub binding: Option<String>,
    /// Begins with `::`, so it starts at a crate.
    pub absolute: bool,
}

/// `mod name;`
#[derive(Debug, Clone)]
pub struct Declaration {
    pub name: String,
    pub test: bool,
}

#[derive(Debug)]
pub struct SourceFile {
    /// From the root of the repository, with slashes: `src/media/image.rs`.
    pub name: String,
    /// `["media", "image"]`; empty for lib.rs.
    pub module: Vec<String>,
    pub tokens: Vec<Token>,
    /// Whether the first line is module documentation.
    pub opens_with_docs: bool,
    /// Lines that are not test code.
    pub lines: usize,
    pub declarations: Vec<Declaration>,
    pub paths: Vec<Path>,
    /// Set by the tree: a parent lists it under `#[cfg(test)]`.
    pub test: bool,
}

impl SourceFile {
    pub fn read(name: &str, text: &str) -> Self {
        let mut tokens = tokens(text);
        let test_lines = mark_tests(&mut tokens);
        let mut walk = Walk::over(&tokens, module_of(name));
        walk.run();
        let (declarations, paths) = (walk.declarations, walk.paths);
        Self {
            name: name.to_owned(),
            module: module_of(name),
            opens_with_docs: text.starts_with("//!"),
            lines: text.lines().count().saturating_sub(test_lines),
            declarations,
            paths,
            tokens,
            test: false,
        }
    }

    /// Shows what its children define and defines nothing itself.
    pub fn is_door(&self) -> bool {
        self.name.ends_with("/mod.rs") || self.name == "src/lib.rs"
    }

    /// The tokens that are built outside tests.
    pub fn production(&self) -> impl Iterator<Item = &Token> {
        self.tokens.iter().filter(|token| !token.test && !self.test)
    }
}

fn module_of(name: &str) -> Vec<String> {
    let inner = name.strip_prefix("src/").unwrap_or(name).trim_end_matches(".rs");
    let mut module: Vec<String> = inner.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") || inner == "lib" {
        module.pop();
    }
    module
}

/// Marks every item under `#[cfg(test)]`; returns how many lines these items have.
fn mark_tests(tokens: &mut [Token]) -> usize {
    let (mut at, mut lines) = (0, 0);
    while at < tokens.len() {
        let Some(attribute_end) = attribute_of_a_test(tokens, at) else {
            at += 1;
            continue;
        };
        let whole_file = tokens[at + 1].is("!");
        let end = if whole_file { tokens.len() } else { item_end(tokens, attribute_end) };
        lines += tokens[end - 1].line - tokens[at].line + 1;
        tokens[at..end].iter_mut().for_each(|token| token.test = true);
        at = end;
    }
    lines
}

/// Where `#[cfg(test)]` or `#[cfg(all(test, ..))]` at this place ends.
fn attribute_of_a_test(tokens: &[Token], at: usize) -> Option<usize> {
    let open = attribute_open(tokens, at)?;
    let begins = |words: &[&str]| {
        let rest = tokens.get(open + 1..open + 1 + words.len());
        rest.is_some_and(|rest| rest.iter().zip(words).all(|(token, word)| token.is(word)))
    };
    let tests = begins(&["cfg", "(", "test", ")"]) || begins(&["cfg", "(", "all", "(", "test"]);
    tests.then(|| after_closing(tokens, open))
}

/// The bracket of the attribute that begins at this place.
pub fn attribute_open(tokens: &[Token], at: usize) -> Option<usize> {
    let is = |ahead: usize, text| tokens.get(at + ahead).is_some_and(|token| token.is(text));
    match (is(0, "#"), is(1, "["), is(1, "!") && is(2, "[")) {
        (true, true, _) => Some(at + 1),
        (true, _, true) => Some(at + 2),
        _ => None,
    }
}

/// Where the item that begins at this place ends: after its first semicolon or its block.
pub fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while at < tokens.len() {
        if tokens[at].is(";") || tokens[at].is("}") {
            return at + 1;
        }
        if tokens[at].is("{") {
            return after_closing(tokens, at);
        }
        at = if tokens[at].is("(") || tokens[at].is("[") { after_closing(tokens, at) } else { at + 1 };
    }
    tokens.len()
}

/// Walks over the tokens and collects declarations and paths.
struct Walk<'a> {
    tokens: &'a [Token],
    at: usize,
    /// The inline modules around this place with the places where they end.
    inside: Vec<(String, usize)>,
    file: Vec<String>,
    declarations: Vec<Declaration>,
    paths: Vec<Path>,
}

impl<'a> Walk<'a> {
    fn over(tokens: &'a [Token], file: Vec<String>) -> Self {
        Self { tokens, at: 0, inside: Vec::new(), file, declarations: Vec::new(), paths: Vec::new() }
    }

    fn is(&self, ahead: usize, text: &str) -> bool {
        self.tokens.get(self.at + ahead).is_some_and(|token| token.is(text))
    }

    fn is_word(&self, ahead: usize) -> bool {
        self.tokens.get(self.at + ahead).is_some_and(|token| token.kind == Kind::Word)
    }

    fn before(&self, back: usize) -> Option<&Token> {
        self.at.checked_sub(back).map(|place| &self.tokens[place])
    }

    fn run(&mut self) {
        while self.at < self.tokens.len() {
            self.inside.retain(|(_, end)| *end > self.at);
            if self.is(0, "mod") && self.is_word(1) {
                self.module();
            } else if self.is(0, "use") && !self.is(1, "<") {
                self.at += 1;
                self.branch(&[], self.is(0, "::"));
            } else if self.is_word(0) && self.is(1, "::") && self.begins_path() {
                self.inline_path();
            } else {
                self.at += 1;
            }
        }
    }

    fn module(&mut self) {
        let name = self.tokens[self.at + 1].text.clone();
        if self.is(2, ";") {
            self.declarations.push(Declaration { name, test: self.tokens[self.at].test });
        } else {
            self.inside.push((name, item_end(self.tokens, self.at)));
        }
        self.at += 3;
    }

    fn begins_path(&self) -> bool {
        match self.before(1) {
            Some(token) if token.is("::") => self.is_absolute(),
            Some(token) => !token.is("."),
            None => true,
        }
    }

    fn is_absolute(&self) -> bool {
        let leading = self.before(1).is_some_and(|token| token.is("::"));
        leading && self.before(2).is_none_or(|token| token.kind != Kind::Word && !token.is(">"))
    }

    fn inline_path(&mut self) {
        let absolute = self.is_absolute();
        let mut segments = vec![self.tokens[self.at].text.clone()];
        let first = self.at;
        while self.is(1, "::") && self.is_word(2) {
            self.at += 2;
            segments.push(self.tokens[self.at].text.clone());
        }
        self.at += 1;
        self.push(segments, first, None, absolute);
    }

    /// One branch of a `use`, up to the comma, the brace or the semicolon that ends it.
    fn branch(&mut self, prefix: &[String], absolute: bool) {
        let (mut segments, first) = (prefix.to_vec(), self.at);
        while self.at < self.tokens.len() && !self.is(0, ";") && !self.is(0, ",") && !self.is(0, "}") {
            if self.is(0, "{") {
                self.group(&segments, absolute);
                return;
            }
            if self.is(0, "as") {
                let alias = self.tokens.get(self.at + 1).map(|token| token.text.clone());
                self.at += 2;
                self.push(segments, first, alias, absolute);
                return;
            }
            if self.is_word(0) || self.is(0, "*") {
                segments.push(self.tokens[self.at].text.clone());
            }
            self.at += 1;
        }
        if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
            segments.pop();
        }
        let binding = segments.last().cloned();
        if segments.len() > prefix.len() || self.tokens.get(first).is_some_and(|token| token.is("self")) {
            self.push(segments, first, binding, absolute);
        }
    }

    fn group(&mut self, prefix: &[String], absolute: bool) {
        self.at += 1;
        while self.at < self.tokens.len() && !self.is(0, "}") {
            self.branch(prefix, absolute);
            if self.is(0, ",") {
                self.at += 1;
            }
        }
        self.at += 1;
    }

    fn push(&mut self, mut segments: Vec<String>, first: usize, binding: Option<String>, absolute: bool) {
        if segments.len() > 1 && segments.last().is_some_and(|last| last == "self") {
            segments.pop();
        }
        let inline = self.inside.iter().map(|(name, _)| name.clone());
        let module = self.file.iter().cloned().chain(inline).collect();
        let Token { line, test, .. } = self.tokens[first];
        self.paths.push(Path { segments, line, test, module, binding, absolute });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        let file = SourceFile::read("src/media/remote.rs", text);
        file.paths.iter().map(|path| format!("{}:{}", path.line, path.segments.join("::"))).collect()
    }

    #[test]
    fn groups_of_uses_are_unfolded_over_several_lines() {
        let text = "pub use crate::a::{\n    self, b,\n    c::{d, e as f},\n    g::*,\n};\nuse h;";
        assert_eq!(
            paths(text),
            ["2:crate::a", "2:crate::a::b", "3:crate::a::c::d", "3:crate::a::c::e", "4:crate::a::g::*", "6:h"]
        );
    }

    #[test]
    fn paths_in_types_attributes_macros_and_calls_are_seen() {
        let text = "#[tokio::main]\nfn f<T: crate::a::B>() -> Vec<::c::D> {\n x.y::<i8>(e::f!(\"g::h\"));\n <crate::i::J as K>::l::m() }";
        assert_eq!(paths(text), ["1:tokio::main", "2:crate::a::B", "2:c::D", "3:e::f", "4:crate::i::J"]);
    }

    #[test]
    fn a_module_under_cfg_test_is_test_code_and_its_lines_are_not_counted() {
        let text = "//! x\nuse a::b;\n\n#[cfg(test)]\n#[allow(dead_code)]\nmod tests {\n    use c::d;\n}\n#[cfg(not(test))]\nuse e::f;\n";
        let file = SourceFile::read("src/media/remote.rs", text);
        let tests: Vec<_> = file.paths.iter().map(|path| path.test).collect();
        assert_eq!((tests, file.lines), (vec![false, true, false], 5));
    }

    #[test]
    fn an_inline_module_is_one_step_further_down() {
        let file =
            SourceFile::read("src/media/mod.rs", "mod inner { use super::x::Y; }\nmod other;\nuse self::other::Z;");
        let modules: Vec<_> = file.paths.iter().map(|path| path.module.join("::")).collect();
        assert_eq!(modules, ["media::inner", "media"]);
        assert_eq!(file.declarations.len(), 1);
    }
}
