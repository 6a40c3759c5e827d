//! Draws the view: streams, open windows, newest results, dead letters, alerts.
//!
//! What is longer than a line goes on in the next one; what has no room is left out as a whole.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use crate::cli::live::streams;
use crate::cli::live::view::{View, grouped, is_alert, local, short};
use crate::cli::live::wrap::{fitting, wrapped};
use crate::telemetry::status::{OpenWindowStatus, QueryStatus, Status};

/// Open windows shown per customer.
const WINDOWS: usize = 4;
/// Alerts shown.
const ALERTS: usize = 5;
/// Results have this many lines at least before other panels get more.
const RESULTS: usize = 4;

/// Draws everything that fits; what matters most stands first.
pub fn draw(frame: &mut Frame<'_>, view: &View) {
    let area = frame.area();
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let head = head(view, width, (height / 8).max(3));
    let streams = streams::lines(view, width);
    let taken = head.len() + streams.len() + RESULTS + PANELS;
    let share = (height.saturating_sub(taken) / 4).max(2);
    let windows = or_dim(windows(view, width, share + 2), "no window is open");
    let dead = or_dim(fitting(dead_letters(view, width), share), "none");
    let alerts = or_dim(fitting(alerts(view, width), share), "none");
    let length = |lines: usize| Constraint::Length(u16::try_from(lines).unwrap_or(u16::MAX));
    let areas = Layout::vertical([
        length(head.len()),
        length(streams.len() + 1),
        length(windows.len() + 1),
        Constraint::Min(2),
        length(dead.len() + 1),
        length(alerts.len() + 1),
    ]);
    let [top, first, second, third, fourth, fifth] = areas.areas(area);
    frame.render_widget(Paragraph::new(head), top);
    panel(frame, first, "streams (late: once for each query that refused the row)", streams);
    panel(frame, second, "open windows: what the oldest wait for", windows);
    draw_results(frame, third, view);
    panel(frame, fourth, "dead letters, the newest first", dead);
    panel(frame, fifth, "alerts, the newest first", alerts);
}

/// Panels with a title, which takes a line.
const PANELS: usize = 5;

/// The program's name, and as many notes as fit in `budget` lines.
fn head(view: &View, width: usize, budget: usize) -> Vec<Line<'static>> {
    let mut items =
        vec![vec![Line::from(vec!["Millstream".bold(), "   q quits, arrows scroll".dim()])]];
    items.extend(view.notes.iter().map(|note| wrapped(Span::from(""), note, width)));
    fitting(items, budget)
}

/// The oldest open window of each query, those that close first in front, customers in turn. Where
/// not all have room, they say less each.
fn windows(view: &View, width: usize, budget: usize) -> Vec<Line<'static>> {
    let mut oldest: Vec<(usize, usize, &Status, &QueryStatus, &OpenWindowStatus)> = Vec::new();
    for (customer, status) in view.statuses.iter().enumerate() {
        let mut open: Vec<_> = (status.queries.iter())
            .filter(|query| view.hidden_reason(query).is_none())
            .filter_map(|query| Some((query, query.open.first()?)))
            .collect();
        open.sort_by_key(|(_, open)| open.window.end);
        let ranked = open.into_iter().take(WINDOWS).enumerate();
        oldest.extend(
            ranked.map(|(rank, (query, open))| (rank, customer, status.as_ref(), query, open)),
        );
    }
    oldest.sort_by_key(|(rank, customer, ..)| (*rank, *customer));
    let items = |brief: bool| -> Vec<Vec<Line<'static>>> {
        let item = |&(_, _, status, query, open): &_| window(status, query, open, brief, width);
        oldest.iter().map(item).collect()
    };
    let whole = items(false);
    let fits = whole.iter().map(Vec::len).sum::<usize>() <= budget;
    fitting(if fits { whole } else { items(true) }, budget)
}

fn window(
    status: &Status,
    query: &QueryStatus,
    open: &OpenWindowStatus,
    brief: bool,
    width: usize,
) -> Vec<Line<'static>> {
    let more = match query.windows_open.saturating_sub(1) {
        0 => String::new(),
        more => format!(" (+{more})"),
    };
    // What comes after the semicolon is when the clock alone would close it.
    let because = match open.because.split_once(';') {
        Some((first, _)) if brief => first,
        _ => open.because.as_str(),
    };
    let until = local(Some(open.window.end), &status.zone);
    wrapped(name(status, query).bold(), &format!(" until {until}{more}: {because}"), width)
}

fn name(status: &Status, query: &QueryStatus) -> Span<'static> {
    Span::from(format!("{}/{}", status.customer, query.name))
}

/// Customers in turn, the newest of each first.
fn dead_letters(view: &View, width: usize) -> Vec<Vec<Line<'static>>> {
    let mut letters: Vec<_> = (view.statuses.iter().enumerate())
        .flat_map(|(customer, status)| {
            let newest = status.newest_dead.iter().rev().enumerate();
            newest.map(move |(rank, letter)| (rank, customer, status, letter))
        })
        .collect();
    letters.sort_by_key(|(rank, customer, ..)| (*rank, *customer));
    let item = |(_, _, status, letter): (_, _, &std::sync::Arc<Status>, &String)| {
        wrapped(format!("{} ", status.customer).yellow(), letter, width)
    };
    letters.into_iter().map(item).collect()
}

fn alerts(view: &View, width: usize) -> Vec<Vec<Line<'static>>> {
    let queries: Vec<_> =
        view.queries().filter(|(_, query)| is_alert(query) && !query.newest.is_empty()).collect();
    let each = (ALERTS / queries.len().max(1)).max(1);
    let newest = queries.into_iter().flat_map(|(status, query)| {
        query.newest.iter().rev().take(each).map(move |result| {
            let text = format!(" {}", short(result, &status.zone));
            wrapped(name(status, query).red().bold(), &text, width)
        })
    });
    newest.take(ALERTS).collect()
}

fn draw_results(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let width = usize::from(area.width);
    let room = usize::from(area.height.saturating_sub(1));
    // All queries should be in sight before any of them says more.
    let lines = [2, 1, 0].map(|each| results(view, width, each));
    let lines = lines.into_iter().reduce(|more, less| if more.len() <= room { more } else { less });
    let lines = lines.unwrap_or_default();
    let last = u16::try_from(lines.len().saturating_sub(room)).unwrap_or(u16::MAX);
    let paragraph =
        Paragraph::new(lines).block(block("newest results")).scroll((view.scrolled.min(last), 0));
    frame.render_widget(paragraph, area);
}

/// Of each query, how much it gave and its newest results, `each` of them; with 0 only the newest
/// one, beside the query's name.
fn results(view: &View, width: usize, each: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for (status, query) in view.queries().filter(|(_, query)| !is_alert(query)) {
        let name = name(status, query).bold();
        let newest = query.newest.iter().rev().map(|result| short(result, &status.zone));
        match (view.hidden_reason(query), each) {
            (Some(because), _) => lines.extend(wrapped(name, &format!(": {because}"), width)),
            (None, 0) => {
                let newest = newest.take(1).map(|result| format!(" {result}")).collect::<String>();
                lines.extend(wrapped(name, &newest, width));
            }
            (None, _) => {
                let (sent, kept) = (grouped(query.emitted), grouped(query.state_rows));
                let counts = format!("  {sent} results, {kept} rows kept");
                lines.push(Line::from(vec![name, counts.dim()]));
                let each = newest.take(each);
                lines.extend(each.flat_map(|result| wrapped("  ".into(), &result, width)));
            }
        }
    }
    lines
}

fn panel(frame: &mut Frame<'_>, area: Rect, title: &'static str, lines: Vec<Line<'static>>) {
    frame.render_widget(Paragraph::new(lines).block(block(title)), area);
}

fn or_dim(mut lines: Vec<Line<'static>>, empty: &'static str) -> Vec<Line<'static>> {
    if lines.is_empty() {
        lines.push(Line::from(empty.dim()));
    }
    lines
}

/// A rule with the panel's name: frames on the sides would take room from what they frame.
fn block(title: &str) -> Block<'_> {
    let rule = Style::new().fg(Color::DarkGray);
    Block::new().borders(Borders::TOP).border_style(rule).title(title)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::live::view::tests_support::{at, busy, options, two};
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

    /// The screen as one text: where its lines end is of no interest.
    fn text(screen: &str) -> String {
        screen.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn everything_worth_knowing_is_on_the_screen() {
        let mut view = View::new(options());
        view.observe(&[Arc::new(busy(at(0), 1000))]);
        view.observe(&[Arc::new(busy(at(2), 3000))]);
        let screen = drawn(&view, 140, 40);
        for wanted in [
            "broker 127.0.0.1:1234",
            "1,000",
            "2019-10-30 14:06:05 EET",
            "idle 1086/0, paused 1085/0",
            "customer_a/daily_visits until 2019-10-31 00:00:00 EET (+1): 1084/0 stands at 2019-10-30 14:06:05 EET; without further events it closes at 2026-11-24 12:00:00 EET",
            "customer_a/occupancy 42 results, 4 rows kept",
            "room=hall persons=2",
            "customer_a/presence_alert event_time=2019-10-30 14:06:05 EET part_id=1084 room=hall",
            "customer_a 1084/0 at 17: cannot parse \"abc\" as BIGINT (column part_id, byte 12)",
            "late: once for each query that refused the row",
            "customer_a/latency: not true here",
        ] {
            assert!(text(&screen).contains(wanted), "'{wanted}' is not in\n{screen}");
        }
        assert!(!screen.contains("5000000"), "what misleads is left out\n{screen}");
    }

    /// Of two customers in the sizes that terminals have: no line ends in the middle of something.
    #[test]
    fn nothing_is_cut_off_at_the_edge() {
        let mut view = View::new(options());
        let statuses = || two(at(0), 1_234_567).map(Arc::new);
        view.observe(&statuses());
        for (width, height) in [(80, 24), (100, 30), (140, 40)] {
            let screen = drawn(&view, width, height);
            let all = text(&screen);
            for wanted in [
                "history .millstream/demo/20261124-120000 (from 10 s on)",
                "2019-10-30 14:06:05 EET",
                "2019-10-30 12:06:05 UTC",
                "idle 1086/0, paused 1085/0",
                "customer_a/daily_visits until 2019-10-31 00:00:00 EET (+1): 1084/0 stands at 2019-10-30 14:06:05 EET",
                "customer_b/half_day_visits until 2019-10-30 22:00:00 UTC (+1): 1084/0 stands at 2019-10-30 14:06:05 EET",
                "customer_a 1084/0 at 17: cannot parse \"abc\" as BIGINT (column part_id, byte 12)",
                "customer_a/presence_alert event_time=2019-10-30 14:06:05 EET part_id=1084 room=hall",
            ] {
                assert!(all.contains(wanted), "{width}x{height}: '{wanted}' is not in\n{screen}");
            }
        }
        // Scrolled to its end, the smallest screen has shown every result whole.
        let scrolled: String = (0..40)
            .map(|_| {
                view.scroll(1);
                text(&drawn(&view, 80, 24))
            })
            .collect();
        for status in statuses() {
            for query in status.queries.iter().filter(|query| !is_alert(query)) {
                assert!(scrolled.contains(&query.name), "{}", query.name);
            }
        }
        assert!(scrolled.contains(
            "customer_b/half_day_visits 2019-10-30 10:00 to 22:00 UTC part_id=1084 room=living room visits=17"
        ));
    }

    #[test]
    fn no_size_and_no_state_breaks_it() {
        let mut view = View::new(options());
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
        assert!(drawn(&view, 80, 24).contains("failed: fenced"));
    }
}
