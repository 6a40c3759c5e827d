//! Functions that are unknown, or called with what they do not take.

use datafusion::execution::SessionStateDefaults;

use crate::catalog::parse_diagnostics::{
    HISTORY_WINDOW_HINT, query_files_only, suggest_window_function,
};
use crate::catalog::suggestion::find_nearest;
use crate::planner::errors::diagnosis::{Diagnosis, to_sentence};
use crate::planner::sql_display::plain;

/// What other databases call otherwise.
const ELSEWHERE: [(&str, &str); 8] = [
    ("isnull", "write coalesce(a, b)"),
    ("len", "write length(text)"),
    ("getdate", "write now()"),
    ("dateadd", "write time + INTERVAL '1' DAY"),
    ("datediff", "write date_part('epoch', later) - date_part('epoch', earlier)"),
    ("group_concat", "write string_agg(text, ',')"),
    ("listagg", "write string_agg(text, ',')"),
    ("percentile", "write approx_percentile_cont(0.95) WITHIN GROUP (ORDER BY x)"),
];

/// Signatures that a detail lists.
const SIGNATURES_SHOWN: usize = 6;

/// `Invalid function 'cuont'`
pub(super) fn unknown(name: &str) -> Diagnosis {
    let explained = Diagnosis::new(format!("there is no function '{name}'"));
    let lower = name.to_lowercase();
    if lower == "descriptor" {
        return Diagnosis::new(query_files_only(name)).word(name).hint(HISTORY_WINDOW_HINT);
    }
    if ["tumble", "hop"].contains(&lower.as_str()) {
        let upper = lower.to_uppercase();
        let explained = Diagnosis::new(format!("{upper} is allowed in FROM only")).word(name);
        return explained.hint(format!(
            "write FROM {upper}(TABLE t, DESCRIPTOR(time), ..) and GROUP BY window_start, window_end"
        ));
    }
    if window_functions().contains(&lower) {
        let explained = Diagnosis::new(format!("{lower}() needs an OVER clause")).word(name);
        return explained.hint(format!("write {lower}(..) OVER (PARTITION BY .. ORDER BY ..)"));
    }
    if let Some((_, hint)) = ELSEWHERE.iter().find(|(other, _)| *other == lower) {
        return explained.hint(*hint);
    }
    let known = all_functions();
    match find_nearest(&lower, known.iter().map(String::as_str)) {
        Some(near) => explained.hint(format!("did you mean '{near}'?")),
        None => explained.hint("millstream query 'SHOW FUNCTIONS' lists all functions"),
    }
}

/// `table function 'tumbel' not found`
pub(super) fn unknown_in_from(name: &str) -> Diagnosis {
    if ["tumble", "hop"].contains(&name.to_lowercase().as_str()) {
        return Diagnosis::new(query_files_only(name)).word(name).hint(HISTORY_WINDOW_HINT);
    }
    Diagnosis::new(format!("there is no table function '{name}'"))
        .hint(suggest_window_function(name))
}

fn window_functions() -> Vec<String> {
    let functions = SessionStateDefaults::default_window_functions();
    functions.iter().map(|function| function.name().to_owned()).collect()
}

fn all_functions() -> Vec<String> {
    let mut names = Vec::new();
    for function in SessionStateDefaults::default_aggregate_functions() {
        names.push(function.name().to_owned());
        names.extend_from_slice(function.aliases());
    }
    for function in SessionStateDefaults::default_scalar_functions() {
        names.push(function.name().to_owned());
        names.extend_from_slice(function.aliases());
    }
    names.extend(window_functions());
    names
}

/// "... No function matches the given name and argument types 'sum(Utf8)'. ... Candidate
/// functions: ...", whatever stands before it.
pub(super) fn mismatch(text: &str) -> Option<Diagnosis> {
    let (_, rest) = text.split_once("argument types '")?;
    let (call, rest) = rest.split_once("'.")?;
    let (name, got) = call.strip_suffix(')')?.split_once('(')?;
    let candidates = rest.split_once("Candidate functions:").map_or("", |(_, list)| list);
    let signatures: Vec<String> = (candidates.lines())
        .filter_map(|line| line.trim().strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')'))
        .filter(|arguments| !arguments.contains("UserDefined"))
        .map(argument_names)
        .collect();
    Some(wrong_arguments(name, &plain(got), &signatures))
}

/// "Function 'sum' failed to match any signature, errors: Error during planning: Function 'sum'
/// requires Decimal, but received String (DataType: Utf8).,...", and what else names a function and
/// what it got.
pub(super) fn without_candidates(text: &str) -> Option<Diagnosis> {
    let (_, rest) = text.split_once("unction '")?;
    let (name, rest) = rest.split_once('\'')?;
    if let Some((_, got)) = rest.split_once("(DataType: ") {
        let got = got.split(").").next().unwrap_or_default().trim_end_matches(')');
        let mut signatures: Vec<String> = (rest.split(" requires ").skip(1))
            .filter_map(|part| part.split_once(", but received"))
            .map(|(wanted, _)| argument_names(wanted))
            .collect();
        signatures.dedup();
        return Some(wrong_arguments(name, &plain(got), &signatures));
    }
    let (_, received) = rest.split_once("received ")?;
    let received = received.split(['.', ',']).next().unwrap_or_default();
    match received.parse::<usize>() {
        Ok(count) => {
            let numbers: Vec<&str> = (rest.split(" expects ").skip(1))
                .filter_map(|part| part.split(' ').next())
                .collect();
            Some(wrong_count(name, count, &numbers.join(" or ")))
        }
        Err(_) => Some(wrong_arguments(name, &to_sentence(received), &[])),
    }
}

fn wrong_arguments(name: &str, got: &str, signatures: &[String]) -> Diagnosis {
    let count = arity(got);
    let counts: Vec<usize> = signatures.iter().map(|arguments| arity(arguments)).collect();
    let is_open = signatures.iter().any(|arguments| arguments.contains(".."));
    if (!counts.is_empty() && !is_open && !counts.contains(&count)) || got.is_empty() {
        let explained = wrong_count(name, count, "");
        return with_signatures(explained, name, signatures);
    }
    let explained = Diagnosis::new(format!("{name}() does not take {got}")).word(name);
    let explained = Diagnosis { arguments: Some(got.to_owned()), ..explained };
    let explained = with_signatures(explained, name, signatures);
    let all = signatures.join(" ");
    let cast = |sql_type: &str| format!("CAST the argument, as in {name}(CAST(x AS {sql_type}))");
    if all.contains("DOUBLE") || all.contains("number") {
        explained.hint(cast("DOUBLE"))
    } else if all.contains("VARCHAR") {
        explained.hint(cast("VARCHAR"))
    } else {
        explained
    }
}

fn wrong_count(name: &str, count: usize, wanted: &str) -> Diagnosis {
    let arguments = if count == 1 { "argument" } else { "arguments" };
    let explained = Diagnosis::new(format!("{name}() does not take {count} {arguments}"));
    let explained = explained.word(name);
    if wanted.is_empty() { explained } else { explained.detail(format!("it takes {wanted}")) }
}

fn with_signatures(explained: Diagnosis, name: &str, signatures: &[String]) -> Diagnosis {
    let mut calls: Vec<String> = Vec::new();
    for arguments in signatures {
        let call = format!("{name}({arguments})");
        if !calls.contains(&call) {
            calls.push(call);
        }
    }
    calls.truncate(SIGNATURES_SHOWN);
    if calls.is_empty() {
        explained
    } else {
        explained.detail(format!("it takes {}", calls.join(", ")))
    }
}

fn arity(arguments: &str) -> usize {
    let mut depth = 0_usize;
    let commas = arguments.chars().filter(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && *c == ','
    });
    let commas = commas.count();
    if arguments.trim().is_empty() { 0 } else { commas + 1 }
}

/// A signature's arguments for people: `Numeric(2)` are two of a kind.
fn argument_names(arguments: &str) -> String {
    let many = arguments.strip_suffix(')').and_then(|inner| inner.split_once('('));
    if let Some((kind, Ok(count))) = many.map(|(kind, count)| (kind, count.parse::<usize>())) {
        return vec![argument_name(kind); count].join(", ");
    }
    arguments.split(", ").map(argument_name).collect::<Vec<_>>().join(", ")
}

fn argument_name(kind: &str) -> String {
    match kind {
        "Numeric" => "number".to_owned(),
        "Comparable" | "Any" => "value".to_owned(),
        "Float" => "DOUBLE".to_owned(),
        "Integer" => "BIGINT".to_owned(),
        "Decimal" | "Interval" | "Duration" | "Timestamp" => kind.to_uppercase(),
        other => plain(other),
    }
}
