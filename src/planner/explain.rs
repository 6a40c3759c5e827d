//! Plans as text: for people, and for the fingerprint.

use arrow::datatypes::Schema;
use datafusion::logical_expr::LogicalPlan;
use sha2::{Digest, Sha256};

use crate::planner::split::{Kept, Split, Windowing};
use crate::planner::sql_display::plain;

/// Front, kept and closing plan.
pub(crate) fn explain(cut: &Split, panes: bool) -> String {
    let mut text = String::new();
    if cut.slots.is_empty() {
        text.push_str("front: runs on every batch\n");
        text.push_str(&indented(&cut.closing));
        text.push_str("kept: nothing\nclosing plan: none\n");
        return text;
    }
    let mut front_number = None;
    for kept in &cut.slots {
        if front_number != Some(kept.front_number) {
            front_number = Some(kept.front_number);
            text.push_str("front: runs on every batch\n");
            text.push_str(&indented(&kept.front));
        }
    }
    text.push_str(if panes { "kept: per pane\n" } else { "kept: per window\n" });
    for (number, kept) in cut.slots.iter().enumerate() {
        text.push_str(&format!("  {number}: {}\n", describe(kept)));
    }
    text.push_str("closing plan: runs once per closed window\n");
    text.push_str(&indented(&cut.closing));
    text
}

fn indented(plan: &LogicalPlan) -> String {
    let plan = plain(&plan.display_indent().to_string());
    plan.lines().map(|line| format!("  {line}\n")).collect()
}

/// What is kept, in one line.
pub(crate) fn kept(cut: &Split) -> String {
    match cut.slots.as_slice() {
        [] => "nothing".to_owned(),
        slots => slots.iter().map(describe).collect::<Vec<_>>().join("; "),
    }
}

fn describe(kept: &Kept) -> String {
    let Some(partials) = &kept.partials else {
        let names: Vec<&str> =
            kept.schema.fields().iter().map(|field| field.name().as_str()).collect();
        return format!("rows: {}", names.join(", "));
    };
    let aggregate = &partials.aggregate;
    let list = |exprs: &[datafusion::logical_expr::Expr]| {
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

/// A fingerprint: a SHA-256 over plan, windows and schemas, `+`, and one over all of them that
/// decides what is kept; in hexadecimal. `said`: columns and key of results that are told as
/// changes to what was said before, which is kept too.
pub(crate) fn fingerprint(
    plan: &LogicalPlan,
    cut: &Split,
    windowing: &Windowing,
    output: &Schema,
    leaf: &Schema,
    said: Option<&[usize]>,
) -> String {
    let text = plan.display_indent_schema().to_string();
    let (windows, output, leaf) =
        (format!("{windowing:?}"), format!("{output:?}"), format!("{leaf:?}"));
    let whole = digest([&text, &windows, &output, &leaf].map(String::as_str));
    let mut kept = vec![windows, leaf];
    for slot in &cut.slots {
        kept.push(slot.front.display_indent_schema().to_string());
        kept.push(describe(slot));
        kept.push(format!("{:?}", slot.schema.as_arrow()));
    }
    if let Some(key) = said {
        kept.push(format!("{output} {key:?}"));
    }
    format!("{whole}+{}", digest(kept.iter().map(String::as_str)))
}

fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize())
}
