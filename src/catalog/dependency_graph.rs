//! How the queries of one customer hang together: every relation known, no name twice, no cycle,
//! and an order in which each query comes after all that it reads.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::query::Query;
use crate::catalog::sql_text::SqlText;
use crate::catalog::suggestion;
use crate::catalog::table_references::references;
use crate::error::{Error, Place};

/// The names that a customer's files declare, each with its first place.
#[derive(Debug, Default)]
pub(super) struct Names {
    places: BTreeMap<String, Option<Place>>,
    /// A file could not be read at all, so any name may be missing.
    pub incomplete: bool,
}

impl Names {
    /// Declares a name. A second declaration is an error, and false.
    pub fn declare(&mut self, name: &str, place: &Place, errors: &mut Vec<Error>) -> bool {
        if let Some(Some(first)) = self.places.get(name) {
            errors.push(
                (Error::sql(format!("the name '{name}' is taken")).at(place.clone()))
                    .detail(format!("the first one is at {}", short(first))),
            );
            return false;
        }
        self.places.insert(name.to_owned(), Some(place.clone()));
        true
    }

    /// Notes the names of a statement that did not parse, so that their readers do not complain too.
    pub fn declare_broken(&mut self, names: Vec<String>) {
        for name in names {
            self.places.entry(name).or_default();
        }
    }

    /// History gives these names to tables of its own.
    pub fn check_derived(
        &self,
        derived: impl Iterator<Item = (String, String)>,
        errors: &mut Vec<Error>,
    ) {
        for (name, owner) in derived {
            if let Some(Some(place)) = self.places.get(&name) {
                errors.push(
                    (Error::sql(format!("the name '{name}' is taken")).at(place.clone()))
                        .hint(format!("{owner} has a table of that name: choose another")),
                );
            }
        }
    }
}

/// `file:line:column`, for texts.
pub(super) fn short(place: &Place) -> String {
    format!("{}:{}:{}", place.file.display(), place.line, place.column)
}

/// Reports every relation that nobody declares.
pub(super) fn check_inputs(queries: &[Query], names: &Names, errors: &mut Vec<Error>) {
    if names.incomplete {
        return;
    }
    for query in queries {
        let text = SqlText::new(&query.file, &query.text);
        let mut reported = BTreeSet::new();
        for reference in references(&query.select) {
            if names.places.contains_key(&reference.name)
                || !reported.insert(reference.name.clone())
            {
                continue;
            }
            let message = format!("there is no stream, table or query '{}'", reference.name);
            let others = names.places.keys().map(String::as_str).filter(|name| *name != query.name);
            let hint = match reference.name.rsplit_once('.') {
                Some((_, last)) if names.places.contains_key(last) => {
                    format!(
                        "write '{last}': a query sees its own customer's relations by their plain names"
                    )
                }
                _ => suggestion::suggest_or_list(&reference.name, "known here", others),
            };
            errors.push(text.error(reference.span, message).hint(hint));
        }
    }
}

/// Puts every query after those that it reads, otherwise keeping their order. Each cycle is an
/// error that names its members.
pub(super) fn in_order(queries: Vec<Query>, errors: &mut Vec<Error>) -> Vec<Query> {
    let mut waiting = queries;
    let mut ordered: Vec<Query> = Vec::with_capacity(waiting.len());
    loop {
        let pending: BTreeSet<String> = waiting.iter().map(|query| query.name.clone()).collect();
        let ready =
            waiting.iter().position(|q| !q.inputs.iter().any(|input| pending.contains(input)));
        match ready {
            Some(index) => ordered.push(waiting.remove(index)),
            None => break,
        }
    }
    report_cycles(&waiting, errors);
    ordered
}

/// `waiting` are in a cycle or read from one. Following any unfinished input must come round.
fn report_cycles(waiting: &[Query], errors: &mut Vec<Error>) {
    let find = |name: &str| waiting.iter().position(|query| query.name == name);
    let mut seen = vec![false; waiting.len()];
    for start in 0..waiting.len() {
        let mut path: Vec<usize> = Vec::new();
        let mut at = start;
        while !seen[at] {
            seen[at] = true;
            path.push(at);
            match waiting[at].inputs.iter().find_map(|input| find(input)) {
                Some(next) => at = next,
                None => break,
            }
        }
        let Some(first) = path.iter().position(|&index| index == at) else { continue };
        let cycle: Vec<&Query> = path.iter().skip(first).map(|&index| &waiting[index]).collect();
        let mut names: Vec<&str> = cycle.iter().map(|query| query.name.as_str()).collect();
        let Some(query) = cycle.first() else { continue };
        names.push(&query.name);
        let next = names.get(1).copied().unwrap_or_default();
        let message = match cycle.len() {
            1 => format!("query '{}' reads itself", query.name),
            _ => format!("queries read each other in a circle: {}", names.join(" -> ")),
        };
        let text = SqlText::new(&query.file, &query.text);
        let place = (references(&query.select).iter().find(|r| r.name == next))
            .map_or_else(|| query.place.clone(), |reference| text.place(reference.span));
        errors.push(Error::sql(message).at(place).hint("take one of these reads out"));
    }
}
