//! What differs between two runs over the same labels.
//!
//! It knows marks and reports, and which run is the baseline; it prints nothing. Invariant: an asset is compared in a field
//! only if both runs were judged in it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::judge::{agree, told};
use super::report::{Mark, Report};

/// The baseline, and what the run changed of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Changes {
    pub baseline: Report,
    /// Fields whose answers differ at all, and those that do not, by name.
    pub fields: BTreeMap<String, FieldChange>,
    pub assets: AssetChange,
    /// The first assets whose answers differ, in the order of the labels.
    pub examples: Vec<Example>,
}

/// What changed in one field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct FieldChange {
    /// The figure of the run and that of the baseline.
    pub figure: f64,
    pub baseline: f64,
    pub difference: f64,
    /// Assets that were compared.
    pub assets: usize,
    /// Assets with another answer, right or wrong.
    pub changed: usize,
    pub better: usize,
    pub worse: usize,
}

/// Over all fields of an asset: the mean of their scores rose, fell or stayed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct AssetChange {
    pub compared: usize,
    pub changed: usize,
    pub better: usize,
    pub worse: usize,
}

/// One field of one asset that was answered differently.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Example {
    pub id: String,
    pub field: String,
    pub truth: Value,
    pub baseline: Value,
    pub answer: Value,
    /// `better`, `worse` or `same`.
    pub verdict: &'static str,
}

impl Changes {
    /// Both lists of marks are over the same labels, in their order.
    pub(super) fn of(run: (&Report, &[Mark<'_>]), baseline: (Report, &[Mark<'_>]), most_examples: usize) -> Self {
        let before: BTreeMap<String, f64> = baseline.0.headlines().into_iter().collect();
        let headlines = run.0.headlines().into_iter();
        let fields = headlines.filter_map(|(name, figure)| {
            let baseline = *before.get(&name)?;
            Some((name, FieldChange { figure, baseline, difference: figure - baseline, ..FieldChange::default() }))
        });
        let mut changes = Self {
            fields: fields.collect(),
            baseline: baseline.0,
            assets: AssetChange::default(),
            examples: Vec::new(),
        };
        for (after, before) in run.1.iter().zip(baseline.1) {
            if !after.outcome.is_removed() && !before.outcome.is_removed() {
                changes.compare(after, before, most_examples);
            }
        }
        changes
    }

    fn compare(&mut self, after: &Mark<'_>, before: &Mark<'_>, most_examples: usize) {
        let (scores, old_scores) = (after.verdict.scores(), before.verdict.scores());
        let (mut sum, mut differs) = (0.0, false);
        for (name, change) in &mut self.fields {
            let (Some(score), Some(old_score)) = (scores.get(name.as_str()), old_scores.get(name.as_str())) else {
                continue;
            };
            let answered = |mark: &Mark<'_>| mark.outcome.fields().map_or(Value::Null, |fields| told(fields, name));
            let (answer, baseline) = (answered(after), answered(before));
            let is_same = after.outcome.fields().is_some() == before.outcome.fields().is_some()
                && agree(Some(&answer), &baseline);
            change.assets += 1;
            change.changed += usize::from(!is_same);
            change.better += usize::from(score > old_score);
            change.worse += usize::from(score < old_score);
            sum += score - old_score;
            differs |= !is_same;
            if !is_same && self.examples.len() < most_examples {
                let truth = told(&after.label.fields.clone().into_iter().collect(), name);
                let verdict = direction(score - old_score);
                let (id, field) = (after.label.id.clone(), name.clone());
                self.examples.push(Example { id, field, truth, baseline, answer, verdict });
            }
        }
        self.assets.compared += 1;
        self.assets.changed += usize::from(differs);
        self.assets.better += usize::from(direction(sum) == "better");
        self.assets.worse += usize::from(direction(sum) == "worse");
    }
}

/// Sums of scores are not exact, so next to nothing is nothing.
fn direction(difference: f64) -> &'static str {
    match difference {
        rise if rise > 1e-9 => "better",
        fall if fall < -1e-9 => "worse",
        _ => "same",
    }
}
