//! The metrics of the public benchmark (MLPerf Inference, `qwen3-vl`, its evaluation.py), and nothing else.
//!
//! Pure: it knows texts and counts, no labels, no tables, no files. Invariant: counts are whole numbers and are divided
//! only at the end, so the order of samples does not matter.

use serde::Serialize;

/// Between the levels of a category path.
const SEPARATOR: &str = " > ";

/// How far two category paths agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathScore {
    /// Levels of the longest common beginning.
    pub common: usize,
    pub predicted: usize,
    pub truth: usize,
}

impl PathScore {
    /// Both paths are split at `" > "`; space around a level does not count.
    pub fn of(predicted: &str, truth: &str) -> Self {
        let levels = |path| str::split(path, SEPARATOR).map(stripped);
        let common = levels(predicted).zip(levels(truth)).take_while(|(one, other)| one == other).count();
        Self { common, predicted: levels(predicted).count(), truth: levels(truth).count() }
    }

    /// An answer that is missing or cannot be read: a path of padding, as long as the true one.
    pub fn missing(truth: &str) -> Self {
        let truth = truth.split(SEPARATOR).count();
        Self { common: 0, predicted: truth, truth }
    }

    /// All levels, and no level more.
    pub fn is_exact(self) -> bool {
        self.common == self.predicted && self.common == self.truth
    }
}

/// Sums of [`PathScore`]s: the micro average of hierarchical precision and recall.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathCount {
    pub samples: usize,
    pub common: usize,
    pub predicted: usize,
    pub truth: usize,
    pub exact: usize,
}

impl PathCount {
    pub fn add(&mut self, score: PathScore) {
        self.samples += 1;
        self.common += score.common;
        self.predicted += score.predicted;
        self.truth += score.truth;
        self.exact += usize::from(score.is_exact());
    }

    /// Precision, recall and their harmonic mean; 0 where there is nothing to divide by.
    pub fn f1(&self) -> F1 {
        F1::of(self.common, self.predicted, self.truth)
    }
}

/// True and false positives and negatives of a yes-or-no field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BinaryCount {
    pub samples: usize,
    pub both: usize,
    pub predicted: usize,
    pub truth: usize,
    pub right: usize,
}

impl BinaryCount {
    pub fn add(&mut self, predicted: bool, truth: bool) {
        self.samples += 1;
        self.both += usize::from(predicted && truth);
        self.predicted += usize::from(predicted);
        self.truth += usize::from(truth);
        self.right += usize::from(predicted == truth);
    }

    /// Precision, recall and F1 of the positive class; 0 where there is nothing to divide by.
    pub fn f1(&self) -> F1 {
        F1::of(self.both, self.predicted, self.truth)
    }
}

/// Precision, recall and their harmonic mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct F1 {
    pub f1: f64,
    pub precision: f64,
    pub recall: f64,
}

impl F1 {
    fn of(common: usize, predicted: usize, truth: usize) -> Self {
        let (precision, recall) = (ratio(common, predicted), ratio(common, truth));
        let sum = precision + recall;
        let f1 = if sum == 0.0 { 0.0 } else { 2.0 * (precision * recall) / sum };
        Self { f1, precision, recall }
    }
}

/// A share; 0 of nothing.
pub(super) fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Whether two brands count as one: stripped and in lower case, their normalised indel similarity (rapidfuzz
/// `fuzz.ratio`) is above 90 of 100. Two empty brands are one.
pub fn brands_match(predicted: &str, truth: &str) -> bool {
    let [predicted, truth]: [Vec<char>; 2] =
        [predicted, truth].map(|brand| stripped(brand).to_lowercase().chars().collect());
    let total = predicted.len() + truth.len();
    let distance = total - 2 * common_subsequence(&predicted, &truth);
    // 100 (1 - distance / total) > 90, in whole numbers, because 90 itself is no match.
    total == 0 || 10 * distance < total
}

/// Length of the longest common subsequence: what insertions and deletions alone leave in place.
fn common_subsequence(one: &[char], other: &[char]) -> usize {
    let mut row = vec![0; other.len() + 1];
    for left in one {
        let mut diagonal = 0;
        for (at, right) in other.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if left == right { diagonal + 1 } else { above.max(row[at]) };
            diagonal = above;
        }
    }
    row[other.len()]
}

/// Without the white space around it, as Python understands white space: the four separators are some, too.
pub(super) fn stripped(text: &str) -> &str {
    text.trim_matches(|letter: char| letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_of_a_path_is_its_common_beginning() {
        let cases = [
            ("A > B > C", "A > B > C", (3, 3, 3)),
            ("A > B", "A > B > C", (2, 2, 3)),
            ("A > X > C", "A > B > C", (1, 3, 3)),
            ("X > B > C", "A > B > C", (0, 3, 3)),
            (" A  >  B ", "A > B", (2, 2, 2)),
            ("A>B", "A > B", (0, 1, 2)),
            ("", "A > B", (0, 1, 2)),
            ("a > B", "A > B", (0, 2, 2)),
        ];
        for (predicted, truth, (common, first, second)) in cases {
            let expected = PathScore { common, predicted: first, truth: second };
            assert_eq!(PathScore::of(predicted, truth), expected, "{predicted:?} {truth:?}");
        }
        assert_eq!(PathScore::missing("A > B > C"), PathScore { common: 0, predicted: 3, truth: 3 });
    }

    #[test]
    fn paths_are_summed_before_they_are_divided() {
        let mut count = PathCount::default();
        count.add(PathScore::of("A > B > C > D", "A > B > C > D"));
        count.add(PathScore::of("X", "A > B"));
        let F1 { f1, precision, recall } = count.f1();
        assert_eq!((precision, recall), (4.0 / 5.0, 4.0 / 6.0));
        assert!((f1 - 8.0 / 11.0).abs() < 1e-12);
        assert_eq!((count.samples, count.exact), (2, 1));
        assert_eq!(PathCount::default().f1(), F1 { f1: 0.0, precision: 0.0, recall: 0.0 });
    }

    /// The similarities are those of rapidfuzz 3.
    #[test]
    fn brands_match_above_a_similarity_of_ninety() {
        let cases = [
            ("", "", true),                            // 100
            ("a", "", false),                          // 0
            ("abcdefghij", "abcdefghik", false),       // 90.0
            ("abcdefghij", "abcdefghijkl", true),      // 90.9
            ("adidas", "adodas", false),               // 83.3
            ("kestrel & co", "kestrel and co", false), // 84.6
            ("Hartwell", " hartwel\n", true),          // 93.3
            ("ß", "ss", false),                        // 0
            ("montevira", "montevire", false),         // 88.9
            ("abcdefghijk", "bcdefghijka", true),      // 90.9
            ("sorrento blu", "Sorrento Blue", true),   // 96
            ("\u{1c}Acme\u{1f}", "acme", true),        // 100
        ];
        for (predicted, truth, expected) in cases {
            assert_eq!(brands_match(predicted, truth), expected, "{predicted:?} {truth:?}");
            assert_eq!(brands_match(truth, predicted), expected, "{truth:?} {predicted:?}");
        }
    }

    #[test]
    fn the_f1_of_a_field_is_that_of_its_positive_class() {
        let mut count = BinaryCount::default();
        for (predicted, truth) in [(true, true), (true, false), (false, true), (false, false), (true, true)] {
            count.add(predicted, truth);
        }
        let F1 { f1, precision, recall } = count.f1();
        assert_eq!((precision, recall, count.right), (2.0 / 3.0, 2.0 / 3.0, 3));
        assert!((f1 - 2.0 / 3.0).abs() < 1e-12);
    }
}
