//! Files of a catalogue: pictures, lines of JSON, and one JSON-lines file for each partition of a topic.
//!
//! A line is an envelope `{"key", "value", "headers", "timestamp"}` with the message, or null, as its value. Records of
//! one key always lie in one partition, in the order in which they were made.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::thread;

use serde_json::{Value, json};
use url::Url;

use crate::domain::AssetKind;

use super::record::Record;

pub(super) const TOPICS: [&str; 2] = ["products", "ads"];
/// Partitions of each topic.
pub(super) const PARTITIONS: usize = 4;

/// Turns the file name of a picture in this folder, which is absolute, into its url.
pub(super) fn media_place(media: &Path) -> io::Result<impl Fn(&str) -> String + use<>> {
    let base = Url::from_directory_path(media).map_err(|()| at(media, io::ErrorKind::InvalidInput.into()))?;
    Ok(move |name: &str| base.join(name).map_or_else(|_| format!("{base}{name}"), String::from))
}

/// FNV-1a, because the standard hasher may change with a compiler.
fn partition(key: &str) -> usize {
    let hash = key
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    (hash % PARTITIONS as u64) as usize
}

pub(super) fn write_topic(records: &[Record], kind: AssetKind, folder: &Path) -> io::Result<()> {
    make(folder)?;
    for number in 0..PARTITIONS {
        let mine = records.iter().filter(|record| record.kind == kind && partition(&record.key) == number);
        let lines = mine.map(|record| {
            let Record { key, value, timestamp, .. } = record;
            let title = value.get("title").or_else(|| value.get("headline")).unwrap_or(&Value::Null);
            let headers = json!({ "source": "demo", "title": title.as_str().unwrap_or_default() });
            json!({ "key": key, "value": value, "headers": headers, "timestamp": timestamp })
        });
        write_lines(&folder.join(format!("{number}.jsonl")), lines)?;
    }
    Ok(())
}

pub(super) fn write_lines(path: &Path, lines: impl Iterator<Item = Value>) -> io::Result<()> {
    let write = || -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for line in lines {
            writeln!(file, "{line}")?;
        }
        file.flush()
    };
    write().map_err(|error| at(path, error))
}

/// Drawing is pure arithmetic, so every core takes a share.
pub(super) fn draw_all<P: Sync>(pictures: &[P], draw: &(dyn Fn(&P) -> io::Result<()> + Sync)) -> io::Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = pictures.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let workers: Vec<_> =
            pictures.chunks(share).map(|share| scope.spawn(|| share.iter().try_for_each(draw))).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

pub(super) fn make(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder).map_err(|error| at(folder, error))
}

pub(super) fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes).map_err(|error| at(path, error))
}

pub(super) fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::super::market::{Extras, Market, Seed, Test};
    use super::*;

    fn market(items: usize) -> Market<Test> {
        Market::generate(Seed::new(5).unwrap(), items)
    }

    fn topic(folder: &tempfile::TempDir, name: &str) -> PathBuf {
        folder.path().join("topics").join(name)
    }

    fn lines(folder: &Path) -> Vec<Value> {
        let paths = (0..PARTITIONS).map(|number| folder.join(format!("{number}.jsonl")));
        let text: String = paths.map(|path| fs::read_to_string(path).unwrap()).collect();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn fields(value: &Value) -> BTreeSet<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn every_record_is_an_envelope_whose_media_exist() {
        let folder = tempfile::tempdir().unwrap();
        let written = market(40).write(folder.path(), Extras::default()).unwrap();
        let records = [lines(&topic(&folder, "products")), lines(&topic(&folder, "ads"))].concat();
        assert_eq!((records.len(), written.records), (40, 40));
        for record in &records {
            assert_eq!(fields(record), BTreeSet::from(["key", "value", "headers", "timestamp"]));
            assert_eq!(record["key"], record["value"]["id"]);
            for medium in record["value"]["media"].as_array().unwrap() {
                let url = Url::parse(medium["url"].as_str().unwrap()).unwrap();
                assert!(url.to_file_path().unwrap().is_file(), "{url}");
            }
        }
        assert_eq!(fs::read_to_string(&written.labels).unwrap().lines().count(), 40);
    }

    #[test]
    fn messages_hold_the_fields_of_their_kind_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        market(40).write(folder.path(), Extras::default()).unwrap();
        let product = [
            "id",
            "title",
            "description",
            "attributes",
            "candidate_categories",
            "media",
            "locale",
            "price",
            "event_time",
        ];
        let ad = ["id", "headline", "body", "call_to_action", "landing_page", "media", "event_time"];
        assert!(
            lines(&topic(&folder, "products")).iter().all(|record| fields(&record["value"]) == BTreeSet::from(product))
        );
        assert!(lines(&topic(&folder, "ads")).iter().all(|record| fields(&record["value"]) == BTreeSet::from(ad)));
    }

    #[test]
    fn faults_come_on_top_and_keep_the_records_of_a_key_in_one_partition() {
        let folder = tempfile::tempdir().unwrap();
        let catalogue = market(12);
        let written = catalogue.write(folder.path(), Extras { faults: true, ..Extras::default() }).unwrap();
        assert_eq!(written.records, 12 + 7);
        let key = &catalogue.items[0].id;
        let name = if catalogue.items[0].truth.kind == AssetKind::Product { "products" } else { "ads" };
        let home = topic(&folder, name);
        let file = fs::read_to_string(home.join(format!("{}.jsonl", partition(key)))).unwrap();
        assert_eq!(file.lines().filter(|line| line.contains(&format!("\"key\":\"{key}\""))).count(), 3);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, "x").unwrap();
        let error = market(1).write(&blocked, Extras::default()).unwrap_err();
        assert!(error.to_string().contains("file/media"), "{error}");
    }
}
