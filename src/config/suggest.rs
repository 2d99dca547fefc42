//! "Did you mean": the known word nearest to what somebody typed.

/// The word of `known` that is nearest to `typed`, when one is near enough to be meant.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (typed.chars().count() / 3).max(1) + 1;
    known
        .into_iter()
        .map(|word| (distance(typed, word), word))
        .filter(|(far, _)| *far <= limit)
        .min_by_key(|(far, _)| *far)
        .map(|(_, word)| word)
}

/// Edits (insert, delete, replace) between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["volume=", "atime", "norepatime", "allow-open"];
        assert_eq!(nearest("atme", known), Some("atime"));
        assert_eq!(nearest("norepatim", known), Some("norepatime"));
        assert_eq!(nearest("allowopen", known), Some("allow-open"));
        assert_eq!(nearest("compress", known), None);
    }
}
