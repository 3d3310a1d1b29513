//! Which known word somebody meant who wrote an unknown one.
//!
//! It knows words only. Invariant: a suggestion is always one of the known words.

/// The end of a sentence about an unknown word: the nearest known one, else all of them.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let nearest = known.iter().map(|candidate| (distance(word, candidate), *candidate)).min();
    match nearest {
        // More than a third of the letters changed is another word, not a slip of the finger.
        Some((edits, candidate)) if edits <= (word.chars().count() / 3).max(1) => {
            format!("did you mean `{candidate}`?")
        }
        Some(_) => format!("known are {}", known.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")),
        None => "none are known here".to_owned(),
    }
}

/// Edits of one letter (insert, delete, replace, swap of neighbours) between two words, ignoring case: optimal string
/// alignment.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.to_lowercase().chars().collect();
    let right: Vec<char> = right.to_lowercase().chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for (row, letter) in left.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, other) in right.iter().enumerate() {
            let replaced = above[column] + usize::from(letter != other);
            let mut edits = replaced.min(above[column + 1] + 1).min(current[column] + 1);
            if row > 0 && column > 0 && *letter == right[column - 1] && left[row - 1] == *other {
                edits = edits.min(before[column - 1] + 1);
            }
            current.push(edits);
        }
        before = std::mem::replace(&mut above, current);
    }
    above[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_suggested_and_far_ones_are_listed() {
        let known = ["columns", "template", "model"];
        assert_eq!(did_you_mean("colunms", known), "did you mean `columns`?");
        assert_eq!(did_you_mean("Tmeplate", known), "did you mean `template`?");
        assert_eq!(did_you_mean("xyz", known), "known are `columns`, `template`, `model`");
    }
}
