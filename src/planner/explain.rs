//! Renders plans as text: for people, for snapshots, and for fingerprints.
//!
//! Promises: [`stored_text`] and [`fingerprint`] return the same bytes for the same plan in every
//! version. A deployed pipeline compares them with what an older binary has stored, so nothing in
//! them may be reworded. Only [`explain`] may change.

use arrow::datatypes::Schema;
use datafusion::logical_expr::{Expr, LogicalPlan};
use sha2::{Digest, Sha256};

use crate::planner::split::{Split, StateSlot, Windowing};
use crate::planner::sql_display::plain;

/// The headings of a plan's parts.
struct Headings {
    batch_plan: &'static str,
    state: &'static str,
    no_state: &'static str,
    final_plan: &'static str,
    no_final_plan: &'static str,
    /// The first word of the line that stands for a state slot in the final plan.
    slot: &'static str,
}

/// What users read.
const EXPLAINED: Headings = Headings {
    batch_plan: "batch plan: runs on every batch",
    state: "window state",
    no_state: "window state: none",
    final_plan: "final plan: runs once per closed window",
    no_final_plan: "final plan: none",
    slot: "State",
};

/// What snapshots contain. These words must never change.
const STORED: Headings = Headings {
    batch_plan: "front: runs on every batch",
    state: "kept",
    no_state: "kept: nothing",
    final_plan: "closing plan: runs once per closed window",
    no_final_plan: "closing plan: none",
    slot: "Kept",
};

/// Returns the batch plan, the window state and the final plan as text for users.
pub(crate) fn explain(split: &Split, panes: bool) -> String {
    render(split, panes, &EXPLAINED)
}

/// Returns the same three parts as snapshots store them; see the module's promises.
pub(crate) fn stored_text(split: &Split, panes: bool) -> String {
    render(split, panes, &STORED)
}

fn render(split: &Split, panes: bool, headings: &Headings) -> String {
    let mut lines = Vec::new();
    if split.slots.is_empty() {
        lines.push(headings.batch_plan.to_owned());
        lines.extend(indented(&split.final_plan, headings));
        lines.push(headings.no_state.to_owned());
        lines.push(headings.no_final_plan.to_owned());
        return lines.into_iter().map(|line| line + "\n").collect();
    }
    let mut batch_plan_number = None;
    for slot in &split.slots {
        if batch_plan_number != Some(slot.batch_plan_number) {
            batch_plan_number = Some(slot.batch_plan_number);
            lines.push(headings.batch_plan.to_owned());
            lines.extend(indented(&slot.batch_plan, headings));
        }
    }
    let bucket = if panes { "per pane" } else { "per window" };
    lines.push(format!("{}: {bucket}", headings.state));
    for (number, slot) in split.slots.iter().enumerate() {
        lines.push(format!("  {number}: {}", describe(slot)));
    }
    lines.push(headings.final_plan.to_owned());
    lines.extend(indented(&split.final_plan, headings));
    lines.into_iter().map(|line| line + "\n").collect()
}

/// The lines of a logical plan. The plan's own name for a state slot is replaced by that of
/// `headings`.
fn indented(plan: &LogicalPlan, headings: &Headings) -> Vec<String> {
    let line = |line: &str| {
        let node = line.trim_start();
        let indent = &line[..line.len() - node.len()];
        match node.strip_prefix(EXPLAINED.slot).filter(|rest| is_slot_number(rest)) {
            Some(number) => format!("  {indent}{}{number}", headings.slot),
            None => format!("  {line}"),
        }
    };
    plain(&plan.display_indent().to_string()).lines().map(line).collect()
}

/// Whether `text` is a space and a number, as after the name of a state slot.
fn is_slot_number(text: &str) -> bool {
    text.strip_prefix(' ').is_some_and(|number| number.parse::<usize>().is_ok())
}

/// Describes the state in one line.
pub(crate) fn describe_state(split: &Split) -> String {
    match split.slots.as_slice() {
        [] => "nothing".to_owned(),
        slots => slots.iter().map(describe).collect::<Vec<_>>().join("; "),
    }
}

/// Describes one slot. The text is part of the fingerprint and must not change.
fn describe(slot: &StateSlot) -> String {
    let Some(partials) = &slot.partials else {
        let fields = slot.schema.fields().iter();
        let names: Vec<&str> = fields.map(|field| field.name().as_str()).collect();
        return format!("rows: {}", names.join(", "));
    };
    let aggregate = &partials.aggregate;
    let list = |exprs: &[Expr]| {
        let names: Vec<String> =
            exprs.iter().map(|expr| plain(&expr.schema_name().to_string())).collect();
        names.join(", ")
    };
    let keys = match aggregate.group_expr.len() {
        0 => "no keys".to_owned(),
        _ => format!("keys {}", list(&aggregate.group_expr)),
    };
    match aggregate.aggr_expr.len() {
        0 => format!("partials: {keys}"),
        _ => format!("partials: {}; {keys}", list(&aggregate.aggr_expr)),
    }
}

/// Returns two SHA-256 digests in hexadecimal, joined by `+`: one over the plan, its windows and
/// its schemas, and one over everything that determines the state.
///
/// `changelog_key`: the key of results that are a changelog. The columns and the key of such
/// results determine state too, because the results emitted before are part of it.
///
/// The digests cover `Debug` and `Display` texts of [`Windowing`], of window specs, of Arrow's
/// schemas and of DataFusion's plans; a change to any of them resets deployed queries.
pub(crate) fn fingerprint(
    plan: &LogicalPlan,
    split: &Split,
    windowing: &Windowing,
    output: &Schema,
    leaf: &Schema,
    changelog_key: Option<&[usize]>,
) -> String {
    let text = plan.display_indent_schema().to_string();
    let (windows, output, leaf) =
        (format!("{windowing:?}"), format!("{output:?}"), format!("{leaf:?}"));
    let whole = digest([&text, &windows, &output, &leaf].map(String::as_str));
    let mut state = vec![windows, leaf];
    for slot in &split.slots {
        state.push(slot.batch_plan.display_indent_schema().to_string());
        state.push(describe(slot));
        state.push(format!("{:?}", slot.schema.as_arrow()));
    }
    if let Some(key) = changelog_key {
        state.push(format!("{output} {key:?}"));
    }
    format!("{whole}+{}", digest(state.iter().map(String::as_str)))
}

fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}
