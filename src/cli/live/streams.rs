//! The table of streams, with as many columns as there is room for, and under each stream what is
//! out of the ordinary.

use ratatui::style::Stylize;
use ratatui::text::{Line, Span};

use crate::cli::live::view::{View, grouped, local};
use crate::cli::live::wrap::wrapped;
use crate::telemetry::status::{PartitionStatus, Status, StreamStatus};

/// A column: its name, how long it stays when room is short (0: longest), and whether it holds
/// numbers.
const COLUMNS: [(&str, usize, bool); 9] = [
    ("customer", 0, false),
    ("stream", 1, false),
    ("events/s", 6, true),
    ("events", 7, true),
    ("watermark", 2, false),
    ("lag", 3, true),
    ("late", 5, true),
    ("dead", 4, true),
    ("epoch", 8, true),
];
/// The column of dead letters.
const DEAD: usize = 7;
/// Between two columns.
const GAP: &str = "  ";

type Cells = [String; COLUMNS.len()];

/// The table for a terminal of `width`.
pub fn lines(view: &View, width: usize) -> Vec<Line<'static>> {
    let rows: Vec<(Cells, Option<String>)> =
        view.statuses.iter().flat_map(|status| rows(view, status)).collect();
    let widths = COLUMNS.each_ref().map(|(name, ..)| name.chars().count());
    let widths = rows.iter().fold(widths, |widths, (cells, _)| {
        let mut cells = cells.iter();
        widths.map(|width| width.max(cells.next().map_or(0, |cell| cell.chars().count())))
    });
    let kept = kept(&widths, width);
    let heads = COLUMNS.each_ref().map(|(name, ..)| (*name).to_owned());
    let mut lines = vec![row(&heads, &widths, &kept).dim()];
    for (cells, condition) in rows {
        lines.push(row(&cells, &widths, &kept));
        lines.extend(condition.into_iter().flat_map(|text| wrapped("  ".into(), &text, width)));
    }
    lines
}

/// The columns that have room, in order; the first two in any case.
fn kept(widths: &[usize; COLUMNS.len()], width: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..COLUMNS.len()).collect();
    order.sort_by_key(|&column| COLUMNS[column].1);
    let mut used = 0;
    let mut kept: Vec<usize> = (order.into_iter().enumerate())
        .take_while(|&(rank, column)| {
            used += widths[column] + if rank > 0 { GAP.len() } else { 0 };
            rank < 2 || used <= width
        })
        .map(|(_, column)| column)
        .collect();
    kept.sort_unstable();
    kept
}

fn row(cells: &Cells, widths: &[usize; COLUMNS.len()], kept: &[usize]) -> Line<'static> {
    let mut spans: Vec<Span<'static>> = Vec::with_capacity(2 * kept.len());
    for &column in kept {
        let (cell, width) = (&cells[column], widths[column]);
        let padded = match COLUMNS[column].2 {
            true => format!("{cell:>width$}{GAP}"),
            false => format!("{cell:<width$}{GAP}"),
        };
        let quiet = column != DEAD || cell == "0" || cell == COLUMNS[DEAD].0;
        spans.push(if quiet { padded.into() } else { padded.yellow() });
    }
    Line::from(spans)
}

/// A row a stream, with what is out of the ordinary.
fn rows(view: &View, status: &Status) -> Vec<(Cells, Option<String>)> {
    if status.streams.is_empty() {
        let mut cells = Cells::default();
        cells[0].clone_from(&status.customer);
        cells[1] = "starting".to_owned();
        return vec![(cells, failure(status))];
    }
    (status.streams.iter())
        .map(|stream| (cells(view, status, stream), failure(status).or_else(|| conditions(stream))))
        .collect()
}

fn cells(view: &View, status: &Status, stream: &StreamStatus) -> Cells {
    let late: u64 = (status.queries.iter())
        .filter(|query| query.input == stream.name)
        .map(|query| query.late)
        .sum();
    [
        status.customer.clone(),
        stream.name.clone(),
        grouped(view.rate(&status.customer, &stream.name).round() as u64),
        grouped(stream.events),
        local(stream.watermark, &status.zone),
        grouped(u64::try_from(stream.lag).unwrap_or(0)),
        grouped(late),
        grouped(status.dead_letters),
        grouped(status.epoch),
    ]
}

fn failure(status: &Status) -> Option<String> {
    let error = status.failed.as_ref()?;
    Some(format!("failed: {}", error.lines().next().unwrap_or_default()))
}

/// Silent and held-back partitions.
fn conditions(stream: &StreamStatus) -> Option<String> {
    let named = |word: &str, pick: fn(&PartitionStatus) -> bool| {
        let partitions = stream.partitions.iter().filter(|p| pick(p));
        let names: Vec<_> = partitions.map(|p| format!("{}/{}", p.topic, p.partition)).collect();
        (!names.is_empty()).then(|| format!("{word} {}", names.join(" ")))
    };
    let parts = [named("idle", |p| p.idle), named("paused", |p| p.paused)];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_important_columns_go_first_and_the_rest_stays_in_order() {
        let widths = [10, 9, 8, 9, 23, 3, 4, 4, 5];
        assert_eq!(kept(&widths, 91), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(kept(&widths, 80), [0, 1, 2, 4, 5, 6, 7]);
        assert_eq!(kept(&widths, 60), [0, 1, 4, 5, 7]);
        assert_eq!(kept(&widths, 5), [0, 1]);
    }
}
