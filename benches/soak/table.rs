//! The table of results: rates, times, lag, memory, and whether memory is flat.

use std::fmt::Write as _;
use std::time::Duration;

use crate::engine::Sample;
use crate::plan::{Measured, Plan};
use crate::{Killed, Overloaded};

/// The largest allowed ratio of memory between the thirds of a part.
const FLAT: f64 = 1.10;
/// Seconds at the beginning of a part in which memory is not counted, at maximum half of the part.
const SETTLING: f64 = 300.0;

pub fn line(table: &mut String, what: &str, value: &str) {
    writeln!(table, "| {what} | {value} |").unwrap();
}

pub fn rates(table: &mut String, measured: &Measured, plan: &Plan, killed: &Killed) {
    let top = measured.top as f64;
    let text = format!("{:.0} events/s", top);
    line(table, "top rate, from a topic that was filled before", &text);
    let mut text = format!("{:.0} events/s, {:.2} of the top rate", killed.rate, killed.rate / top);
    if killed.rate < plan.rate as f64 * 0.95 {
        write!(text, " (limited by the producer; {} were requested)", plan.rate).unwrap();
    }
    if let Some(cut) = &plan.cut {
        write!(text, " ({cut})").unwrap();
    }
    line(table, &format!("part 1, {:.0} s", killed.until - killed.from), &text);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn maximum(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

pub fn recoveries(table: &mut String, killed: &Killed, samples: &[Sample]) {
    let text = |times: &[f64]| {
        if times.is_empty() {
            return "never".to_owned();
        }
        let (middle, max, number) = (median(times.to_vec()), maximum(times), times.len());
        format!("{middle:.2} s median, {max:.2} s max of {number}")
    };
    line(table, "SIGKILL to the first new result", &text(&killed.back));
    let mut level = text(&killed.level);
    if killed.level.len() < killed.back.len() {
        write!(level, " (of {} kills)", killed.back.len()).unwrap();
    }
    line(table, "SIGKILL to less than a second of lag", &level);
    let lags: Vec<f64> = within(samples, killed.from, killed.until).filter_map(|s| s.lag).collect();
    let all = within(samples, killed.from, killed.until).count();
    let known = 100.0 * lags.len() as f64 / all as f64;
    let text = format!(
        "{:.0} median, {:.0} max; known in {known:.0} % of all seconds",
        median(lags.clone()),
        maximum(&lags)
    );
    line(table, "lag in part 1, records", &text);
}

fn within(samples: &[Sample], from: f64, until: f64) -> impl Iterator<Item = &Sample> {
    samples.iter().filter(move |s| s.at >= from && s.at < until)
}

/// The medians of the thirds of a series; `None` if it is too short.
fn thirds(values: &[f64]) -> Option<[f64; 3]> {
    let at = |third| third * values.len() / 3;
    let of = |third| median(values[at(third)..at(third + 1)].to_vec());
    (values.len() >= 3).then(|| [of(0), of(1), of(2)])
}

fn flat(table: &mut String, failures: &mut Vec<String>, what: &str, values: &[f64]) {
    let Some(thirds) = thirds(values) else {
        return line(table, what, &format!("{values:.0?} MB: too few to compare"));
    };
    let [a, b, c] = thirds;
    let spread = maximum(&thirds) / thirds.into_iter().fold(f64::MAX, f64::min);
    let differ = format!("{:.1} % apart", (spread - 1.0) * 100.0);
    let text = format!("{a:.0}, {b:.0}, {c:.0} MB: {differ}, of {}", values.len());
    line(table, what, &text);
    if spread > FLAT {
        failures.push(format!("{what}: {text}"));
    }
}

/// The time from which memory is counted.
fn counted_from(from: f64, until: f64) -> f64 {
    from + SETTLING.min((until - from) / 2.0)
}

/// Memory in part 1, of each process in the second half of its lifetime, so that all have the same age.
pub fn memory_at_one_age(
    table: &mut String,
    failures: &mut Vec<String>,
    killed: &Killed,
    samples: &[Sample],
    every: Duration,
) {
    let every = every.as_secs_f64();
    let from = counted_from(killed.from, killed.until);
    let samples: Vec<_> = within(samples, from, killed.until).collect();
    let processes = samples.iter().map(|s| s.process).max().unwrap_or(0);
    let of = |process| {
        let of_it = || samples.iter().filter(move |s| s.process == process);
        let whole = of_it().any(|s| s.age < every * 0.5) && of_it().any(|s| s.age > every * 0.9);
        let old = of_it().filter(|s| s.age >= every * 0.5 && s.age < every);
        whole.then(|| median(old.map(|s| s.resident_mb).collect()))
    };
    let medians: Vec<f64> = (0..=processes).filter_map(of).collect();
    flat(table, failures, "memory in part 1, thirds of the processes", &medians);
}

pub fn overload(
    table: &mut String,
    failures: &mut Vec<String>,
    part: &Overloaded,
    samples: &[Sample],
    top: u64,
) {
    let share = part.rate / top as f64;
    let mut text = format!("{:.0} events/s, {share:.2} of the top rate", part.rate);
    if share < 1.4 {
        text.push_str(" (limited by the producer)");
    }
    line(table, &format!("part 2, {:.0} s", part.until - part.from), &text);
    let lags: Vec<f64> = within(samples, part.from, part.until).filter_map(|s| s.lag).collect();
    let [a, b, c] = thirds(&lags).unwrap_or([f64::NAN; 3]);
    let text = format!("{a:.0}, {b:.0}, {c:.0}; {:.0} when the load ended", part.lag);
    line(table, "lag in part 2, thirds of the time", &text);
    if (part.lag - part.left).abs() > part.left * 0.1 + part.rate * 2.0 {
        let (lag, left) = (part.lag, part.left);
        failures.push(format!("/metrics reports a lag of {lag} records, but it is {left}"));
    }
    let values: Vec<f64> = within(samples, counted_from(part.from, part.until), part.until)
        .map(|s| s.resident_mb)
        .collect();
    flat(table, failures, "memory in part 2, thirds of the time", &values);
    let text = format!("{:.1} % of the process's CPU", part.commits);
    line(table, "commits, from the last start to the end of the load", &text);
    match part.caught_up {
        Some(time) => {
            let time = time.as_secs_f64();
            let text = format!("{time:.1} s for {:.0} records", part.left);
            line(table, "caught up without help", &text);
        }
        None => failures.push("the engine did not catch up".to_owned()),
    }
}
