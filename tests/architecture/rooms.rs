//! Rule: a room imports only what the table allows it, and only by its door; a dependency stays in its home.
//!
//! Test code is free: a test may stand on anything.

use std::collections::BTreeSet;

use super::tree::{Meaning, Reference, Tree};
use super::{Crates, HOMES, IMAGE_DECODERS, ROOMS, Room, Rooms, Violation};

/// All arrows between rooms and to dependencies that the tables do not have.
pub fn forbidden_imports(tree: &Tree) -> Vec<Violation> {
    let mut found = unknown_rooms(tree);
    let mut reported = BTreeSet::new();
    for reference in tree.references().into_iter().filter(|reference| !reference.test) {
        let reasons = match &reference.meaning {
            Meaning::Ours(path) => [room_reason(tree, &reference, path), inside_reason(tree, &reference, path)],
            Meaning::Foreign(path) => [crate_reason(&reference, path), home_reason(&reference, path)],
            Meaning::Local => continue,
        };
        for reason in reasons.into_iter().flatten() {
            if reported.insert((reference.file.name.clone(), reason.clone())) {
                found.push(Violation::new(reference.file, reference.line, "imports", reason));
            }
        }
    }
    found
}

/// The name of the room that a module belongs to; lib.rs is a room of its own.
pub fn room_of(module: &[String]) -> &str {
    module.first().map_or("lib", String::as_str)
}

fn row(name: &str) -> Option<&'static Room> {
    ROOMS.iter().find(|room| room.name == name)
}

fn unknown_rooms(tree: &Tree) -> Vec<Violation> {
    let unknown = tree.files.iter().filter(|file| row(room_of(&file.module)).is_none());
    let reason =
        |name| format!("the room `{name}` has no row in ROOMS; say there on which floor it is and what it may import");
    unknown.map(|file| Violation::new(file, 1, "imports", reason(room_of(&file.module)))).collect()
}

fn room_reason(tree: &Tree, reference: &Reference<'_>, path: &[String]) -> Option<String> {
    let (from, to) = (row(room_of(&reference.file.module))?, row(path.first()?)?);
    if from.name == to.name || tree.file(&path[..1]).is_none() {
        return None;
    }
    let allowed = match from.imports {
        Rooms::Only(rooms) => rooms.contains(&to.name),
        Rooms::Below => to.floor < from.floor,
        Rooms::BelowAnd(rooms) => to.floor < from.floor || rooms.contains(&to.name),
    };
    let reason = || {
        let (from_name, to_name, allows) = (from.name, to.name, from.imports);
        format!(
            "`{from_name}` (floor {}) must not import `{to_name}` (floor {}); it may import {allows}",
            from.floor, to.floor
        )
    };
    (!allowed).then(reason)
}

/// Naming a module inside of a folder from outside of it.
fn inside_reason(tree: &Tree, reference: &Reference<'_>, path: &[String]) -> Option<String> {
    let module = &reference.file.module;
    let crossed = (1..path.len()).find(|length| {
        let folder = &path[..*length];
        let shown = path.len() == length + 1 && tree.is_shown(folder, &path[*length]);
        !module.starts_with(folder) && tree.is_folder(folder) && tree.file(&path[..=*length]).is_some() && !shown
    })?;
    let (folder, inside) = (path[..crossed].join("::"), &path[crossed]);
    Some(format!("`{inside}` is inside of `{folder}`; from outside use only what the door of `{folder}` re-exports"))
}

fn crate_reason(reference: &Reference<'_>, path: &[String]) -> Option<String> {
    let room = row(room_of(&reference.file.module))?;
    let name = path.join("::");
    let standard = ["std", "core", "alloc"].contains(&path[0].as_str());
    let allowed = match room.crates {
        Crates::Any => true,
        Crates::Only(crates) => standard || crates.contains(&path[0].as_str()),
        Crates::Never(crates) => !crates.iter().any(|never| is_below(&name, never, "::")),
        Crates::StdWithout(parts) => standard && !parts.iter().any(|part| is_below(&name, part, "::")),
    };
    (!allowed).then(|| format!("`{}` must not use `{name}`; it may use {}", room.name, room.crates))
}

fn home_reason(reference: &Reference<'_>, path: &[String]) -> Option<String> {
    let name = reference.file.name.strip_prefix("src/").unwrap_or(&reference.file.name);
    let home = HOMES.iter().find(|home| home.crates.contains(&path[0].as_str()))?;
    let at_home = |place: &&str| is_below(name.trim_end_matches(".rs"), place.trim_end_matches(".rs"), "/");
    if !home.places.iter().any(at_home) {
        return Some(format!("`{}` may be used only in {}: {}", path[0], home.places.join(", "), home.reason));
    }
    let decoder = path.iter().find(|segment| IMAGE_DECODERS.iter().any(|suffix| segment.ends_with(suffix)))?;
    let decodes = path[0] == "image" && name != "media/image.rs";
    decodes
        .then(|| format!("`{decoder}` decodes a picture; pictures are decoded under limits, in media/image.rs alone"))
}

fn is_below(name: &str, place: &str, separator: &str) -> bool {
    name.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with(separator))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{NONE, complaints, tree};

    fn found(sources: &[(&str, &str)]) -> Vec<String> {
        complaints(forbidden_imports(&tree(sources)))
    }

    #[test]
    fn arrows_that_the_table_has_are_allowed() {
        let sources = [
            ("src/domain/mod.rs", "mod asset; pub use asset::Asset;"),
            ("src/domain/asset.rs", "use serde::Serialize; use std::fmt;"),
            ("src/pipeline/fetch.rs", "use crate::domain::Asset; use super::tracked::Tracked;"),
            ("src/source/kafka/mod.rs", "use rdkafka::Message;"),
            ("src/demo/draw.rs", "use image::codecs::png::PngEncoder;"),
            ("src/app.rs", "use crate::check; use crate::domain;"),
            ("src/check.rs", ""),
        ];
        assert_eq!(found(&sources), NONE);
    }

    #[test]
    fn an_arrow_to_a_room_that_is_not_in_the_row_is_found_with_its_line() {
        let sources = [
            ("src/engine/batch.rs", "use std::fmt;\nuse crate::{\n    model,\n    domain::Asset,\n};"),
            ("src/domain/mod.rs", ""),
        ];
        let found = found(&sources);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("src/engine/batch.rs:4: imports: `engine` (floor 3) must not import `domain`"),
            "{found:?}"
        );
    }

    #[test]
    fn an_arrow_up_and_one_to_the_side_are_found_even_without_a_use() {
        let sources =
            [("src/config.rs", "fn f() { super::app::run() }"), ("src/app.rs", "use crate::ask;"), ("src/ask.rs", "")];
        let found = found(&sources);
        assert!(found[0].contains("`config` (floor 5) must not import `app` (floor 6)"), "{found:?}");
        assert!(found[1].contains("`app` (floor 6) must not import `ask` (floor 6)"), "{found:?}");
    }

    #[test]
    fn naming_the_inside_of_a_room_is_found_from_outside_alone() {
        let sources = [
            ("src/source/mod.rs", "mod kafka; mod api; pub use kafka::X;"),
            ("src/source/kafka/mod.rs", "mod options; pub use options::X;"),
            ("src/source/kafka/options.rs", "use crate::source::api::Y;"),
            ("src/source/api.rs", "use super::kafka::options::X;"),
            ("src/pipeline/fetch.rs", "use crate::source::kafka::X;\nuse crate::source::X as Z;"),
        ];
        let found = found(&sources);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("src/source/api.rs:1: imports: `options` is inside of `source::kafka`"),
            "{found:?}"
        );
        assert!(found[1].starts_with("src/pipeline/fetch.rs:1: imports: `kafka` is inside of `source`"), "{found:?}");
    }

    #[test]
    fn a_function_on_the_door_may_be_called_like_its_module() {
        let sources = [
            ("src/sink/mod.rs", "mod upkeep; pub use upkeep::upkeep;"),
            ("src/sink/upkeep.rs", ""),
            ("src/upkeep.rs", "use crate::sink::upkeep;\nuse crate::sink::upkeep::Hidden;"),
        ];
        let found = found(&sources);
        assert!(
            found.len() == 1 && found[0].starts_with("src/upkeep.rs:2: imports: `upkeep` is inside of `sink`"),
            "{found:?}"
        );
    }

    #[test]
    fn a_dependency_outside_of_its_home_is_found() {
        for (file, text) in [
            ("src/pipeline/fetch.rs", "fn f(x: rdkafka::Message) {}"),
            ("src/source/replay.rs", "use arrow::array::Array;"),
            ("src/query/print.rs", "use candle_core as c;"),
            ("src/kv/pool.rs", "use candle_core::Tensor;"),
            ("src/job/spec.rs", "use anyhow::Context;"),
            ("src/model/resize.rs", "use image::RgbImage;"),
        ] {
            let found = found(&[(file, text)]);
            assert!(found.len() == 1 && found[0].contains("may be used only in"), "{file}: {found:?}");
        }
    }

    #[test]
    fn a_dependency_that_the_row_forbids_is_found() {
        for (file, text) in [
            ("src/domain/asset.rs", "use serde_json::Value;"),
            ("src/ledger/book.rs", "use serde::Serialize;"),
            ("src/ledger/book.rs", "use std::time::{Duration, Instant};"),
            ("src/kv/pool.rs", "use tokio::sync::Mutex;"),
            ("src/model/clip.rs", "#[tokio::main] fn f() {}"),
        ] {
            let found = found(&[(file, text)]);
            assert!(found.len() == 1 && found[0].contains("must not use"), "{file}: {found:?}");
        }
    }

    #[test]
    fn decoding_a_picture_outside_of_the_media_room_is_found() {
        for text in [
            "use image::ImageReader;",
            "fn f() { image::load_from_memory(&[]) }",
            "use image::codecs::png::PngDecoder;",
        ] {
            let found = found(&[("src/bench.rs", text), ("src/media/image.rs", text)]);
            assert!(found.len() == 1 && found[0].contains("in media/image.rs alone"), "{text}: {found:?}");
        }
    }

    #[test]
    fn a_room_without_a_row_is_found() {
        let found = found(&[("src/helpers/mod.rs", "")]);
        assert!(found.len() == 1 && found[0].contains("`helpers` has no row"), "{found:?}");
    }

    #[test]
    fn tests_comments_and_literals_are_free() {
        let text = "// use crate::job;\nconst X: &str = r#\"use rdkafka::y;\"#;\n#[cfg(test)]\nmod tests { use crate::job::X; use tokio::y; }";
        let sources = [
            ("src/model/clip.rs", text),
            ("src/model/mod.rs", "#[cfg(test)] mod fixture;"),
            ("src/model/fixture.rs", "use crate::job::X; use image::ImageReader;"),
            ("src/job/mod.rs", ""),
        ];
        assert_eq!(found(&sources), NONE);
    }
}
