//! `millstream sensors`: simulated sensors, or a recording of real ones, against any broker.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, NaiveDate, NaiveDateTime, TimeZone};
use chrono_tz::Tz;

use crate::cli::kafka_args::KafkaArgs;
use crate::sensors::driver::{DeliveryCounters, Driver, Pace};
use crate::sensors::{Faults, Profile, Reading, Simulation, SimulationSettings, recording, units};
use crate::source::{Cluster, KafkaConfig, NewTopic};
use crate::time::{Clock, DAY, Micros, SECOND};
use crate::{Error, Kind, Result};

/// How far back a fast simulation begins that is to run for ever.
const FAST_FROM_US: Micros = 7 * DAY;
/// The time between two progress lines.
const REPORT: Duration = Duration::from_secs(5);

/// Simulate a customer's sensors.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whose sensors: customer_a (a rest home) or customer_b (an office)
    customer: String,
    #[command(flatten)]
    kafka: KafkaArgs,
    /// Events per second of real time, over all sensors
    #[arg(long, default_value = "100/s", value_parser = text(units::rate))]
    rate: f64,
    /// What goes wrong: shares of malformed, null, wrong-type, duplicate, late, future, disorder,
    /// unpadded, spelling, tombstone, and sensors that fall silent, as in
    /// malformed=5%,late=2%,silent=1084@30s..60s
    #[arg(long, default_value = "", value_parser = text(str::parse::<Faults>), hide_default_value = true)]
    faults: Faults,
    /// Seed of the random events; the same seed gives the same events
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to run, such as 60s (default: until Ctrl-C)
    #[arg(long = "for", value_name = "TIME", value_parser = text(units::span))]
    duration_us: Option<Micros>,
    /// How many times faster than real time the simulated clock runs. It never passes the real
    /// clock: once it has caught up it runs on in real time
    #[arg(long, default_value = "1x", value_parser = text(units::speed))]
    speed: f64,
    /// Where the simulated clock starts: a date or a date and time of the customer's zone, or an
    /// instant with an offset. Default: now; with --speed as far back as --for goes, or 7 days
    #[arg(long, value_name = "TIME")]
    start: Option<String>,
    /// Only these sensors
    #[arg(long, value_delimiter = ',', value_name = "TOPIC,...")]
    topics: Vec<String>,
    /// Send as fast as the broker accepts, instead of at the rate; needs --for or --from-csv
    #[arg(long)]
    unpaced: bool,
    /// Replay a recording with the columns part_id, ts_date, ts_time, room
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "faults", "start", "seed"])]
    from_csv: Option<PathBuf>,
    /// Create the topics that are missing, with one partition each
    #[arg(long)]
    create_topics: bool,
}

/// A parser for clap that shows the whole error, hint and all.
fn text<T>(
    parse: impl Fn(&str) -> Result<T> + Clone + Send + Sync,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync {
    move |text| parse(text).map_err(|error| error.to_string())
}

/// Sends until `--for` has passed, the recording is over, or a signal comes.
pub async fn run(args: Args) -> Result<ExitCode> {
    let mut profile = Profile::named(&args.customer)?;
    if !args.topics.is_empty() {
        profile.topics.clone_from(&args.topics);
    }
    let kafka = args.kafka.config()?;
    let (readings, topics) = readings(&args, &profile, Clock::system().now())?;
    prepare_topics(&kafka, &topics, args.create_topics).await?;
    let pace = if args.unpaced { Pace::Unpaced } else { Pace::RealTime };
    let stop =
        crate::cli::stop_signal::stop_signal_with_message("stopping: sending what is on its way");
    let driver = Driver::start(kafka.client(), readings, pace, stop)?;
    let sent = follow(&driver).await;
    // It has ended, so this does not block.
    driver.join()?;
    println!(
        "{} records, {} bytes sent to {}",
        sent.records(),
        sent.bytes(),
        topics.into_iter().collect::<Vec<_>>().join(", ")
    );
    Ok(ExitCode::SUCCESS)
}

type Readings = Box<dyn Iterator<Item = Reading> + Send>;

/// What is to be sent, and the topics that it goes to.
fn readings(args: &Args, profile: &Profile, now: Micros) -> Result<(Readings, BTreeSet<String>)> {
    if let Some(path) = &args.from_csv {
        let mut readings = recording::read_recording(path, profile, args.speed)?;
        if let Some(end_us) = args.duration_us {
            readings.retain(|reading| reading.after_us < end_us);
        }
        readings.retain(|reading| {
            args.topics.is_empty() || args.topics.iter().any(|topic| **topic == *reading.topic)
        });
        let topics = readings.iter().map(|reading| reading.topic.to_string()).collect();
        println!("{} lines of {} at {}x", readings.len(), path.display(), args.speed);
        return Ok((Box::new(readings.into_iter()), topics));
    }
    if args.unpaced && args.duration_us.is_none() {
        return Err(Error::config("--unpaced would send events without end").hint("set an amount with --for, which counts at the rate: --rate 1000/s --for 60s makes 60,000 events"));
    }
    let settings = settings(args, profile.zone, now)?;
    let simulation = Simulation::new(profile, settings.clone())?;
    let local = |at: Micros| {
        DateTime::from_timestamp_micros(at).unwrap_or_default().with_timezone(&profile.zone)
    };
    println!(
        "simulated time from {} at {}x, {} events/s over sensors {}",
        local(settings.start).format("%Y-%m-%d %H:%M:%S %Z"),
        args.speed,
        args.rate,
        profile.topics.join(", ")
    );
    let faults = settings.faults.to_string();
    if !faults.is_empty() {
        println!("faults {faults}");
    }
    Ok((Box::new(simulation), profile.topics.iter().cloned().collect()))
}

fn settings(args: &Args, zone: Tz, now: Micros) -> Result<SimulationSettings> {
    let fast_us = match args.duration_us {
        Some(duration_us) => (duration_us as f64 * (args.speed - 1.0)) as Micros,
        None => FAST_FROM_US,
    };
    let start = match &args.start {
        Some(text) => instant(text, zone, now)?,
        None if args.speed > 1.0 => now - fast_us / SECOND * SECOND,
        None => now,
    };
    Ok(SimulationSettings {
        seed: args.seed,
        rate: args.rate,
        speed: args.speed,
        start,
        launched: Some(now),
        duration_us: args.duration_us,
        faults: args.faults.clone(),
    })
}

/// An instant with an offset, or a date or a date and time of the zone; not after `now`.
fn instant(text: &str, zone: Tz, now: Micros) -> Result<Micros> {
    let local = |format: &str| NaiveDateTime::parse_from_str(text, format).ok();
    let at =
        DateTime::parse_from_rfc3339(text).map(|at| at.timestamp_micros()).ok().or_else(|| {
            let midnight = NaiveDate::parse_from_str(text, "%Y-%m-%d")
                .ok()
                .and_then(|date| date.and_hms_opt(0, 0, 0));
            let face = midnight
                .or_else(|| local("%Y-%m-%d %H:%M:%S"))
                .or_else(|| local("%Y-%m-%dT%H:%M:%S"))
                .or_else(|| local("%Y-%m-%d %H:%M"))?;
            zone.from_local_datetime(&face).earliest().map(|at| at.timestamp_micros())
        });
    match at {
        Some(at) if at <= now => Ok(at),
        Some(_) => {
            Err(Error::config(format!("the simulated clock cannot start in the future, at {text}")))
        }
        None => Err(Error::config(format!("cannot parse '{text}' as a start time"))
            .hint("write 2019-10-30, '2019-10-30 14:06:35' or 2019-10-30T14:06:35+02:00")),
    }
}

/// Creates missing topics, or names them in the error.
async fn prepare_topics(
    kafka: &KafkaConfig,
    topics: &BTreeSet<String>,
    create: bool,
) -> Result<()> {
    let kafka = kafka.clone();
    let wanted = topics.clone();
    let prepare = move || {
        let cluster = Cluster::connect(&kafka)?;
        let there: BTreeSet<String> = cluster.topics()?.into_iter().map(|(name, _)| name).collect();
        let missing: Vec<String> = wanted.difference(&there).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        if !create {
            return Err(Error::new(
                Kind::Config,
                format!("there is no topic {}", missing.join(", ")),
            )
            .hint("create them, or let --create-topics do it"));
        }
        let new: Vec<NewTopic> = missing
            .into_iter()
            .map(|name| NewTopic { name, partitions: 1, config: Vec::new() })
            .collect();
        cluster.create_topics(&new)
    };
    tokio::task::spawn_blocking(prepare)
        .await
        .map_err(|e| Error::internal("a thread panicked").because(e))?
}

/// Waits until the driver ends, and prints its progress.
async fn follow(driver: &Driver) -> Arc<DeliveryCounters> {
    let sent = driver.sent();
    let (mut reported, mut records) = (Instant::now(), 0);
    while !driver.is_finished() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if reported.elapsed() >= REPORT {
            let rate = (sent.records() - records) as f64 / reported.elapsed().as_secs_f64();
            println!("{} records sent, {rate:.0}/s", sent.records());
            (reported, records) = (Instant::now(), sent.records());
        }
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Whole {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, String> {
        Whole::try_parse_from(line.split(' '))
            .map(|whole| whole.args)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_line_of_the_readme_parses() {
        let args = parse("sensors customer_a --rate 100/s --faults malformed=5%,duplicate=1%,late=2%,future=0.1%,silent=1084@30s..60s --seed 7 --for 60s").unwrap();
        let now = 1_600_000_000 * SECOND;
        let settings = settings(&args, chrono_tz::Europe::Helsinki, now).unwrap();
        assert_eq!(
            (settings.start, settings.duration_us, settings.seed),
            (now, Some(60 * SECOND), 7)
        );
        let error = parse("sensors customer_a --faults malformed=5").unwrap_err();
        assert!(
            error.contains("cannot parse '5' as a percentage") && error.contains("as in 0.1%"),
            "{error}"
        );
        assert!(parse("sensors customer_a --from-csv a.csv --seed 3").is_err());
    }

    #[test]
    fn a_fast_clock_starts_so_that_it_meets_the_real_one_at_the_end() {
        let args = parse("sensors customer_a --speed 3600x --for 60s").unwrap();
        let now = 1_600_000_000 * SECOND;
        let settings = settings(&args, chrono_tz::Europe::Helsinki, now).unwrap();
        assert_eq!(settings.start + 3600 * 60 * SECOND, now + 60 * SECOND);
        let last = Simulation::new(&Profile::named("customer_a").unwrap(), settings)
            .unwrap()
            .last()
            .unwrap();
        assert!((now..now + 60 * SECOND).contains(&last.shown));
    }

    #[test]
    fn starts_are_of_the_zone_and_never_in_the_future() {
        let zone = chrono_tz::Europe::Helsinki;
        let now = 1_600_000_000 * SECOND;
        let expected =
            DateTime::parse_from_rfc3339("2019-10-29T22:00:00Z").unwrap().timestamp_micros();
        for text in
            ["2019-10-30", "2019-10-30 00:00", "2019-10-30T00:00:00", "2019-10-29T23:00:00+01:00"]
        {
            assert_eq!(instant(text, zone, now).unwrap(), expected, "{text}");
        }
        assert!(
            instant("2021-01-01", zone, now).unwrap_err().to_string().contains("in the future")
        );
        assert!(
            instant("yesterday", zone, now).unwrap_err().to_string().contains("write 2019-10-30")
        );
    }
}
