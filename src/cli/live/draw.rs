//! Draws the view: streams, open windows, newest results, alerts.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table};

use super::view::{View, grouped, is_alert, local, short};
use crate::serve::status::{Status, StreamStatus};

/// Open windows shown per customer.
const WINDOWS: usize = 4;
/// Alerts shown.
const ALERTS: usize = 5;

/// Draws everything that fits; what matters most stands first.
pub fn draw(frame: &mut Frame<'_>, view: &View) {
    let streams: usize = view.statuses.iter().map(|status| status.streams.len().max(1)).sum();
    let windows = windows(view);
    let alerts = alerts(view);
    let length = |lines: usize| Constraint::Length(u16::try_from(lines).unwrap_or(u16::MAX));
    let areas = Layout::vertical([
        length(1 + view.notes.len()),
        length(streams + 3),
        length(windows.len().max(1) + 2),
        Constraint::Min(4),
        length(alerts.len().max(1) + 2),
    ]);
    let [head, top, middle, results, bottom] = areas.areas(frame.area());
    draw_head(frame, head, view);
    draw_streams(frame, top, view);
    panel(frame, middle, "open windows: what the oldest wait for", windows, "no window is open");
    draw_results(frame, results, view);
    panel(frame, bottom, "alerts", alerts, "none");
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let mut lines = vec![Line::from(vec!["Millstream".bold(), "   q quits, arrows scroll".dim()])];
    lines.extend(view.notes.iter().map(|note| Line::from(note.as_str())));
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_streams(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let heads = [
        "customer",
        "stream",
        "events/s",
        "events",
        "watermark",
        "lag",
        "late",
        "dead",
        "epoch",
        "",
    ];
    let rows = view.statuses.iter().flat_map(|status| {
        let mut rows: Vec<Row<'_>> =
            status.streams.iter().map(|stream| stream_row(view, status, stream)).collect();
        if rows.is_empty() {
            rows.push(Row::new([status.customer.clone(), "starting".to_owned()]));
        }
        rows
    });
    let widths = [
        Constraint::Length(12),
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(11),
        Constraint::Length(19),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Fill(1),
    ];
    let table = Table::new(rows, widths)
        .header(Row::new(heads).style(Style::new().dim()))
        .block(block("streams"));
    frame.render_widget(table, area);
}

fn stream_row<'a>(view: &View, status: &'a Status, stream: &'a StreamStatus) -> Row<'a> {
    let late: u64 = status
        .queries
        .iter()
        .filter(|query| query.input == stream.name)
        .map(|query| query.late)
        .sum();
    let number = |number: u64| Cell::from(Line::from(grouped(number)).alignment(Alignment::Right));
    let dead = match status.dead_letters {
        0 => number(0),
        letters => number(letters).style(Style::new().fg(Color::Yellow)),
    };
    Row::new([
        Cell::from(status.customer.as_str()),
        Cell::from(stream.name.as_str()),
        number(view.rate(&status.customer, &stream.name).round() as u64),
        number(stream.events),
        Cell::from(local(stream.watermark, &status.zone)),
        number(u64::try_from(stream.lag).unwrap_or(0)),
        number(late),
        dead,
        number(status.epoch),
        Cell::from(conditions(status, stream)),
    ])
}

/// What is out of the ordinary: a failure, silent or held-back partitions.
fn conditions(status: &Status, stream: &StreamStatus) -> Span<'static> {
    if let Some(error) = &status.failed {
        return Span::from(format!("failed: {}", error.lines().next().unwrap_or_default())).red();
    }
    let named = |word: &str, names: Vec<String>| {
        (!names.is_empty()).then(|| format!("{word} {}", names.join(" ")))
    };
    let of = |pick: fn(&crate::serve::status::PartitionStatus) -> bool| {
        stream
            .partitions
            .iter()
            .filter(|p| pick(p))
            .map(|p| format!("{}/{}", p.topic, p.partition))
            .collect::<Vec<_>>()
    };
    let parts = [named("idle", of(|p| p.idle)), named("paused", of(|p| p.paused))];
    Span::from(parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

/// The oldest open window of each query, those that close first in front.
fn windows(view: &View) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for status in &view.statuses {
        let mut oldest: Vec<_> =
            status.queries.iter().filter_map(|query| Some((query, query.open.first()?))).collect();
        oldest.sort_by_key(|(_, open)| open.window.end);
        for (query, open) in oldest.into_iter().take(WINDOWS) {
            let more = query.windows_open.saturating_sub(1);
            let more = if more > 0 { format!(" (+{more})") } else { String::new() };
            lines.push(Line::from(vec![
                format!("{}/{}", status.customer, query.name).bold(),
                format!(" until {}{more}: ", local(Some(open.window.end), &status.zone)).into(),
                open.because.clone().into(),
            ]));
        }
    }
    lines
}

fn alerts(view: &View) -> Vec<Line<'static>> {
    let queries: Vec<_> =
        view.queries().filter(|(_, query)| is_alert(query) && !query.newest.is_empty()).collect();
    let each = (ALERTS / queries.len().max(1)).max(1);
    let newest = queries.into_iter().flat_map(|(status, query)| {
        query.newest.iter().rev().take(each).map(move |result| {
            Line::from(vec![
                format!("{}/{} ", status.customer, query.name).red().bold(),
                short(result).into(),
            ])
        })
    });
    newest.take(ALERTS).collect()
}

fn draw_results(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let mut lines = Vec::new();
    for (status, query) in view.queries().filter(|(_, query)| !is_alert(query)) {
        lines.push(Line::from(vec![
            format!("{}/{}", status.customer, query.name).bold(),
            format!(
                "  {} results, {} rows kept",
                grouped(query.emitted),
                grouped(query.state_rows)
            )
            .dim(),
        ]));
        // One line a query until there is room for more: all of them should be in sight.
        let each = if usize::from(area.height) > view.queries().count() * 4 { 2 } else { 1 };
        lines.extend(
            query
                .newest
                .iter()
                .rev()
                .take(each)
                .map(|result| Line::from(format!("  {}", short(result)))),
        );
    }
    let last = u16::try_from(lines.len())
        .unwrap_or(u16::MAX)
        .saturating_sub(area.height.saturating_sub(2));
    let paragraph =
        Paragraph::new(lines).block(block("newest results")).scroll((view.scrolled.min(last), 0));
    frame.render_widget(paragraph, area);
}

fn panel(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &'static str,
    mut lines: Vec<Line<'static>>,
    empty: &'static str,
) {
    if lines.is_empty() {
        lines.push(Line::from(empty.dim()));
    }
    frame.render_widget(Paragraph::new(lines).block(block(title)), area);
}

fn block(title: &str) -> Block<'_> {
    Block::new().borders(Borders::ALL).border_style(Style::new().dim()).title(title)
}

#[cfg(test)]
mod tests {
    use super::super::view::tests_support::{at, busy};
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use std::sync::Arc;

    fn drawn(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let row =
            |y: u16| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>();
        (0..height).map(|y| row(y).trim_end().to_owned() + "\n").collect()
    }

    #[test]
    fn everything_worth_knowing_is_on_the_screen() {
        let mut view = View::new(vec!["broker 127.0.0.1:1234".to_owned()]);
        view.observe(&[Arc::new(busy(at(0), 1000))]);
        view.observe(&[Arc::new(busy(at(2), 3000))]);
        let screen = drawn(&view, 140, 30);
        for text in [
            "broker 127.0.0.1:1234",
            "1,000",
            "2019-10-30 14:06:05",
            "idle 1086/0",
            "paused 1085/0",
            "customer_a/daily_visits until 2019-10-31 00:00:00 (+1): 1084/0 stands at 14:06:05",
            "customer_a/occupancy  42 results, 4 rows kept",
            "room=hall persons=2",
            "customer_a/presence_alert part_id=1084 room=hall",
        ] {
            assert!(screen.contains(text), "'{text}' is not in\n{screen}");
        }
    }

    #[test]
    fn no_size_and_no_state_breaks_it() {
        let mut view = View::new(vec!["a note".to_owned()]);
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
            drawn(&view, width, height);
        }
        view.observe(&[
            Arc::new(Status { customer: "customer_b".to_owned(), ..Status::default() }),
            Arc::new(busy(at(0), 0)),
        ]);
        view.scroll(-3);
        view.scroll(1000);
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 100)] {
            drawn(&view, width, height);
        }
        assert!(drawn(&view, 80, 24).contains("starting"));
        let failed = Status { failed: Some("fenced\n hint".to_owned()), ..busy(at(1), 1) };
        view.observe(&[Arc::new(failed)]);
        assert!(drawn(&view, 160, 24).contains("failed: fenced"));
    }
}
