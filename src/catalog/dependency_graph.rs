//! The names that a customer declares and the dependencies between its queries.
//!
//! Checks that every name is declared once, every relation in a query is declared, and the queries
//! form no cycle; then sorts the queries by dependency.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::query::Query;
use crate::catalog::sql_text::SqlText;
use crate::catalog::suggestion;
use crate::catalog::table_references::find_table_references;
use crate::error::{Error, Place};

/// The names that a customer's files declare, each with the place of its first declaration, or
/// `None` if that declaration is invalid.
#[derive(Debug, Default)]
pub(super) struct DeclaredNames {
    places: BTreeMap<String, Option<Place>>,
    /// A file could not be read, so any name may be missing; inputs are then not checked.
    pub incomplete: bool,
}

impl DeclaredNames {
    /// Declares a name and returns true. A second declaration adds an error and returns false.
    pub fn declare(&mut self, name: &str, place: &Place, errors: &mut Vec<Error>) -> bool {
        if let Some(Some(first)) = self.places.get(name) {
            errors.push(
                (Error::sql(format!("the name '{name}' is already used")).at(place.clone()))
                    .detail(format!("it is first declared at {}", format_place(first))),
            );
            return false;
        }
        self.places.insert(name.to_owned(), Some(place.clone()));
        true
    }

    /// Declares the names of a statement that does not parse, so that queries over them do not add
    /// further errors.
    pub fn declare_invalid(&mut self, names: Vec<String>) {
        for name in names {
            self.places.entry(name).or_default();
        }
    }

    /// Checks that no relation has the name of a table that history derives from another relation.
    /// `derived` yields the names, each with the relation that it derives from.
    pub fn check_derived(
        &self,
        derived: impl Iterator<Item = (String, String)>,
        errors: &mut Vec<Error>,
    ) {
        for (name, owner) in derived {
            if let Some(Some(place)) = self.places.get(&name) {
                errors.push(
                    (Error::sql(format!("the name '{name}' is already used")).at(place.clone()))
                        .hint(format!("{owner} uses it for a history table: choose another name")),
                );
            }
        }
    }
}

/// The place as `file:line:column`.
pub(super) fn format_place(place: &Place) -> String {
    format!("{}:{}:{}", place.file.display(), place.line, place.column)
}

/// Reports every relation in a query that is not declared.
pub(super) fn check_inputs(queries: &[Query], names: &DeclaredNames, errors: &mut Vec<Error>) {
    if names.incomplete {
        return;
    }
    for query in queries {
        let text = SqlText::new(&query.file, &query.text);
        let mut reported = BTreeSet::new();
        for reference in find_table_references(&query.select) {
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
                        "write '{last}': a query names its customer's relations without a qualifier"
                    )
                }
                _ => suggestion::suggest_or_list(&reference.name, "known here", others),
            };
            errors.push(text.error(reference.span, message).hint(hint));
        }
    }
}

/// Sorts the queries so that each follows those that it reads, otherwise keeping their order. Each
/// cycle is an error that names its queries; queries in a cycle or after one are left out.
pub(super) fn sort_by_dependency(queries: Vec<Query>, errors: &mut Vec<Error>) -> Vec<Query> {
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

/// Reports each cycle once. Every query of `waiting` is in a cycle or reads from one, so following
/// unsorted inputs from any of them leads into a cycle.
fn report_cycles(waiting: &[Query], errors: &mut Vec<Error>) {
    let find = |name: &str| waiting.iter().position(|query| query.name == name);
    let mut visited = vec![false; waiting.len()];
    for start in 0..waiting.len() {
        let mut path: Vec<usize> = Vec::new();
        let mut at = start;
        while !visited[at] {
            visited[at] = true;
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
            _ => format!("queries read each other in a cycle: {}", names.join(" -> ")),
        };
        let text = SqlText::new(&query.file, &query.text);
        let place = (find_table_references(&query.select).iter().find(|r| r.name == next))
            .map_or_else(|| query.place.clone(), |reference| text.place(reference.span));
        errors.push(Error::sql(message).at(place).hint("remove one of these reads"));
    }
}
