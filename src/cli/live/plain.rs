//! The live view as lines: one a second and customer, then what is new.

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use tokio::sync::watch;

use crate::cli::live::view::{HiddenQuery, View, ViewOptions, grouped, is_alert, local, short};
use crate::telemetry::StatusBoard;
use crate::telemetry::status::Status;

/// New results shown a second and customer.
const NEW: usize = 4;
/// Every so many seconds, why the oldest window is still open.
const WINDOW_EVERY: u64 = 10;

/// Prints until `stop` turns true or its sender is gone, or until nobody reads any more.
pub async fn run(board: &StatusBoard, hidden_query: HiddenQuery, mut stop: watch::Receiver<bool>) {
    let mut lines = Lines::new(hidden_query);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.tick().await;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        lines.view.observe(&board.all());
        if !print(&lines.next()) {
            return;
        }
    }
}

/// False: nobody reads any more.
fn print(lines: &[String]) -> bool {
    let mut out = std::io::stdout().lock();
    lines.iter().all(|line| writeln!(out, "{line}").is_ok()) && out.flush().is_ok()
}

/// Makes lines, and remembers which results it has shown.
struct Lines {
    view: View,
    shown: HashMap<(String, String), (u64, String)>,
    /// By customer: the newest dead letter shown.
    shown_dead: HashMap<String, String>,
    ticks: u64,
}

impl Lines {
    fn new(hidden_query: HiddenQuery) -> Self {
        Self {
            view: View::new(ViewOptions { notes: Vec::new(), hidden_query }),
            shown: HashMap::new(),
            shown_dead: HashMap::new(),
            ticks: 0,
        }
    }

    fn next(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let explain = self.ticks % WINDOW_EVERY == WINDOW_EVERY - 1;
        self.ticks += 1;
        for status in self.view.statuses.clone() {
            self.streams(&status, &mut lines);
            self.results(&status, &mut lines);
            self.dead_letter(&status, &mut lines);
            let oldest =
                status.queries.iter().filter_map(|query| Some((query, query.open.first()?)));
            if let Some((query, open)) =
                oldest.min_by_key(|(_, open)| open.window.end).filter(|_| explain)
            {
                lines.push(format!(
                    "  {} open until {}: {}",
                    query.name,
                    local(Some(open.window.end), &status.zone),
                    open.because
                ));
            }
        }
        lines
    }

    fn streams(&self, status: &Status, lines: &mut Vec<String>) {
        if let Some(error) = &status.failed {
            lines.push(format!("{} failed: {error}", status.customer));
        }
        for stream in &status.streams {
            let late: u64 = status
                .queries
                .iter()
                .filter(|query| query.input == stream.name)
                .map(|query| query.late)
                .sum();
            let open: u64 = status.queries.iter().map(|query| query.windows_open).sum();
            lines.push(format!(
                "{} {}: {:.0} events/s, {} events, watermark {}, lag {}, {} late (once for each query), {} dead letters, {} windows open",
                status.customer,
                stream.name,
                self.view.rate(&status.customer, &stream.name),
                grouped(stream.events),
                local(stream.watermark, &status.zone),
                stream.lag,
                grouped(late),
                grouped(status.dead_letters),
                open,
            ));
        }
    }

    /// The newest dead letter, if it is another than last time.
    fn dead_letter(&mut self, status: &Status, lines: &mut Vec<String>) {
        let Some(newest) = status.newest_dead.last() else { return };
        if self.shown_dead.get(&status.customer) != Some(newest) {
            lines.push(format!("  dead letter {newest}"));
            self.shown_dead.insert(status.customer.clone(), newest.clone());
        }
    }

    /// What came since the last time, alerts first, then those whose turn it has been least.
    fn results(&mut self, status: &Status, lines: &mut Vec<String>) {
        let mut new = Vec::new();
        for query in &status.queries {
            let Some(newest) = query.newest.last() else { continue };
            let key = (status.customer.clone(), query.name.clone());
            let (times, last) =
                self.shown.get(&key).map_or((0, ""), |(times, last)| (*times, last.as_str()));
            if let Some(because) = self.view.hidden_reason(query) {
                // Once; how many results there are is of no interest then.
                if times == 0 {
                    lines.push(format!("  {}: {because}", key.1));
                    self.shown.insert(key, (1, String::new()));
                }
            } else if last != newest {
                new.push((!is_alert(query), times, key, newest.clone()));
            }
        }
        new.sort();
        for (no_alert, times, key, newest) in new.into_iter().take(NEW) {
            let mark = if no_alert { " " } else { "!" };
            lines.push(format!(" {mark} {}: {}", key.1, short(&newest, &status.zone)));
            self.shown.insert(key, (times + 1, newest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::live::view::tests_support::{at, busy, options};
    use std::sync::Arc;

    #[test]
    fn a_line_a_stream_and_what_is_new_once() {
        let mut lines = Lines::new(options().hidden_query);
        lines.view.observe(&[Arc::new(busy(at(0), 0))]);
        let first = lines.next();
        assert!(first.contains(&"  latency: not true here".to_owned()), "{first:?}");
        let letter =
            "  dead letter 1084/0 at 17: cannot parse \"abc\" as BIGINT (column part_id, byte 12)";
        assert_eq!(first.last().unwrap(), letter);
        lines.view.observe(&[Arc::new(busy(at(1), 100))]);
        let expected = "customer_a positions: 100 events/s, 100 events, watermark 2019-10-30 14:06:05 EET, lag 3, 5 late (once for each query), 9 dead letters, 2 windows open";
        assert_eq!(lines.next(), [expected]);
        let mut changed = busy(at(2), 200);
        changed.queries[2].newest.push(r#"{"part_id":1085,"room":"hall"}"#.to_owned());
        lines.view.observe(&[Arc::new(changed)]);
        assert_eq!(lines.next()[1..], [" ! presence_alert: part_id=1085 room=hall"]);
        let all: Vec<String> = (0..10).flat_map(|_| lines.next()).collect();
        assert!(all.contains(
            &"  daily_visits open until 2019-10-31 00:00:00 EET: 1084/0 stands at 2019-10-30 14:06:05 EET; without further events it closes at 2026-11-24 12:00:00 EET".to_owned()
        ));
    }
}
