//! The topics of a stream, and the test whether two streams can read the same topic.

use std::collections::{HashMap, VecDeque};

use regex::Regex;
use regex_automata::hybrid::{LazyStateID, dfa};
use regex_automata::{Anchored, Input, MatchKind};

use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::SpannedText;
use crate::catalog::with_options::WithOptions;
use crate::error::Error;

/// The most bytes in the name of a topic, a limit of Kafka.
const MAX_TOPIC_LENGTH: usize = 249;

/// The most states of the product of two automata. Patterns beyond it are treated as disjoint; two
/// realistic patterns have a few dozen states.
const MAX_STATES: usize = 50_000;

/// The topics of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topics {
    /// These topics, in the order given.
    List(Vec<String>),
    /// Every existing and future topic whose whole name matches this regular expression.
    Pattern(String),
}

impl Topics {
    /// Whether the stream reads `topic`.
    pub fn matches(&self, topic: &str) -> bool {
        match self {
            Self::List(topics) => topics.iter().any(|listed| listed == topic),
            Self::Pattern(pattern) => {
                compile_pattern(pattern).is_ok_and(|regex| regex.is_match(topic))
            }
        }
    }

    /// The topics of `existing` that the stream reads, in the same order.
    pub fn select<'a>(&self, existing: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        let existing = existing.into_iter();
        match self {
            Self::List(topics) => existing.filter(|t| topics.iter().any(|l| l == t)).collect(),
            Self::Pattern(pattern) => match compile_pattern(pattern) {
                Ok(regex) => existing.filter(|topic| regex.is_match(topic)).collect(),
                Err(_) => Vec::new(),
            },
        }
    }

    /// The name of a topic that both can read; `None` if there is none.
    pub(super) fn find_overlap(&self, other: &Self) -> Option<String> {
        match (self, other) {
            (Self::Pattern(a), Self::Pattern(b)) => find_common_name(a, b),
            (Self::List(topics), readers) | (readers, Self::List(topics)) => {
                readers.select(topics.iter().map(String::as_str)).first().map(|t| (*t).to_owned())
            }
        }
    }
}

/// Compiles a pattern so that it matches whole names only.
fn compile_pattern(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&anchored(pattern))
}

fn anchored(pattern: &str) -> String {
    format!("^(?:{pattern})$")
}

/// Checks the options `topics` and `topic_pattern`, of which a stream has exactly one. Returns the
/// topics and the option.
pub(super) fn resolve_topics(
    name: &SpannedText,
    text: &SqlText,
    options: &WithOptions<'_>,
    errors: &mut Vec<Error>,
) -> Option<(Topics, SpannedText)> {
    match (options.get("topics"), options.get("topic_pattern")) {
        (Some(list), None) => {
            parse_topic_list(list, text, errors).map(|topics| (Topics::List(topics), list.clone()))
        }
        (None, Some(pattern)) => match compile_pattern(&pattern.value) {
            Ok(_) => Some((Topics::Pattern(pattern.value.clone()), pattern.clone())),
            Err(error) => {
                let report = error.to_string();
                let reason = report.lines().last().unwrap_or_default().replacen("error: ", "", 1);
                let message =
                    format!("cannot parse '{}' as a regular expression: {reason}", pattern.value);
                errors.push(text.error(pattern.span, message));
                None
            }
        },
        (Some(_), Some(pattern)) => {
            let message = format!("stream '{}' has both topics and topic_pattern", name.value);
            errors.push(text.error(pattern.span, message).hint("remove one of them"));
            None
        }
        (None, None) => {
            let message = format!("stream '{}' has no topics", name.value);
            errors.push(
                (text.error(name.span, message))
                    .hint("add WITH (topics = 'a,b') or WITH (topic_pattern = '...')"),
            );
            None
        }
    }
}

fn parse_topic_list(
    list: &SpannedText,
    text: &SqlText,
    errors: &mut Vec<Error>,
) -> Option<Vec<String>> {
    let mut topics: Vec<String> = Vec::new();
    for topic in list.value.split(',').map(str::trim) {
        let problem = if topics.iter().any(|other| other == topic) {
            Some(format!("topic '{topic}' is listed twice"))
        } else {
            topic_name_error(topic)
        };
        if let Some(problem) = problem {
            errors.push(text.error(list.span, problem));
            return None;
        }
        topics.push(topic.to_owned());
    }
    Some(topics)
}

/// An error message if `topic` is not a valid topic name in Kafka.
pub(super) fn topic_name_error(topic: &str) -> Option<String> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty() {
        Some("the name of a topic is empty".to_owned())
    } else if topic.len() > MAX_TOPIC_LENGTH
        || matches!(topic, "." | "..")
        || !topic.chars().all(is_valid)
    {
        Some(format!(
            "'{topic}' is not a valid topic: use at most 249 letters, digits, '.', '_' and '-'"
        ))
    } else {
        None
    }
}

/// A shortest name that both patterns match, found by a breadth-first search of the product of their
/// automata over the characters that topic names may contain.
fn find_common_name(a: &str, b: &str) -> Option<String> {
    const ALPHABET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._-";
    type Pair = (LazyStateID, LazyStateID);
    let (left, right) = (automaton(a)?, automaton(b)?);
    let (mut left_cache, mut right_cache) = (left.create_cache(), right.create_cache());
    let start = Input::new("").anchored(Anchored::Yes);
    let first = (
        left.start_state_forward(&mut left_cache, &start).ok()?,
        right.start_state_forward(&mut right_cache, &start).ok()?,
    );
    let mut predecessors: HashMap<Pair, Option<(Pair, u8)>> = HashMap::from([(first, None)]);
    let mut waiting = VecDeque::from([first]);
    while let Some(pair) = waiting.pop_front() {
        let is_match = left.next_eoi_state(&mut left_cache, pair.0).ok()?.is_match()
            && right.next_eoi_state(&mut right_cache, pair.1).ok()?.is_match();
        if is_match && predecessors.get(&pair).is_some_and(Option::is_some) {
            return Some(spell_name(&predecessors, pair));
        }
        for &letter in ALPHABET {
            let next = (
                left.next_state(&mut left_cache, pair.0, letter).ok()?,
                right.next_state(&mut right_cache, pair.1, letter).ok()?,
            );
            let can_match =
                !next.0.is_dead() && !next.1.is_dead() && !next.0.is_quit() && !next.1.is_quit();
            if can_match && !predecessors.contains_key(&next) {
                predecessors.insert(next, Some((pair, letter)));
                waiting.push_back(next);
            }
        }
        // Clearing the cache reassigns state ids, which invalidates `predecessors`.
        let cleared = left_cache.clear_count() + right_cache.clear_count() > 0;
        if cleared || predecessors.len() > MAX_STATES {
            return None;
        }
    }
    None
}

fn automaton(pattern: &str) -> Option<dfa::DFA> {
    let config = dfa::Config::new().match_kind(MatchKind::All).cache_capacity(64 << 20);
    dfa::Builder::new().configure(config).build(&anchored(pattern)).ok()
}

/// The name that leads to the state `end`.
fn spell_name<P: Copy + Eq + std::hash::Hash>(
    predecessors: &HashMap<P, Option<(P, u8)>>,
    end: P,
) -> String {
    let (mut name, mut at) = (Vec::new(), end);
    while let Some(Some((before, letter))) = predecessors.get(&at) {
        name.push(char::from(*letter));
        at = *before;
    }
    name.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(topics: &[&str]) -> Topics {
        Topics::List(topics.iter().map(|t| (*t).to_owned()).collect())
    }

    fn pattern(text: &str) -> Topics {
        Topics::Pattern(text.to_owned())
    }

    #[test]
    fn a_pattern_matches_whole_names() {
        let sensors = pattern("10[0-9][0-9]|hall");
        assert!(sensors.matches("1084") && sensors.matches("hall"));
        assert!(
            !sensors.matches("x1084") && !sensors.matches("10845") && !sensors.matches("hall2")
        );
        assert_eq!(sensors.select(["1", "1085", "hall"]), ["1085", "hall"]);
        assert_eq!(list(&["a", "b"]).select(["b", "c", "a"]), ["b", "a"]);
    }

    #[test]
    fn overlaps() {
        let overlap = |a: &Topics, b: &Topics| a.find_overlap(b);
        assert_eq!(overlap(&list(&["1", "2"]), &list(&["3", "2"])).as_deref(), Some("2"));
        assert_eq!(overlap(&list(&["1"]), &list(&["3"])), None);
        assert_eq!(overlap(&list(&["1084"]), &pattern("10.*")).as_deref(), Some("1084"));
        assert_eq!(overlap(&pattern("10.*"), &list(&["0001"])), None);
        assert_eq!(overlap(&pattern("10[0-9]+"), &pattern("[a-z0-9]{4}")).as_deref(), Some("1000"));
        assert_eq!(overlap(&pattern("10[0-9]{2}"), &pattern("00[0-9]{2}")), None);
        assert_eq!(overlap(&pattern("a|ab"), &pattern("ab|c")).as_deref(), Some("ab"));
        assert_eq!(overlap(&pattern("a b"), &pattern("a b")), None, "a topic name has no space");
        assert_eq!(overlap(&pattern("x?"), &pattern("y?")), None, "a topic name is not empty");
    }
}
