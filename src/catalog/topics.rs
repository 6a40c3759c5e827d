//! Which topics a stream reads, and whether two streams could read the same one.

use std::collections::{HashMap, VecDeque};

use regex::Regex;
use regex_automata::hybrid::{LazyStateID, dfa};
use regex_automata::{Anchored, Input, MatchKind};

use crate::catalog::sql_text::SqlText;
use crate::catalog::statement::Word;
use crate::catalog::with_options::WithOptions;
use crate::error::Error;

/// Kafka's limit for the name of a topic, in bytes.
const LONGEST_TOPIC: usize = 249;

/// Pairs of patterns whose automata have more states together than this are taken to be disjoint:
/// two real patterns have some dozens.
const MOST_STATES: usize = 50_000;

/// The topics of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topics {
    /// These, in the order given.
    List(Vec<String>),
    /// Every topic whose whole name matches this regular expression, now and later.
    Pattern(String),
}

impl Topics {
    /// Whether the stream reads `topic`.
    pub fn matches(&self, topic: &str) -> bool {
        match self {
            Self::List(topics) => topics.iter().any(|listed| listed == topic),
            Self::Pattern(pattern) => whole(pattern).is_ok_and(|regex| regex.is_match(topic)),
        }
    }

    /// Those of `existing` that the stream reads, in their order.
    pub fn select<'a>(&self, existing: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        let existing = existing.into_iter();
        match self {
            Self::List(topics) => existing.filter(|t| topics.iter().any(|l| l == t)).collect(),
            Self::Pattern(pattern) => match whole(pattern) {
                Ok(regex) => existing.filter(|topic| regex.is_match(topic)).collect(),
                Err(_) => Vec::new(),
            },
        }
    }

    /// A topic that both would read, if there can be one.
    pub(super) fn overlap(&self, other: &Self) -> Option<String> {
        match (self, other) {
            (Self::Pattern(a), Self::Pattern(b)) => common_word(a, b),
            (Self::List(topics), readers) | (readers, Self::List(topics)) => {
                readers.select(topics.iter().map(String::as_str)).first().map(|t| (*t).to_owned())
            }
        }
    }
}

/// A pattern always means the whole name.
fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&anchored(pattern))
}

fn anchored(pattern: &str) -> String {
    format!("^(?:{pattern})$")
}

/// Reads the options `topics` and `topic_pattern`, of which a stream has exactly one.
pub(super) fn declared(
    name: &Word,
    text: &SqlText,
    options: &WithOptions<'_>,
    errors: &mut Vec<Error>,
) -> Option<(Topics, Word)> {
    match (options.get("topics"), options.get("topic_pattern")) {
        (Some(list), None) => {
            list_of(list, text, errors).map(|topics| (Topics::List(topics), list.clone()))
        }
        (None, Some(pattern)) => match whole(&pattern.value) {
            Ok(_) => Some((Topics::Pattern(pattern.value.clone()), pattern.clone())),
            Err(error) => {
                let report = error.to_string();
                let reason = report.lines().last().unwrap_or_default().replacen("error: ", "", 1);
                let message = format!("'{}' is no regular expression: {reason}", pattern.value);
                errors.push(text.error(pattern.span, message));
                None
            }
        },
        (Some(_), Some(pattern)) => {
            let message = format!("stream '{}' has both topics and topic_pattern", name.value);
            errors.push(text.error(pattern.span, message).hint("keep one of them"));
            None
        }
        (None, None) => {
            let message = format!("stream '{}' names no topics", name.value);
            errors.push(
                (text.error(name.span, message))
                    .hint("add WITH (topics = 'a,b') or WITH (topic_pattern = '...')"),
            );
            None
        }
    }
}

fn list_of(list: &Word, text: &SqlText, errors: &mut Vec<Error>) -> Option<Vec<String>> {
    let mut topics: Vec<String> = Vec::new();
    for topic in list.value.split(',').map(str::trim) {
        let problem = if topics.iter().any(|other| other == topic) {
            Some(format!("topic '{topic}' is listed twice"))
        } else {
            topic_objection(topic)
        };
        if let Some(problem) = problem {
            errors.push(text.error(list.span, problem));
            return None;
        }
        topics.push(topic.to_owned());
    }
    Some(topics)
}

/// Why `topic` cannot be a topic of Kafka; `None` when it can.
pub(super) fn topic_objection(topic: &str) -> Option<String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic.is_empty() {
        Some("a topic has no name".to_owned())
    } else if topic.len() > LONGEST_TOPIC
        || matches!(topic, "." | "..")
        || !topic.chars().all(legal)
    {
        Some(format!("'{topic}' cannot be a topic: letters, digits, '.', '_' and '-', at most 249"))
    } else {
        None
    }
}

/// A shortest name that both patterns match: a breadth-first walk through the product of their
/// automata over the letters that topics may have.
fn common_word(a: &str, b: &str) -> Option<String> {
    const LETTERS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._-";
    type Pair = (LazyStateID, LazyStateID);
    let (left, right) = (automaton(a)?, automaton(b)?);
    let (mut left_cache, mut right_cache) = (left.create_cache(), right.create_cache());
    let start = Input::new("").anchored(Anchored::Yes);
    let first = (
        left.start_state_forward(&mut left_cache, &start).ok()?,
        right.start_state_forward(&mut right_cache, &start).ok()?,
    );
    let mut came_from: HashMap<Pair, Option<(Pair, u8)>> = HashMap::from([(first, None)]);
    let mut waiting = VecDeque::from([first]);
    while let Some(pair) = waiting.pop_front() {
        let ends = left.next_eoi_state(&mut left_cache, pair.0).ok()?.is_match()
            && right.next_eoi_state(&mut right_cache, pair.1).ok()?.is_match();
        if ends && came_from.get(&pair).is_some_and(Option::is_some) {
            return Some(spell(&came_from, pair));
        }
        for &letter in LETTERS {
            let next = (
                left.next_state(&mut left_cache, pair.0, letter).ok()?,
                right.next_state(&mut right_cache, pair.1, letter).ok()?,
            );
            let alive =
                !next.0.is_dead() && !next.1.is_dead() && !next.0.is_quit() && !next.1.is_quit();
            if alive && !came_from.contains_key(&next) {
                came_from.insert(next, Some((pair, letter)));
                waiting.push_back(next);
            }
        }
        // A cleared cache gives its ids to other states: what we noted is worth nothing then.
        let cleared = left_cache.clear_count() + right_cache.clear_count() > 0;
        if cleared || came_from.len() > MOST_STATES {
            return None;
        }
    }
    None
}

fn automaton(pattern: &str) -> Option<dfa::DFA> {
    let config = dfa::Config::new().match_kind(MatchKind::All).cache_capacity(64 << 20);
    dfa::Builder::new().configure(config).build(&anchored(pattern)).ok()
}

fn spell<P: Copy + Eq + std::hash::Hash>(
    came_from: &HashMap<P, Option<(P, u8)>>,
    end: P,
) -> String {
    let (mut letters, mut at) = (Vec::new(), end);
    while let Some(Some((before, letter))) = came_from.get(&at) {
        letters.push(char::from(*letter));
        at = *before;
    }
    letters.iter().rev().collect()
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
    fn a_pattern_means_the_whole_name() {
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
        let overlap = |a: &Topics, b: &Topics| a.overlap(b);
        assert_eq!(overlap(&list(&["1", "2"]), &list(&["3", "2"])).as_deref(), Some("2"));
        assert_eq!(overlap(&list(&["1"]), &list(&["3"])), None);
        assert_eq!(overlap(&list(&["1084"]), &pattern("10.*")).as_deref(), Some("1084"));
        assert_eq!(overlap(&pattern("10.*"), &list(&["0001"])), None);
        assert_eq!(overlap(&pattern("10[0-9]+"), &pattern("[a-z0-9]{4}")).as_deref(), Some("1000"));
        assert_eq!(overlap(&pattern("10[0-9]{2}"), &pattern("00[0-9]{2}")), None);
        assert_eq!(overlap(&pattern("a|ab"), &pattern("ab|c")).as_deref(), Some("ab"));
        assert_eq!(overlap(&pattern("a b"), &pattern("a b")), None, "no topic has a space");
        assert_eq!(overlap(&pattern("x?"), &pattern("y?")), None, "no topic has an empty name");
    }
}
