//! Rule: no files and no rooms import each other in a circle.
//!
//! An arrow goes to the file that defines the name, through door signs; a door sign itself is no part of a circle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Violation;
use super::rooms::room_of;
use super::tree::{Meaning, Tree};

/// From a place to its neighbours, each with a file and line that name it.
type Arrows = BTreeMap<String, BTreeMap<String, (String, usize)>>;

/// The shortest circle through each file, once.
pub fn circles_of_files(tree: &Tree) -> Vec<Violation> {
    let whole = |name: &str, _: &[String]| name.to_owned();
    circles(&arrows(tree, whole), "circle of files")
}

/// The shortest circle through each room, once.
pub fn circles_of_rooms(tree: &Tree) -> Vec<Violation> {
    let room = |_: &str, module: &[String]| room_of(module).to_owned();
    circles(&arrows(tree, room), "circle of rooms")
}

fn arrows(tree: &Tree, place: impl Fn(&str, &[String]) -> String) -> Arrows {
    let mut arrows = Arrows::new();
    for reference in tree.references().into_iter().filter(|reference| !reference.test) {
        let Meaning::Ours(path) = &reference.meaning else { continue };
        let Some(home) = tree.home(path).filter(|home| !home.is_door() && !reference.file.is_door()) else { continue };
        let from = place(&reference.file.name, &reference.file.module);
        let to = place(&home.name, &home.module);
        if from != to {
            let named = (reference.file.name.clone(), reference.line);
            arrows.entry(from).or_default().entry(to).or_insert(named);
        }
    }
    arrows
}

fn circles(arrows: &Arrows, rule: &'static str) -> Vec<Violation> {
    let (mut found, mut reported) = (Vec::new(), BTreeSet::new());
    for start in arrows.keys() {
        if reported.contains(start) {
            continue;
        }
        let Some(circle) = way_back(arrows, start) else { continue };
        let steps = circle.iter().zip(circle.iter().skip(1));
        let named: Vec<_> = steps.map(|(from, to)| &arrows[from][to]).collect();
        let places = named.iter().map(|(file, line)| format!("{file}:{line}")).collect::<Vec<_>>().join(", ");
        let reason = format!("{} (named at {places}); move what both need to a place below both", circle.join(" -> "));
        found.push(Violation { file: named[0].0.clone(), line: named[0].1, rule, reason });
        reported.extend(circle);
    }
    found
}

/// The shortest way from a place to itself, both ends included.
fn way_back(arrows: &Arrows, start: &str) -> Option<Vec<String>> {
    let mut ways = VecDeque::from([vec![start.to_owned()]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for next in way.last().and_then(|last| arrows.get(last)).into_iter().flat_map(BTreeMap::keys) {
            if next == start {
                return Some(way.iter().chain([next]).cloned().collect());
            }
            if seen.insert(next) {
                ways.push_back(way.iter().chain([next]).cloned().collect());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{NONE, complaints, tree};

    #[test]
    fn two_files_that_import_each_other_are_found_through_their_door() {
        let tree = tree(&[
            ("src/sink/mod.rs", "mod a; mod b; mod c; pub use a::A;"),
            ("src/sink/a.rs", "use std::fmt;\nuse super::b::B;"),
            ("src/sink/b.rs", "use super::c;"),
            ("src/sink/c.rs", "fn f() -> crate::sink::A { x }"),
        ]);
        let found = complaints(circles_of_files(&tree));
        assert_eq!(found.len(), 1, "{found:?}");
        let circle =
            "src/sink/a.rs:2: circle of files: src/sink/a.rs -> src/sink/b.rs -> src/sink/c.rs -> src/sink/a.rs";
        assert!(found[0].starts_with(circle), "{found:?}");
        assert!(found[0].contains("named at src/sink/a.rs:2, src/sink/b.rs:1, src/sink/c.rs:1"), "{found:?}");
    }

    #[test]
    fn a_child_that_names_its_parent_file_is_a_circle() {
        let tree = tree(&[
            ("src/config.rs", "mod layers; use self::layers::Layers;"),
            ("src/config/layers.rs", "use super::Config;"),
        ]);
        assert_eq!(circles_of_files(&tree).len(), 1);
    }

    #[test]
    fn two_rooms_that_import_each_other_by_different_files_are_found() {
        let tree = tree(&[
            ("src/media/mod.rs", "mod a; mod b; pub use b::B;"),
            ("src/media/a.rs", "use crate::sink::D;"),
            ("src/media/b.rs", ""),
            ("src/sink/mod.rs", "mod c; mod d; pub use d::D;"),
            ("src/sink/c.rs", "use crate::media::B;"),
            ("src/sink/d.rs", ""),
        ]);
        assert_eq!(complaints(circles_of_files(&tree)), NONE);
        let found = complaints(circles_of_rooms(&tree));
        assert!(found.len() == 1 && found[0].contains("media -> sink -> media"), "{found:?}");
    }

    #[test]
    fn a_diamond_and_a_circle_in_the_tests_are_no_circle() {
        let tree = tree(&[
            ("src/sink/mod.rs", "mod a; mod b; mod c; mod d; pub use d::D;"),
            ("src/sink/a.rs", "use super::{b, c};"),
            ("src/sink/b.rs", "use super::d::D;"),
            ("src/sink/c.rs", "use super::D;"),
            ("src/sink/d.rs", "#[cfg(test)] mod tests { use super::super::a; use super::*; }"),
        ]);
        assert_eq!(complaints(circles_of_files(&tree)), NONE);
        assert_eq!(complaints(circles_of_rooms(&tree)), NONE);
    }
}
