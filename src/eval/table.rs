//! Reports and comparisons as text for people.
//!
//! It only formats. Invariant: a figure that could not be computed is left out, never told as zero.

use std::collections::BTreeMap;
use std::fmt;

use super::changes::Changes;
use super::report::{Assets, Report};
use super::statistics::Summary;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} in {}", self.job, self.tables)?;
        writeln!(f, "{}", self.assets)?;
        let rows = self.rows();
        let width = rows.iter().map(|row| row.0.len()).max().unwrap_or_default();
        writeln!(f)?;
        for (name, figure, detail) in rows {
            writeln!(f, "  {name:<width$}  {figure:.4}  {detail}")?;
        }
        self.statistic_lines(f)?;
        self.words(f, "finish reasons", &self.finish_reasons)?;
        self.words(f, "job fingerprints", &self.job_fingerprints)?;
        self.words(f, "models", &self.models)
    }
}

impl Report {
    /// Name, figure and what else there is to say.
    fn rows(&self) -> Vec<(String, f64, String)> {
        let of = |assets: usize| format!("of {assets}");
        let mut rows = Vec::new();
        if let Some(category) = self.category {
            let (score, exact) = (category.score, category.exact);
            let detail =
                format!("precision {:.4}, recall {:.4}, whole path {exact:.4}, ", score.precision, score.recall);
            rows.push(("category, hierarchical F1".to_owned(), score.f1, detail + &of(category.assets)));
        }
        if let Some(brand) = self.brand {
            rows.push(("brand, matches".to_owned(), brand.share, of(brand.assets)));
        }
        if let Some(secondhand) = self.is_secondhand {
            let (score, accuracy) = (secondhand.score, secondhand.accuracy);
            let detail =
                format!("precision {:.4}, recall {:.4}, accuracy {accuracy:.4}, ", score.precision, score.recall);
            rows.push(("second-hand, F1".to_owned(), score.f1, detail + &of(secondhand.assets)));
        }
        rows.extend(
            self.fields.iter().map(|(name, share)| (format!("{name}, accuracy"), share.share, of(share.assets))),
        );
        rows.extend(self.schema_validity.map(|share| ("schema validity".to_owned(), share.share, of(share.assets))));
        rows
    }

    fn statistic_lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let statistics = &self.statistics;
        let all: [(&str, Option<Summary>); 4] = [
            ("latency, seconds", statistics.latency_seconds),
            ("prompt tokens", statistics.prompt_tokens),
            ("completion tokens", statistics.completion_tokens),
            ("device seconds", statistics.device_seconds),
        ];
        if all.iter().all(|(_, summary)| summary.is_none()) {
            return Ok(());
        }
        writeln!(f, "\n  {:<17}  {:>12}  {:>12}  {:>12}", "per answer", "mean", "p50", "p99")?;
        for (name, summary) in all {
            if let Some(Summary { mean, p50, p99, .. }) = summary {
                writeln!(f, "  {name:<17}  {mean:>12.3}  {p50:>12.3}  {p99:>12.3}")?;
            }
        }
        writeln!(f)
    }

    fn words(&self, f: &mut fmt::Formatter<'_>, name: &str, counts: &BTreeMap<String, usize>) -> fmt::Result {
        match counts.is_empty() {
            true => Ok(()),
            false => writeln!(f, "  {name}: {}", listed(counts)),
        }
    }
}

impl fmt::Display for Assets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { judged, answered, invalid, rejected, absent, .. } = self;
        write!(f, "{judged} assets: {answered} answered")?;
        let missing = rejected.iter().map(|(reason, assets)| (format!("rejected as {reason}"), *assets));
        let missing =
            [("invalid".to_owned(), *invalid), ("not in the tables".to_owned(), *absent)].into_iter().chain(missing);
        let missing: Vec<String> =
            missing.filter(|(_, assets)| *assets > 0).map(|(name, assets)| format!("{assets} {name}")).collect();
        if !missing.is_empty() {
            write!(f, ", {} (wrong in every field)", missing.join(", "))?;
        }
        let left_out =
            [("removed", self.removed), ("of the other kind", self.other_kind), ("without a label", self.unlabelled)];
        let left_out: Vec<String> = left_out
            .iter()
            .filter(|(_, assets)| *assets > 0)
            .map(|(name, assets)| format!("{assets} {name}"))
            .collect();
        if !left_out.is_empty() {
            write!(f, "; left out: {}", left_out.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "against {} in {}\n{}", self.baseline.job, self.baseline.tables, self.baseline.assets)?;
        let width = self.fields.keys().map(String::len).max().unwrap_or(0).max("field".len());
        writeln!(
            f,
            "\n  {:<width$}  {:>8}  {:>8}  {:>10}  {:>8}  {:>7}  {:>7}",
            "field", "now", "before", "difference", "changed", "better", "worse"
        )?;
        for (name, change) in &self.fields {
            writeln!(
                f,
                "  {name:<width$}  {:>8.4}  {:>8.4}  {:>+10.4}  {:>8}  {:>7}  {:>7}",
                change.figure, change.baseline, change.difference, change.changed, change.better, change.worse
            )?;
        }
        let assets = self.assets;
        writeln!(
            f,
            "\n  {} assets compared: {} changed, {} better, {} worse",
            assets.compared, assets.changed, assets.better, assets.worse
        )?;
        for example in &self.examples {
            writeln!(
                f,
                "  {} {}: {} -> {} (truth {}, {})",
                example.id, example.field, example.baseline, example.answer, example.truth, example.verdict
            )?;
        }
        Ok(())
    }
}

fn listed(counts: &BTreeMap<String, usize>) -> String {
    counts.iter().map(|(name, assets)| format!("{name} ({assets})")).collect::<Vec<_>>().join(", ")
}
