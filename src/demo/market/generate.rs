//! The generated catalogue as a whole, and how it is written to a folder.
//!
//! It knows files, and leaves what is drawn to the others. Invariant: the same split, seed and number of items give the same
//! bytes in every file but for the folder's own name in the references to pictures.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::faults::faults;
use super::super::files::{at, draw_all, make, media_place, write_file, write_lines, write_topic};
use super::super::record::Record;
use super::interactions::Study;
use super::item::{MarketItem, MarketTruth, item};
use super::photo::Photo;
use super::split::{Seed, Split};
use crate::domain::AssetKind;

/// Products and advertisements of one split, about three to one.
#[derive(Debug, Clone, PartialEq)]
pub struct Market<S> {
    pub items: Vec<MarketItem>,
    seed: Seed<S>,
}

/// What is written besides the catalogue itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extras {
    /// Where the thing is seen in each picture.
    pub masks: bool,
    /// Bad messages and pictures, removals, updates out of order.
    pub faults: bool,
}

/// What [`Market::write`] has written, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarketFiles {
    /// Folder of the pictures.
    pub media: PathBuf,
    /// Folder of one mask for each picture, if they were wanted.
    pub masks: Option<PathBuf>,
    /// One [`MarketTruth`] a line, in the order of the items.
    pub labels: PathBuf,
    /// `users.jsonl`, `past.jsonl`, `held_out.jsonl`.
    pub interactions: PathBuf,
    /// Records of both topics, those of faults included.
    pub records: usize,
    pub pictures: usize,
}

impl<S: Split> Market<S> {
    /// The first `items` of a seed; pictures are drawn when they are asked for.
    pub fn generate(seed: Seed<S>, items: usize) -> Self {
        Self { items: (0..items).map(|number| item(seed, number)).collect(), seed }
    }

    /// The first `products` products of a seed, without the advertisements between them.
    pub fn products(seed: Seed<S>, products: usize) -> Self {
        let is_product = |item: &MarketItem| item.truth.kind == AssetKind::Product;
        Self { items: (0..).map(|number| item(seed, number)).filter(is_product).take(products).collect(), seed }
    }

    /// The truths, in the order of the items.
    pub fn truths(&self) -> impl Iterator<Item = &MarketTruth> {
        self.items.iter().map(|item| &item.truth)
    }

    /// Users, what they clicked on, and what they would click on.
    pub fn study(&self) -> Study {
        Study::draw(self.seed, &self.items)
    }

    /// Writes `topics/products/{0..3}.jsonl`, `topics/ads/{0..3}.jsonl`, `media/`, `labels.jsonl` and `interactions/` under
    /// `directory`, which is made when it does not exist, and `masks/` if they are wanted.
    ///
    /// # Errors
    /// Whatever the file system says, with the path it concerns.
    pub fn write(&self, directory: &Path, extras: Extras) -> io::Result<MarketFiles> {
        let media = directory.join("media");
        make(&media)?;
        let media = fs::canonicalize(&media).map_err(|error| at(&media, error))?;
        let place = media_place(&media)?;
        let photos: Vec<&Photo> = self.items.iter().flat_map(|item| &item.photos).collect();
        draw_all(&photos, &|photo| write_file(&media.join(&photo.name), &photo.encode()))?;
        let masks = if extras.masks { Some(self.write_masks(&photos, &directory.join("masks"))?) } else { None };
        let mut records: Vec<Record> = self.items.iter().map(|item| item.record(&place)).collect();
        let mut pictures = photos.len();
        if extras.faults {
            let faults = faults(&self.items, &place);
            pictures += faults.pictures.len();
            for (name, bytes) in &faults.pictures {
                write_file(&media.join(name), bytes)?;
            }
            records.extend(faults.records);
        }
        write_topic(&records, AssetKind::Product, &directory.join("topics/products"))?;
        write_topic(&records, AssetKind::Ad, &directory.join("topics/ads"))?;
        let labels = directory.join("labels.jsonl");
        write_lines(&labels, self.truths().map(|truth| json!(truth)))?;
        let interactions = self.write_study(&directory.join("interactions"))?;
        Ok(MarketFiles { media, masks, labels, interactions, records: records.len(), pictures })
    }

    fn write_masks(&self, photos: &[&Photo], folder: &Path) -> io::Result<PathBuf> {
        make(folder)?;
        let name = |photo: &Photo| folder.join(&photo.name).with_extension("png");
        draw_all(photos, &|photo| write_file(&name(photo), &photo.mask()))?;
        Ok(folder.to_owned())
    }

    fn write_study(&self, folder: &Path) -> io::Result<PathBuf> {
        make(folder)?;
        let study = self.study();
        write_lines(&folder.join("users.jsonl"), study.tastes.iter().map(|taste| json!(taste)))?;
        write_lines(&folder.join("past.jsonl"), study.past.iter().map(|one| json!(one)))?;
        write_lines(&folder.join("held_out.jsonl"), study.held_out.iter().map(|one| json!(one)))?;
        Ok(folder.to_owned())
    }
}
