//! Hints for a misspelt word: "did you mean ...", or the list of known words.

use strsim::osa_distance;

/// The most names that [`suggest`] lists.
const MAX_LISTED: usize = 12;

/// The word of `known` with the smallest edit distance to `word`, ignoring case. `None` if the
/// smallest distance exceeds a third of the length of `word`. An edit inserts, deletes or replaces
/// a character, or swaps two neighbours (optimal string alignment distance).
pub(crate) fn find_nearest<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let word = word.to_lowercase();
    let limit = (word.chars().count() / 3).max(1);
    (known.into_iter())
        .map(|candidate| (osa_distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// A hint "did you mean 'x'?", or the list of all known words if none is close to `word`. `what` is
/// the plural noun for the words.
pub(crate) fn suggest_or_list<'a>(
    word: &str,
    what: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match find_nearest(word, known.iter().copied()) {
        Some(candidate) => format!("did you mean '{candidate}'?"),
        None if known.is_empty() => format!("no {what} are declared"),
        None => format!("{what}: {}", known.join(", ")),
    }
}

/// A hint "did you mean 'x'?", or the first known words if none is close to `word`. `None` if
/// `known` is empty.
pub(crate) fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut known: Vec<&str> = known.into_iter().collect();
    if let Some(candidate) = find_nearest(word, known.iter().copied()) {
        return Some(format!("did you mean '{candidate}'?"));
    }
    let more = known.len().saturating_sub(MAX_LISTED);
    known.truncate(MAX_LISTED);
    match (known.join(", "), more) {
        (_, _) if known.is_empty() => None,
        (list, 0) => Some(format!("available: {list}")),
        (list, more) => Some(format!("available: {list} and {more} more")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_for_misspelt_words() {
        let known = ["topics", "topic_pattern", "format", "start"];
        assert_eq!(find_nearest("topic", known), Some("topics"));
        assert_eq!(find_nearest("Tpoics", known), Some("topics"));
        assert_eq!(find_nearest("fromat", known), Some("format"));
        assert_eq!(find_nearest("whatever", known), None);
        assert_eq!(suggest_or_list("xyz", "options", ["a", "b"]), "options: a, b");
        assert_eq!(suggest("xyz", ["a", "b"]).as_deref(), Some("available: a, b"));
        assert_eq!(suggest("xyz", []), None);
        let many: Vec<String> = (0..14).map(|n| format!("column_{n}")).collect();
        let hint = suggest("xyz", many.iter().map(String::as_str)).unwrap();
        assert!(hint.ends_with("column_11 and 2 more"), "{hint}");
    }
}
