//! Rules about one file alone: its length, its opening, its door, and what it must not say.

use super::file::{SourceFile, attribute_open, item_end};
use super::tokens::{Kind, Token, after_closing};
use super::tree::{Meaning, Tree};
use super::{FEATURE_PLACES, LONGEST_FILE, Violation};

/// All that the files under src/ do against the rules of style.
pub fn broken_style(tree: &Tree) -> Vec<Violation> {
    let mut found = unbounded_channels(tree);
    for file in &tree.files {
        if !tree.is_declared(file) {
            let reason = "no `mod` declares this file, so it is never compiled; declare or delete it";
            found.push(Violation::new(file, 1, "undeclared", reason));
            continue;
        }
        found.extend(length(file));
        found.extend(door(file));
        found.extend(left_overs(file));
        found.extend(features(file));
        found.extend(broken_manners(file));
    }
    found
}

/// The rules that files of tests keep, too.
pub fn broken_manners(file: &SourceFile) -> Vec<Violation> {
    let opening = "a file opens with `//!`: what it is for, what it does not know, which invariant it keeps";
    let opening = (!file.opens_with_docs).then(|| Violation::new(file, 1, "opening", opening));
    opening.into_iter().chain(names_of_tests(file)).chain(ignored_tests(file)).collect()
}

fn length(file: &SourceFile) -> Option<Violation> {
    let reason = || format!("{} lines before its tests, {LONGEST_FILE} are the wall; it does two things", file.lines);
    (!file.test && file.lines > LONGEST_FILE).then(|| Violation::new(file, file.lines, "length", reason()))
}

/// A `mod.rs` has `mod name;` and `use` of names, nothing else.
fn door(file: &SourceFile) -> Vec<Violation> {
    let (tokens, mut at, mut found) = (&file.tokens, 0, Vec::new());
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.is(text));
    while file.name.ends_with("/mod.rs") && !file.test && at < tokens.len() {
        if let Some(open) = attribute_open(tokens, at) {
            at = after_closing(tokens, open);
            continue;
        }
        let visible = if is(at, "pub") { at + 1 } else { at };
        let item = if is(visible, "(") { after_closing(tokens, visible) } else { visible };
        let mut end = item_end(tokens, at);
        let shows = is(item, "use") || is(item, "mod") && is(item + 2, ";");
        if is(item, "use") {
            end = (item..tokens.len()).find(|place| is(*place, ";")).map_or(tokens.len(), |place| place + 1);
        }
        let reason = if !shows {
            Some("a `mod.rs` is a door sign: docs, `mod name;` and `use`; move the definition to a file of the room")
        } else if tokens[item..end].iter().any(|token| token.is("*")) {
            Some("a door sign names what it shows; write the names instead of `*`")
        } else {
            None
        };
        let reason = reason.filter(|_| !tokens[at].test && !is(at, ";"));
        found.extend(reason.map(|reason| Violation::new(file, tokens[at].line, "door", reason)));
        at = end;
    }
    found
}

fn left_overs(file: &SourceFile) -> Vec<Violation> {
    let tokens: Vec<&Token> = file.production().collect();
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.is(text));
    let opens = |at| ["(", "[", "{"].iter().any(|bracket| is(at, bracket));
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let reason = if is(at, ".") && is(at + 1, "unwrap") && is(at + 2, "(") {
            "`.unwrap()` outside of tests; return an error, or say with `.expect(..)` why it cannot fail".to_owned()
        } else if ["todo", "unimplemented", "dbg"].iter().any(|name| token.is(name)) && is(at + 1, "!") && opens(at + 2)
        {
            format!("`{}!` is unfinished work", token.text)
        } else {
            continue;
        };
        found.push(Violation::new(file, token.line, "left-over", reason));
    }
    found
}

fn unbounded_channels(tree: &Tree) -> Vec<Violation> {
    let reason = "every queue is bounded, so that a slow stage is felt upstream";
    let standard = tree.references().into_iter().filter(|reference| {
        matches!(&reference.meaning, Meaning::Foreign(path) if path.starts_with(&["std", "sync", "mpsc", "channel"].map(str::to_owned)))
    });
    let standard = standard.map(|reference| Violation::new(reference.file, reference.line, "unbounded", reason));
    let named = tree.files.iter().flat_map(|file| {
        let names = ["unbounded", "unbounded_channel", "UnboundedSender", "UnboundedReceiver"];
        let tokens = file.tokens.iter().filter(move |token| names.iter().any(|name| token.is(name)));
        tokens.map(move |token| Violation::new(file, token.line, "unbounded", reason))
    });
    standard.chain(named).collect()
}

fn features(file: &SourceFile) -> Vec<Violation> {
    let name = file.name.trim_start_matches("src/");
    if FEATURE_PLACES.iter().any(|place| name.starts_with(place)) {
        return Vec::new();
    }
    let reason = format!("`cfg(feature ..)` belongs in {} alone", FEATURE_PLACES.join(", "));
    let mut found = Vec::new();
    for (at, token) in file.tokens.iter().enumerate().filter(|(_, token)| token.is("cfg") || token.is("cfg_attr")) {
        let open = if file.tokens.get(at + 1).is_some_and(|next| next.is("!")) { at + 2 } else { at + 1 };
        let inside = file.tokens.get(open).is_some_and(|next| next.is("("));
        if inside && file.tokens[open..after_closing(&file.tokens, open)].iter().any(|token| token.is("feature")) {
            found.push(Violation::new(file, token.line, "feature", reason.clone()));
        }
    }
    found
}

fn names_of_tests(file: &SourceFile) -> Vec<Violation> {
    let pairs = file.tokens.iter().zip(file.tokens.iter().skip(1));
    let named = pairs.filter(|(word, name)| word.is("fn") && name.kind == Kind::Word && name.text.starts_with("test_"));
    let reason = |name: &str| format!("`{name}`: the name of a test is a sentence about behaviour");
    named.map(|(_, name)| Violation::new(file, name.line, "test name", reason(&name.text))).collect()
}

fn ignored_tests(file: &SourceFile) -> Vec<Violation> {
    let tokens = &file.tokens;
    let mut found = Vec::new();
    for open in (0..tokens.len()).filter_map(|at| attribute_open(tokens, at)) {
        let attribute = &tokens[open..after_closing(tokens, open)];
        let Some(at) = attribute.iter().position(|token| token.is("ignore")) else { continue };
        let plain = at == 1 || attribute[1].is("cfg_attr");
        let says_why = attribute.get(at + 1).is_some_and(|token| token.is("="))
            && attribute.get(at + 2).is_some_and(|token| token.kind == Kind::Literal && !token.text.trim().is_empty());
        if plain && !says_why {
            let reason = "an ignored test says why: `#[ignore = \"what it needs\"]`";
            found.push(Violation::new(file, attribute[at].line, "ignored test", reason));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{NONE, complaints, tree};

    /// The complaints about one declared file, which opens as it should.
    fn found(name: &str, text: &str) -> Vec<String> {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let room = folder.trim_start_matches("src/");
        let lib = format!("//! x\npub mod {room};");
        let stem = name.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
        let door = format!("//! x\nmod {stem};");
        let text = format!("//! x\n{text}");
        let mut sources = vec![("src/lib.rs", lib.as_str()), (name, text.as_str())];
        let sign = format!("{folder}/mod.rs");
        if stem != "mod" {
            sources.push((&sign, &door));
        }
        complaints(broken_style(&tree(&sources)))
    }

    fn is_one(found: &[String], begins: &str) -> bool {
        found.len() == 1 && found[0].starts_with(begins)
    }

    #[test]
    fn a_proper_file_is_left_alone() {
        let text = "fn f() { x.unwrap_or(1); y != todo; (a, b).expect(\"c\"); std::sync::mpsc::sync_channel(1); }\n\
            #[cfg(test)]\nmod tests {\n#[test]\n#[ignore = \"needs a GPU\"]\nfn a_sentence() { x.unwrap(); dbg!(1) }\n}";
        assert_eq!(found("src/sink/a.rs", text), NONE);
        let door = "#![allow(x)]\nmod a;\npub(crate) mod b;\npub use a::{A, B};\n#[cfg(test)]\nmod tests;\n#[cfg(test)]\nmod c { fn f() {} }";
        let found = found("src/sink/mod.rs", door);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn a_long_file_is_found_but_not_for_its_tests() {
        let body = "fn f() {}\n".repeat(LONGEST_FILE);
        assert!(is_one(&found("src/sink/a.rs", &body), "src/sink/a.rs:501: length: 501 lines"));
        let tests = format!("#[cfg(test)]\nmod tests {{\n{body}}}");
        assert_eq!(found("src/sink/a.rs", &tests), NONE);
    }

    #[test]
    fn a_file_that_does_not_open_with_its_purpose_is_found() {
        for text in ["use std::fmt;\n//! x", "// x", "/// x\nfn f() {}"] {
            let file = SourceFile::read("tests/crash.rs", text);
            assert!(is_one(&complaints(broken_manners(&file)), "tests/crash.rs:1: opening"), "{text}");
        }
    }

    #[test]
    fn a_file_that_nobody_declares_is_found() {
        let tree = tree(&[("src/lib.rs", "//! x\npub mod a;"), ("src/a.rs", "//! x"), ("src/b.rs", "//! x")]);
        assert!(is_one(&complaints(broken_style(&tree)), "src/b.rs:1: undeclared"));
    }

    #[test]
    fn a_door_sign_that_defines_something_is_found() {
        for text in [
            "pub struct A;",
            "mod a { }",
            "pub use a::B;\n\nimpl A { fn f() {} }",
            "const A: [u8; 1] = [1];",
            "pub use a::*;",
        ] {
            let line = text.lines().count() + 1;
            let found = found("src/sink/mod.rs", text);
            assert!(is_one(&found, &format!("src/sink/mod.rs:{line}: door")), "{text}: {found:?}");
        }
    }

    #[test]
    fn left_overs_outside_of_tests_are_found() {
        for text in [
            "fn f() {\nx.unwrap(); }",
            "fn f() {\ntodo!() }",
            "fn f() {\nunimplemented!(\"x\") }",
            "fn f() {\ndbg!(x); }",
        ] {
            let found = found("src/sink/a.rs", text);
            assert!(is_one(&found, "src/sink/a.rs:3: left-over"), "{text}: {found:?}");
        }
    }

    #[test]
    fn an_unbounded_channel_is_found_in_tests_too() {
        for text in [
            "use std::fmt;\nuse std::sync::mpsc::channel;",
            "use std::sync::mpsc;\nfn f() { mpsc::channel() }",
            "#[cfg(test)] mod tests {\nfn f() { tokio::sync::mpsc::unbounded_channel() } }",
            "fn f(\nx: UnboundedSender<u8>) {}",
        ] {
            let found = found("src/sink/a.rs", text);
            assert!(is_one(&found, "src/sink/a.rs:3: unbounded"), "{text}: {found:?}");
        }
        assert_eq!(found("src/sink/a.rs", "use tokio::sync::mpsc; fn f() { mpsc::channel(1) }"), NONE);
    }

    #[test]
    fn a_feature_is_found_outside_of_its_places() {
        for text in [
            "\n#[cfg(feature = \"cuda\")]\nfn f() {}",
            "\n#[cfg_attr(not(feature = \"x\"), y)] fn f() {}",
            "\nconst A: bool = cfg!(feature = \"x\");",
        ] {
            let found = found("src/model/clip.rs", text);
            assert!(is_one(&found, "src/model/clip.rs:3: feature"), "{text}: {found:?}");
            assert_eq!(self::found("src/model/device.rs", text), NONE);
        }
    }

    #[test]
    fn a_test_that_is_named_after_a_function_is_found() {
        let found = found("src/sink/a.rs", "#[cfg(test)]\nmod tests {\n#[test]\nfn test_parse() {}\n}");
        assert!(is_one(&found, "src/sink/a.rs:5: test name: `test_parse`"), "{found:?}");
    }

    #[test]
    fn a_test_that_is_ignored_without_a_reason_is_found() {
        for attribute in ["#[ignore]", "#[ignore = \"\"]", "#[cfg_attr(windows, ignore)]"] {
            let found = found("src/sink/a.rs", &format!("#[test]\n{attribute}\nfn a_sentence() {{}}"));
            assert!(is_one(&found, "src/sink/a.rs:3: ignored test"), "{attribute}: {found:?}");
        }
    }
}
