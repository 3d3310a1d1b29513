//! The figures of one run over all its labels.
//!
//! It adds up verdicts and costs; it reads nothing and prints nothing. Invariant: every label of the job's kind is counted
//! in exactly one of answered, invalid, rejected, absent and removed, and all but the removed ones are judged.

use std::collections::BTreeMap;

use serde::Serialize;

use super::answers::{Answer, Answers, Cost};
use super::judge::{BRAND, CATEGORY, IS_SECONDHAND, Judge, Verdict};
use super::labels::Label;
use super::metrics::{BinaryCount, F1, PathCount, ratio};
use super::statistics::Summary;
use crate::query::Object;

/// The reason of rejections whose answer did not fit its schema.
const NO_ANSWER: &str = "model_output";

/// One label with what became of its asset.
#[derive(Debug, Clone)]
pub(super) struct Mark<'a> {
    pub label: &'a Label,
    pub outcome: Outcome<'a>,
    pub verdict: Verdict,
}

/// What became of an asset.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome<'a> {
    Answered(&'a Answer),
    /// There is a row, but it does not satisfy the output schema.
    Invalid,
    /// The reason of the rejection.
    Rejected(&'a str),
    /// The tables do not know it.
    Absent,
    /// Its last record is a tombstone.
    Removed,
}

impl<'a> Outcome<'a> {
    fn of(id: &str, answers: &'a Answers) -> Self {
        match (answers.rows.get(id), answers.rejected.get(id)) {
            (Some(answer), _) if answer.is_valid => Self::Answered(answer),
            (Some(_), _) => Self::Invalid,
            _ if answers.removed.contains(id) => Self::Removed,
            (None, Some(reason)) => Self::Rejected(reason),
            (None, None) => Self::Absent,
        }
    }

    /// The answer that counts.
    pub(super) fn fields(&self) -> Option<&'a Object> {
        match self {
            Self::Answered(answer) => Some(&answer.fields),
            _ => None,
        }
    }

    pub(super) fn is_removed(&self) -> bool {
        matches!(self, Self::Removed)
    }
}

/// Judges all labels, in their order.
pub(super) fn marks<'a>(labels: &[&'a Label], answers: &'a Answers, judge: &Judge) -> Vec<Mark<'a>> {
    let mark = |label: &&'a Label| {
        let outcome = Outcome::of(&label.id, answers);
        Mark { label, outcome, verdict: judge.verdict(label, outcome.fields()) }
    };
    labels.iter().map(mark).collect()
}

/// All figures of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Report {
    pub job: String,
    /// Where the run's tables lie.
    pub tables: String,
    pub assets: Assets,
    pub category: Option<Category>,
    pub brand: Option<Share>,
    pub is_secondhand: Option<Secondhand>,
    /// Every other field that labels and answers both have.
    pub fields: BTreeMap<String, Share>,
    /// Of what the model wrote, how much satisfies the output schema.
    pub schema_validity: Option<Share>,
    pub statistics: Statistics,
    /// Why answers ended.
    pub finish_reasons: BTreeMap<String, usize>,
    /// Fingerprint of the job to the answers it gave; several mean that the job was changed between them.
    pub job_fingerprints: BTreeMap<String, usize>,
    /// Model and fingerprint of its files to the answers it gave.
    pub models: BTreeMap<String, usize>,
}

/// What became of the labelled assets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Assets {
    /// All but the removed ones; each of them is judged.
    pub judged: usize,
    pub answered: usize,
    /// Rows that do not satisfy the output schema; they count as missing.
    pub invalid: usize,
    /// By reason; they count as missing.
    pub rejected: BTreeMap<String, usize>,
    /// Not in the tables; they count as missing.
    pub absent: usize,
    /// Left out.
    pub removed: usize,
    /// Labels of the other kind of asset; left out.
    pub other_kind: usize,
    /// Rows without a label; left out.
    pub unlabelled: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Category {
    /// Hierarchical, as a micro average.
    #[serde(flatten)]
    pub score: F1,
    /// The share of paths that are right to the last level.
    pub exact: f64,
    pub assets: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Secondhand {
    /// Of the positive class.
    #[serde(flatten)]
    pub score: F1,
    pub accuracy: f64,
    pub assets: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Share {
    pub share: f64,
    pub assets: usize,
}

/// Of the answers that count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Statistics {
    pub latency_seconds: Option<Summary>,
    pub prompt_tokens: Option<Summary>,
    pub completion_tokens: Option<Summary>,
    pub device_seconds: Option<Summary>,
}

impl Report {
    /// Adds up. `unlabelled` rows and labels of the `other_kind` are only told.
    pub(super) fn of((job, tables): (&str, &str), marks: &[Mark<'_>], unlabelled: usize, other_kind: usize) -> Self {
        let judged: Vec<&Mark> = marks.iter().filter(|mark| !mark.outcome.is_removed()).collect();
        let mut assets = Assets { judged: judged.len(), unlabelled, other_kind, ..Assets::default() };
        let mut unusable = 0;
        for mark in marks {
            match mark.outcome {
                Outcome::Answered(_) => assets.answered += 1,
                Outcome::Invalid => assets.invalid += 1,
                Outcome::Absent => assets.absent += 1,
                Outcome::Removed => assets.removed += 1,
                Outcome::Rejected(reason) => {
                    unusable += usize::from(reason == NO_ANSWER);
                    *assets.rejected.entry(reason.to_owned()).or_default() += 1;
                }
            }
        }
        let written = assets.answered + assets.invalid + unusable;
        let validity = Share { share: ratio(assets.answered, written), assets: written };
        let answers: Vec<&Answer> = judged.iter().filter_map(|mark| given(mark)).collect();
        Self {
            job: job.to_owned(),
            tables: tables.to_owned(),
            category: category(&judged),
            brand: share(judged.iter().filter_map(|mark| mark.verdict.brand)),
            is_secondhand: secondhand(&judged),
            fields: fields(&judged),
            schema_validity: (written > 0).then_some(validity),
            statistics: Statistics::of(&answers),
            finish_reasons: counted(answers.iter().filter_map(|answer| answer.cost.finish_reason.clone())),
            job_fingerprints: counted(answers.iter().map(|answer| answer.job_fingerprint.clone())),
            models: counted(
                answers
                    .iter()
                    .flat_map(|answer| answer.models.iter().map(|(name, fingerprint)| format!("{name} {fingerprint}"))),
            ),
            assets,
        }
    }

    /// The one figure of each field, in the order in which they are told.
    pub(super) fn headlines(&self) -> Vec<(String, f64)> {
        let category = self.category.map(|category| (CATEGORY.to_owned(), category.score.f1));
        let brand = self.brand.map(|brand| (BRAND.to_owned(), brand.share));
        let secondhand = self.is_secondhand.map(|secondhand| (IS_SECONDHAND.to_owned(), secondhand.score.f1));
        let fields = self.fields.iter().map(|(name, share)| (name.clone(), share.share));
        category.into_iter().chain(brand).chain(secondhand).chain(fields).collect()
    }
}

impl Statistics {
    fn of(answers: &[&Answer]) -> Self {
        let summary =
            |cost: fn(&Cost) -> Option<f64>| Summary::of(answers.iter().filter_map(|answer| cost(&answer.cost)));
        Self {
            latency_seconds: summary(|cost| cost.latency_seconds),
            prompt_tokens: summary(|cost| cost.prompt_tokens),
            completion_tokens: summary(|cost| cost.completion_tokens),
            device_seconds: summary(|cost| cost.device_seconds),
        }
    }
}

fn given<'a>(mark: &Mark<'a>) -> Option<&'a Answer> {
    match mark.outcome {
        Outcome::Answered(answer) => Some(answer),
        _ => None,
    }
}

fn category(marks: &[&Mark<'_>]) -> Option<Category> {
    let mut count = PathCount::default();
    marks.iter().filter_map(|mark| mark.verdict.category).for_each(|score| count.add(score));
    let exact = ratio(count.exact, count.samples);
    (count.samples > 0).then(|| Category { score: count.f1(), exact, assets: count.samples })
}

fn secondhand(marks: &[&Mark<'_>]) -> Option<Secondhand> {
    let mut count = BinaryCount::default();
    marks.iter().filter_map(|mark| mark.verdict.is_secondhand).for_each(|(told, truth)| count.add(told, truth));
    let accuracy = ratio(count.right, count.samples);
    (count.samples > 0).then(|| Secondhand { score: count.f1(), accuracy, assets: count.samples })
}

fn fields(marks: &[&Mark<'_>]) -> BTreeMap<String, Share> {
    let mut counts: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
    for (name, is_right) in marks.iter().flat_map(|mark| &mark.verdict.fields) {
        counts.entry(name).or_default().push(*is_right);
    }
    let shares = counts.into_iter().filter_map(|(name, right)| Some((name.to_owned(), share(right.into_iter())?)));
    shares.collect()
}

fn share(right: impl Iterator<Item = bool>) -> Option<Share> {
    let (right, assets) = right.fold((0, 0), |(right, all), is_right| (right + usize::from(is_right), all + 1));
    (assets > 0).then(|| Share { share: ratio(right, assets), assets })
}

fn counted(words: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    words.fold(BTreeMap::new(), |mut counts, word| {
        *counts.entry(word).or_default() += 1;
        counts
    })
}
