//! Typing mistakes.
//!
//! It knows words, not what they mean. Invariant: only words in lower case of five letters and more change, so that brands,
//! sizes and numbers stay as they are.

use rand::Rng;

/// The text with a mistake in about every twenty-fifth long word; three texts in five have none.
pub(super) fn with_typos(text: &str, random: &mut impl Rng) -> String {
    if random.random_bool(0.6) {
        return text.to_owned();
    }
    let mistaken = |word: &str, random: &mut _| {
        let is_typable = word.len() >= 5 && word.bytes().all(|letter| letter.is_ascii_lowercase());
        if is_typable && Rng::random_bool(random, 0.1) { typo(word, random) } else { word.to_owned() }
    };
    text.split(' ').map(|word| mistaken(word, random)).collect::<Vec<_>>().join(" ")
}

/// Two inner letters swapped, one left out, or one typed twice.
fn typo(word: &str, random: &mut impl Rng) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    let at = random.random_range(1..letters.len() - 2);
    match random.random_range(0..3) {
        0 => letters.swap(at, at + 1),
        1 => drop(letters.remove(at)),
        _ => letters.insert(at, letters[at]),
    }
    letters.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn names_and_numbers_have_no_typos_and_other_words_sometimes() {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        let text = "Genuine Fjellborg lamp of polished brass, 45 cm, wonderful condition";
        let typed: Vec<String> = (0..200).map(|_| with_typos(text, &mut random)).collect();
        assert!(typed.iter().all(|typed| typed.contains("Fjellborg") && typed.contains("45 cm")));
        let wrong = typed.iter().filter(|typed| *typed != text).count();
        assert!((5..80).contains(&wrong), "{wrong} of 200");
    }
}
