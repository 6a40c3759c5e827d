//! "Did you mean ...": the known word that is nearest to a misspelt one.

/// How many names a hint lists.
const NAMES_IN_A_HINT: usize = 12;

/// The nearest of `known` to `word`, if it is near enough to be meant.
pub(crate) fn find_nearest<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let word = word.to_lowercase();
    let limit = (word.chars().count() / 3).max(1);
    (known.into_iter())
        .map(|candidate| (distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// "did you mean 'x'?" or, when nothing is near, the whole list.
pub(crate) fn suggest_or_list<'a>(
    word: &str,
    what: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match find_nearest(word, known.iter().copied()) {
        Some(candidate) => format!("did you mean '{candidate}'?"),
        None if known.is_empty() => format!("there are no {what} here"),
        None => format!("{what}: {}", known.join(", ")),
    }
}

/// "did you mean 'x'?" or, when nothing is near, what there is; nothing where there is nothing.
pub(crate) fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut known: Vec<&str> = known.into_iter().collect();
    if let Some(candidate) = find_nearest(word, known.iter().copied()) {
        return Some(format!("did you mean '{candidate}'?"));
    }
    let more = known.len().saturating_sub(NAMES_IN_A_HINT);
    known.truncate(NAMES_IN_A_HINT);
    match (known.join(", "), more) {
        (_, _) if known.is_empty() => None,
        (list, 0) => Some(format!("there are: {list}")),
        (list, more) => Some(format!("there are: {list} and {more} more")),
    }
}

/// Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`: the optimal string
/// alignment distance.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words() {
        let known = ["topics", "topic_pattern", "format", "start"];
        assert_eq!(find_nearest("topic", known), Some("topics"));
        assert_eq!(find_nearest("Tpoics", known), Some("topics"));
        assert_eq!(find_nearest("fromat", known), Some("format"));
        assert_eq!(find_nearest("whatever", known), None);
        assert_eq!(suggest_or_list("xyz", "options", ["a", "b"]), "options: a, b");
        assert_eq!(suggest("xyz", ["a", "b"]).as_deref(), Some("there are: a, b"));
        assert_eq!(suggest("xyz", []), None);
        let many: Vec<String> = (0..14).map(|n| format!("column_{n}")).collect();
        let hint = suggest("xyz", many.iter().map(String::as_str)).unwrap();
        assert!(hint.ends_with("column_11 and 2 more"), "{hint}");
    }
}
