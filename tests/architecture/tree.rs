//! All source files together: what a written path means, and which file is its home.
//!
//! It knows no rule. A name that a `mod.rs` shows is followed to the file that defines it, so that an arrow between files
//! is not hidden by a door sign.

use std::collections::{BTreeMap, BTreeSet};

use super::file::{Path, SourceFile};

/// What a path means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// Something of this crate, from its root.
    Ours(Vec<String>),
    /// Something of `std` or of a dependency, from its crate's name.
    Foreign(Vec<String>),
    /// A local item, which no rule is about.
    Local,
}

/// A path and its meaning.
#[derive(Debug)]
pub struct Reference<'a> {
    pub file: &'a SourceFile,
    pub line: usize,
    pub test: bool,
    pub meaning: Meaning,
}

#[derive(Debug)]
pub struct Tree {
    pub files: Vec<SourceFile>,
    modules: BTreeMap<Vec<String>, usize>,
    dependencies: BTreeSet<String>,
}

type Names = BTreeMap<String, Path>;

impl Tree {
    /// From names with texts, and from the manifest that names the dependencies.
    pub fn of(sources: &[(String, String)], manifest: &str) -> Self {
        let mut files: Vec<_> = sources.iter().map(|(name, text)| SourceFile::read(name, text)).collect();
        let tests: Vec<Vec<String>> = files.iter().flat_map(|file| declared(file, true)).collect();
        for file in &mut files {
            file.test = tests.iter().any(|test| file.module.starts_with(test));
        }
        let modules = files.iter().enumerate().map(|(place, file)| (file.module.clone(), place)).collect();
        Self { files, modules, dependencies: dependencies(manifest) }
    }

    /// The file of exactly that module.
    pub fn file(&self, module: &[String]) -> Option<&SourceFile> {
        self.modules.get(module).map(|place| &self.files[*place])
    }

    /// Whether it is a module with modules of its own.
    pub fn is_folder(&self, module: &[String]) -> bool {
        self.file(module).is_some()
            && self.modules.keys().any(|other| other.len() > module.len() && other.starts_with(module))
    }

    /// Whether the door of a folder re-exports something of that name.
    pub fn is_shown(&self, folder: &[String], name: &str) -> bool {
        self.file(folder).is_some_and(|door| names(door, false).contains_key(name))
    }

    /// Whether another file declares it.
    pub fn is_declared(&self, file: &SourceFile) -> bool {
        // Cargo.toml names the build script.
        ["src/lib.rs", "src/main.rs", "src/model/kernels/build.rs"].contains(&file.name.as_str())
            || self.files.iter().any(|other| declared(other, false).contains(&file.module))
    }

    /// Everything that the files name, in their order.
    pub fn references(&self) -> Vec<Reference<'_>> {
        let mut references = Vec::new();
        for file in &self.files {
            let (production, all) = (names(file, false), names(file, true));
            references.extend(file.paths.iter().map(|path| {
                let test = path.test || file.test;
                let meaning = self.meaning(path, file, if test { &all } else { &production });
                Reference { file, line: path.line, test, meaning }
            }));
        }
        references
    }

    /// The file that defines what a path of ours names, or the door sign when it names the room itself.
    pub fn home(&self, path: &[String]) -> Option<&SourceFile> {
        let mut path = path.to_vec();
        for _ in 0..16 {
            let length = (0..=path.len()).rev().find(|length| self.modules.contains_key(&path[..*length]))?;
            let file = self.file(&path[..length])?;
            let shown = path.get(length).filter(|_| file.is_door());
            let Some(shown) = shown.and_then(|name| names(file, true).get(name).cloned()) else {
                return Some(file);
            };
            let Meaning::Ours(target) = self.meaning(&shown, file, &Names::new()) else {
                return Some(file);
            };
            path = target.into_iter().chain(path[length + 1..].iter().cloned()).collect();
        }
        None
    }

    fn meaning(&self, path: &Path, file: &SourceFile, names: &Names) -> Meaning {
        let (first, rest) = (path.segments[0].as_str(), &path.segments[1..]);
        let ours = |from: &[String], rest: &[String]| Meaning::Ours([from, rest].concat());
        let module = || if file.name == "src/main.rs" { Vec::new() } else { path.module.clone() };
        match first {
            "crate" => ours(&[], rest),
            "assay" if file.name == "src/main.rs" => ours(&[], rest),
            "self" => ours(&module(), rest),
            "super" => {
                let ups = path.segments.iter().take_while(|segment| *segment == "super").count();
                let from = module();
                ours(&from[..from.len().saturating_sub(ups)], &path.segments[ups..])
            }
            _ if path.absolute => Meaning::Foreign(path.segments.clone()),
            _ if file.declarations.iter().any(|declared| declared.name == first) => ours(&file.module, &path.segments),
            _ => match names.get(first) {
                Some(shown) => {
                    // Names are taken away as they are followed, so that this ends.
                    let fewer = names.iter().filter(|(name, _)| *name != first);
                    let fewer = fewer.map(|(name, path)| (name.clone(), path.clone())).collect();
                    match self.meaning(shown, file, &fewer) {
                        Meaning::Ours(from) => ours(&from, rest),
                        Meaning::Foreign(from) => Meaning::Foreign([&from, rest].concat()),
                        Meaning::Local => Meaning::Local,
                    }
                }
                _ if ["std", "core", "alloc"].contains(&first) || self.dependencies.contains(first) => {
                    Meaning::Foreign(path.segments.clone())
                }
                _ => Meaning::Local,
            },
        }
    }
}

/// The modules that a file declares, or only those under `#[cfg(test)]`.
fn declared(file: &SourceFile, tests_only: bool) -> Vec<Vec<String>> {
    let declarations = file.declarations.iter().filter(|declaration| declaration.test || !tests_only);
    let module = |name: &String| file.module.iter().chain([name]).cloned().collect();
    declarations.map(|declaration| module(&declaration.name)).collect()
}

/// What the uses of a file bring into scope.
fn names(file: &SourceFile, with_tests: bool) -> Names {
    let paths = file.paths.iter().filter(|path| with_tests || !path.test);
    paths.filter_map(|path| Some((path.binding.clone()?, path.clone()))).collect()
}

/// The names of the dependencies as Rust writes them.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim_end().ends_with("dependencies]");
        } else if let (true, Some((name, _))) = (inside, line.split_once('=')) {
            names.insert(name.trim().trim_matches('"').replace('-', "_"));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meanings(sources: &[(&str, &str)]) -> Vec<String> {
        let tree = tree(sources);
        tree.references().iter().map(|reference| format!("{:?}", reference.meaning).replace(['"', ' '], "")).collect()
    }

    fn tree(sources: &[(&str, &str)]) -> Tree {
        let sources: Vec<_> = sources.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Tree::of(&sources, "[dependencies]\nimage = \"1\"\ncandle-core = \"1\"\n[features]\nother = []\n")
    }

    #[test]
    fn self_and_super_lead_from_the_module_in_which_they_stand() {
        let text = "use super::b::C; use super::super::d; use self::e; fn f() { super::g::h() }";
        assert_eq!(meanings(&[("src/a/x.rs", text)]), ["Ours([a,b,C])", "Ours([d])", "Ours([a,x,e])", "Ours([a,g,h])"]);
        assert_eq!(meanings(&[("src/a/mod.rs", "use super::d;")]), ["Ours([d])"]);
    }

    #[test]
    fn a_name_in_scope_stands_for_what_was_used() {
        let text = "use crate::media; use std::sync::mpsc; fn f() { media::decode(); mpsc::channel(); Vec::new(); other::x() }";
        assert_eq!(
            meanings(&[("src/a.rs", text)])[2..],
            ["Ours([media,decode])", "Foreign([std,sync,mpsc,channel])", "Local", "Local"]
        );
    }

    #[test]
    fn a_module_of_ours_is_not_the_dependency_of_the_same_name() {
        let door = ("src/media/mod.rs", "mod image; pub use image::decode;");
        let file = ("src/media/image.rs", "use image::ImageReader; use candle_core::Tensor; use image;");
        assert_eq!(
            meanings(&[door, file]),
            [
                "Ours([media,image,decode])",
                "Foreign([image,ImageReader])",
                "Foreign([candle_core,Tensor])",
                "Foreign([image])"
            ]
        );
    }

    #[test]
    fn a_name_on_a_door_sign_leads_to_the_file_that_defines_it() {
        let tree = tree(&[
            ("src/source/mod.rs", "mod kafka; mod api; pub use kafka::KafkaSource; pub use api::Source;"),
            ("src/source/kafka/mod.rs", "mod consumer; pub use consumer::KafkaSource;"),
            ("src/source/kafka/consumer.rs", ""),
            ("src/source/api.rs", ""),
        ]);
        let home = |path: &str| {
            let path: Vec<_> = path.split("::").map(str::to_owned).collect();
            tree.home(&path).map(|file| file.name.as_str())
        };
        assert_eq!(home("source::KafkaSource::open"), Some("src/source/kafka/consumer.rs"));
        assert_eq!(home("source::api::Source"), Some("src/source/api.rs"));
        assert_eq!(home("source"), Some("src/source/mod.rs"));
        assert_eq!(home("elsewhere::X"), None);
    }

    #[test]
    fn what_is_declared_under_cfg_test_is_test_code_with_all_that_is_below_it() {
        let tree = tree(&[
            ("src/a/mod.rs", "#[cfg(test)]\nmod fixture; mod b;"),
            ("src/a/fixture/mod.rs", ""),
            ("src/a/fixture/x.rs", ""),
            ("src/a/b.rs", ""),
        ]);
        assert_eq!(tree.files.iter().map(|file| file.test).collect::<Vec<_>>(), [false, true, true, false]);
    }
}
