//! The table: rates, times, lag, memory, and whether memory is flat.

use std::fmt::Write as _;
use std::time::Duration;

use crate::engine::Sample;
use crate::plan::{Measured, Plan};
use crate::{Killed, Overloaded};

/// How much memory may differ between the thirds of a part.
const FLAT: f64 = 1.10;
/// What a part may do with memory until it counts, if the part is not shorter than twice that.
const SETTLING: f64 = 300.0;

pub fn line(table: &mut String, what: &str, value: &str) {
    writeln!(table, "| {what} | {value} |").unwrap();
}

pub fn rates(table: &mut String, measured: &Measured, plan: &Plan, killed: &Killed) {
    let top = measured.top as f64;
    let said = format!("{:.0} events/s", top);
    line(table, "top rate, from a topic that was filled before", &said);
    let mut said = format!("{:.0} events/s, {:.2} of the top rate", killed.rate, killed.rate / top);
    if killed.rate < plan.rate as f64 * 0.95 {
        write!(said, " (the producer could do no more; {} were asked for)", plan.rate).unwrap();
    }
    if let Some(cut) = &plan.cut {
        write!(said, " ({cut})").unwrap();
    }
    line(table, &format!("part 1, {:.0} s", killed.until - killed.from), &said);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

pub fn recoveries(table: &mut String, killed: &Killed, samples: &[Sample]) {
    let said = |times: &[f64]| {
        if times.is_empty() {
            return "never".to_owned();
        }
        let (middle, most, number) = (median(times.to_vec()), most(times), times.len());
        format!("{middle:.2} s median, {most:.2} s at most of {number}")
    };
    line(table, "SIGKILL to the first new result", &said(&killed.back));
    let mut level = said(&killed.level);
    if killed.level.len() < killed.back.len() {
        write!(level, " (of {} kills)", killed.back.len()).unwrap();
    }
    line(table, "SIGKILL to less than a second of lag", &level);
    let lags: Vec<f64> = within(samples, killed.from, killed.until).filter_map(|s| s.lag).collect();
    let all = within(samples, killed.from, killed.until).count();
    let known = 100.0 * lags.len() as f64 / all as f64;
    let said = format!(
        "{:.0} median, {:.0} at most; known in {known:.0} % of all seconds",
        median(lags.clone()),
        most(&lags)
    );
    line(table, "lag in part 1, records", &said);
}

fn within(samples: &[Sample], from: f64, until: f64) -> impl Iterator<Item = &Sample> {
    samples.iter().filter(move |s| s.at >= from && s.at < until)
}

/// The medians of the thirds of a series; none of one that is too short.
fn thirds(values: &[f64]) -> Option<[f64; 3]> {
    let at = |third| third * values.len() / 3;
    let of = |third| median(values[at(third)..at(third + 1)].to_vec());
    (values.len() >= 3).then(|| [of(0), of(1), of(2)])
}

fn flat(table: &mut String, faults: &mut Vec<String>, what: &str, values: &[f64]) {
    let Some(thirds) = thirds(values) else {
        return line(table, what, &format!("{values:.0?} MB: too few to compare"));
    };
    let [a, b, c] = thirds;
    let spread = most(&thirds) / thirds.into_iter().fold(f64::MAX, f64::min);
    let differ = format!("{:.1} % apart", (spread - 1.0) * 100.0);
    let said = format!("{a:.0}, {b:.0}, {c:.0} MB: {differ}, of {}", values.len());
    line(table, what, &said);
    if spread > FLAT {
        faults.push(format!("{what}: {said}"));
    }
}

/// From when on memory counts.
fn settled(from: f64, until: f64) -> f64 {
    from + SETTLING.min((until - from) / 2.0)
}

/// Memory in part 1: of each process in the second half of its time, so that all are of one age.
pub fn memory_at_one_age(
    table: &mut String,
    faults: &mut Vec<String>,
    killed: &Killed,
    samples: &[Sample],
    every: Duration,
) {
    let every = every.as_secs_f64();
    let from = settled(killed.from, killed.until);
    let samples: Vec<_> = within(samples, from, killed.until).collect();
    let processes = samples.iter().map(|s| s.process).max().unwrap_or(0);
    let of = |process| {
        let of_it = || samples.iter().filter(move |s| s.process == process);
        let whole = of_it().any(|s| s.age < every * 0.5) && of_it().any(|s| s.age > every * 0.9);
        let old = of_it().filter(|s| s.age >= every * 0.5 && s.age < every);
        whole.then(|| median(old.map(|s| s.resident_mb).collect()))
    };
    let medians: Vec<f64> = (0..=processes).filter_map(of).collect();
    flat(table, faults, "memory in part 1, thirds of the processes", &medians);
}

pub fn overload(
    table: &mut String,
    faults: &mut Vec<String>,
    part: &Overloaded,
    samples: &[Sample],
    top: u64,
) {
    let share = part.rate / top as f64;
    let mut said = format!("{:.0} events/s, {share:.2} of the top rate", part.rate);
    if share < 1.4 {
        said.push_str(" (the producer could do no more)");
    }
    line(table, &format!("part 2, {:.0} s", part.until - part.from), &said);
    let lags: Vec<f64> = within(samples, part.from, part.until).filter_map(|s| s.lag).collect();
    let [a, b, c] = thirds(&lags).unwrap_or([f64::NAN; 3]);
    let said = format!("{a:.0}, {b:.0}, {c:.0}; {:.0} when the load ended", part.lag);
    line(table, "lag in part 2, thirds of the time", &said);
    if (part.lag - part.left).abs() > part.left * 0.1 + part.rate * 2.0 {
        let (lag, left) = (part.lag, part.left);
        faults.push(format!("/metrics says {lag} records of lag, {left} are left"));
    }
    let values: Vec<f64> = within(samples, settled(part.from, part.until), part.until)
        .map(|s| s.resident_mb)
        .collect();
    flat(table, faults, "memory in part 2, thirds of the time", &values);
    let said = format!("{:.1} % of the process's CPU", part.commits);
    line(table, "commits, from the last start to the end of the load", &said);
    match part.caught_up {
        Some(time) => {
            let time = time.as_secs_f64();
            let said = format!("{time:.1} s for {:.0} records", part.left);
            line(table, "caught up by itself", &said);
        }
        None => faults.push("it did not catch up".to_owned()),
    }
}
