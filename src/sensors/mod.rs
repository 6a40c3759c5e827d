//! Simulated sensors: persons who carry one each and move through their rooms all day.
//!
//! A [`Simulation`] is an iterator of [`Reading`]s, a pure function of its profile and
//! [`SimulationSettings`]: the same seed gives the same bytes. The demo and the tests run it in-process
//! (tests keep the readings for their oracle); [`driver`] sends readings to a broker at their pace.
//!
//! Two clocks: readings are *sent* at real times counted from the start (`after_us`, by the rate)
//! and *show* simulated times, which run `speed` times faster. Told the real time of its start, a
//! simulation never shows a later time than the real clock; once it has caught up, it runs on in
//! real time. So a fast replay of past days turns into live data, and nothing is ever from a future
//! in which it was not sent (save for the fault of that name).

pub mod driver;
pub mod faults;
pub mod recording;
pub mod routine;
pub mod units;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, NaiveDate, Timelike};
use chrono_tz::Tz;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use driver::{DeliveryCounters, Driver, Pace};
pub use faults::{Fault, Faults, MalformedPayload, Silence};
pub use routine::Routine;

use crate::error::{Error, Result};
use crate::time::{Micros, SECOND};
use routine::Stay;

/// A customer's sensors: one a topic, carried by one person each.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The customer.
    pub customer: String,
    /// The zone of its sensors' clocks.
    pub zone: Tz,
    /// The sensors' topics; a topic's number is its person's `part_id`.
    pub topics: Vec<String>,
    /// How its persons spend their days.
    pub routine: Routine,
    /// Whether records carry the topic's name as their key. The home's old sensors send none.
    pub keyed: bool,
}

impl Profile {
    /// Names of the built-in profiles.
    pub const NAMES: [&str; 2] = ["customer_a", "customer_b"];

    /// The built-in profile of this customer: the rest home `customer_a` or the office `customer_b`.
    pub fn named(customer: &str) -> Result<Self> {
        let (zone, topics, routine, keyed): (_, &[&str], _, _) = match customer {
            "customer_a" => {
                (chrono_tz::Europe::Helsinki, &["1084", "1085", "1086"], Routine::Home, false)
            }
            "customer_b" => (
                chrono_tz::Europe::Berlin,
                &["0001", "0002", "0003", "0004"],
                Routine::Office,
                true,
            ),
            _ => {
                return Err(Error::config(format!(
                    "there are no simulated sensors for '{customer}'"
                ))
                .hint(format!("the profiles are {}", Self::NAMES.join(", "))));
            }
        };
        let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
        Ok(Self { customer: customer.to_owned(), zone, topics, routine, keyed })
    }
}

/// How a simulation runs.
#[derive(Debug, Clone)]
pub struct SimulationSettings {
    /// Same seed, same readings.
    pub seed: u64,
    /// Readings per second of real time, over all sensors, before faults.
    pub rate: f64,
    /// How many times faster than real time the simulated clock runs.
    pub speed: f64,
    /// Where the simulated clock starts.
    pub start: Micros,
    /// The real time of the start: the simulated clock never passes the real one. `None`: it may.
    pub launched: Option<Micros>,
    /// How long it runs, in real time; `None`: for ever.
    pub duration_us: Option<Micros>,
    /// What goes wrong.
    pub faults: Faults,
}

impl Default for SimulationSettings {
    /// Seed 1, 100 readings a second in real time, from 2019-10-30T00:00:00Z, for ever, no faults.
    fn default() -> Self {
        let start = 1_572_393_600 * SECOND;
        Self {
            seed: 1,
            rate: 100.0,
            speed: 1.0,
            start,
            launched: None,
            duration_us: None,
            faults: Faults::default(),
        }
    }
}

/// One record to be sent, and the truth behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// When it is sent: real time after the start.
    pub after_us: Micros,
    /// Where it is sent.
    pub topic: Arc<str>,
    /// The record's key.
    pub key: Option<Bytes>,
    /// The record's value; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// The person.
    pub part_id: i64,
    /// The room that the person is in, in its first spelling.
    pub room: Arc<str>,
    /// The instant that its text was made from. In the hour that an autumn night has twice, the
    /// text says less than this: readers take the first.
    pub shown: Micros,
    /// What befell it. The copy of a duplicate has this fault, its original none.
    pub fault: Option<Fault>,
}

impl Reading {
    /// Whether it is a good row: one that the customer's schema decodes, late or not.
    pub fn is_good(&self) -> bool {
        !matches!(self.fault, Some(Fault::MalformedPayload(_) | Fault::Tombstone | Fault::Future))
    }
}

/// A person with a sensor.
struct Person {
    part_id: i64,
    topic: Arc<str>,
    key: Option<Bytes>,
    rank: u32,
    /// The day asked for last, for days are asked for in order.
    day: Option<(NaiveDate, Vec<Stay>)>,
}

/// The readings of a profile's sensors, in the order in which they are sent.
pub struct Simulation {
    settings: SimulationSettings,
    zone: Tz,
    routine: Routine,
    persons: Vec<Person>,
    tick: u64,
    rng: StdRng,
    ready: VecDeque<Reading>,
}

impl Simulation {
    /// Fails for a profile without topics, a topic that is no number, or a fault of a sensor that
    /// is not there.
    pub fn new(profile: &Profile, settings: SimulationSettings) -> Result<Self> {
        if profile.topics.is_empty() {
            return Err(Error::config("a simulation needs a sensor at least")
                .hint("name topics, as in --topics 1084,1085"));
        }
        let known = profile.topics.join(", ");
        for silence in &settings.faults.silences {
            if !profile.topics.contains(&silence.topic) {
                return Err(Error::config(format!(
                    "there is no sensor '{}' to be silent",
                    silence.topic
                ))
                .hint(format!("the sensors are {known}")));
            }
        }
        let persons = profile.topics.iter().enumerate().map(|(rank, topic)| {
            let part_id = topic.parse().map_err(|_| {
                Error::config(format!("the topic '{topic}' of a simulated sensor is no number"))
                    .hint("a sensor's topic is the number of its person, as in 1084")
            })?;
            let key = profile.keyed.then(|| Bytes::copy_from_slice(topic.as_bytes()));
            let rank = u32::try_from(rank).unwrap_or(u32::MAX);
            Ok(Person { part_id, topic: Arc::from(topic.as_str()), key, rank, day: None })
        });
        let persons = persons.collect::<Result<_>>()?;
        let rng = StdRng::seed_from_u64(settings.seed);
        Ok(Self {
            settings,
            zone: profile.zone,
            routine: profile.routine,
            persons,
            tick: 0,
            rng,
            ready: VecDeque::new(),
        })
    }

    /// The simulated clock, this long into the run.
    pub fn clock(&self, after_us: Micros) -> Micros {
        let simulated =
            self.settings.start.saturating_add((after_us as f64 * self.settings.speed) as Micros);
        match self.settings.launched {
            Some(launched) => simulated.min(launched + after_us),
            None => simulated,
        }
    }

    /// Makes the readings of the next tick: one, none (silent) or two (a duplicate).
    /// `false` when the run is over.
    fn step(&mut self) -> bool {
        let interval_us = SECOND as f64 / self.settings.rate;
        let jitter: f64 = self.rng.random_range(0.0..0.5);
        let after_us = ((self.tick as f64 + jitter) * interval_us) as Micros;
        if self.settings.duration_us.is_some_and(|duration| after_us >= duration) {
            return false;
        }
        let turn = usize::try_from(self.tick % self.persons.len() as u64).unwrap_or(0);
        self.tick += 1;
        let fault = self.settings.faults.draw(&mut self.rng);
        let now = self.clock(after_us);
        let real = self.settings.launched.map_or(now, |launched| launched + after_us);
        let (zone, routine, seed) = (self.zone, self.routine, self.settings.seed);
        let person = &mut self.persons[turn];
        let room = person.room(routine, seed, now, zone);
        let shown = faults::shift(fault, now, real, &mut self.rng);
        let payload = faults::payload(person.part_id, room, shown, zone, fault, &mut self.rng);
        if self.settings.faults.silent(&person.topic, after_us) {
            return true;
        }
        let first = (fault != Some(Fault::Duplicate)).then_some(fault).flatten();
        let reading = Reading {
            after_us,
            topic: person.topic.clone(),
            key: person.key.clone(),
            payload: payload.map(Bytes::from),
            part_id: person.part_id,
            room: Arc::from(room),
            shown,
            fault: first,
        };
        if fault == Some(Fault::Duplicate) {
            self.ready.push_back(reading.clone());
            self.ready.push_back(Reading { fault, ..reading });
        } else {
            self.ready.push_back(reading);
        }
        true
    }
}

impl Person {
    /// The room that the person is in at an instant.
    fn room(&mut self, routine: Routine, seed: u64, at: Micros, zone: Tz) -> &'static str {
        let local = DateTime::from_timestamp_micros(at)
            .unwrap_or_default()
            .with_timezone(&zone)
            .naive_local();
        let date = local.date();
        if self.day.as_ref().is_none_or(|(known, _)| *known != date) {
            self.day = Some((date, routine.day(seed, self.rank, date)));
        }
        let day = self.day.as_ref().map_or(&[][..], |(_, day)| day);
        routine::room_at(day, local.num_seconds_from_midnight())
    }
}

impl Iterator for Simulation {
    type Item = Reading;

    fn next(&mut self) -> Option<Reading> {
        while self.ready.is_empty() {
            if !self.step() {
                return None;
            }
        }
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{DAY, HOUR, MINUTE};
    use std::collections::{BTreeMap, BTreeSet};

    fn run(
        customer: &str,
        faults: &str,
        change: impl FnOnce(&mut SimulationSettings),
    ) -> Vec<Reading> {
        let mut settings = SimulationSettings {
            faults: faults.parse().unwrap(),
            duration_us: Some(MINUTE),
            ..SimulationSettings::default()
        };
        change(&mut settings);
        Simulation::new(&Profile::named(customer).unwrap(), settings).unwrap().collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let faults =
            "malformed=5%,duplicate=1%,late=2%,future=0.1%,disorder=3%,tombstone=1%,spelling=2%";
        assert_eq!(run("customer_a", faults, |_| {}), run("customer_a", faults, |_| {}));
        assert_ne!(run("customer_a", faults, |_| {}), run("customer_a", faults, |s| s.seed = 2));
    }

    #[test]
    fn good_events_are_ordered_and_written_as_the_sensors_do() {
        let readings = run("customer_b", "", |s| (s.speed, s.rate) = (3600.0, 50.0));
        assert_eq!(readings.len(), 3000);
        assert!(
            readings.windows(2).all(|w| w[0].after_us <= w[1].after_us && w[0].shown <= w[1].shown)
        );
        let span = readings[2999].shown - readings[0].shown;
        assert!((59 * HOUR..=60 * HOUR).contains(&span), "a minute at 3600x is 60 hours");
        for reading in &readings {
            assert_eq!(reading.key.as_deref(), Some(reading.topic.as_bytes()));
            let value: serde_json::Value =
                serde_json::from_slice(reading.payload.as_ref().unwrap()).unwrap();
            assert_eq!(value["part_id"], reading.topic.parse::<i64>().unwrap());
            assert_eq!(value["room"], *reading.room);
            let text = format!(
                "{} {} +0100",
                value["ts_date"].as_str().unwrap(),
                value["ts_time"].as_str().unwrap()
            );
            let time = DateTime::parse_from_str(&text, "%Y%m%d %H:%M:%S %z").unwrap();
            assert_eq!(time.timestamp_micros(), reading.shown / SECOND * SECOND);
        }
        assert!(readings.iter().map(|r| r.room.clone()).collect::<BTreeSet<_>>().len() >= 6);
    }

    #[test]
    fn faults_come_at_their_shares() {
        let readings = run(
            "customer_a",
            "malformed=5%,duplicate=1%,late=2%,future=0.1%,tombstone=0.5%",
            |s| s.rate = 2000.0,
        );
        let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
        let mut kinds = BTreeSet::new();
        for reading in &readings {
            let name = match reading.fault {
                Some(Fault::MalformedPayload(kind)) => {
                    kinds.insert(kind);
                    "malformed"
                }
                Some(Fault::Duplicate) => "duplicate",
                Some(Fault::Late) => "late",
                Some(Fault::Future) => "future",
                Some(Fault::Tombstone) => {
                    assert!(reading.payload.is_none());
                    "tombstone"
                }
                _ => "none",
            };
            *counts.entry(name).or_default() += 100.0 / 120_000.0;
        }
        for (name, percent) in [
            ("malformed", 5.0),
            ("duplicate", 1.0),
            ("late", 2.0),
            ("future", 0.1),
            ("tombstone", 0.5),
        ] {
            assert!((counts[name] - percent).abs() < 0.1 * percent + 0.03, "{counts:?}");
        }
        assert_eq!(kinds.len(), MalformedPayload::ALL.len());
        let copies = readings.windows(2).filter(|w| w[1].fault == Some(Fault::Duplicate));
        assert!(copies.into_iter().all(|w| w[0].payload == w[1].payload && w[0].fault.is_none()));
    }

    #[test]
    fn a_silent_sensor_says_nothing_and_the_others_go_on() {
        let readings = run("customer_a", "silent=1084@20s..40s", |_| {});
        let of = |topic: &str, from: i64, to: i64| {
            readings
                .iter()
                .filter(|r| {
                    &*r.topic == topic && (from * SECOND..to * SECOND).contains(&r.after_us)
                })
                .count()
        };
        assert_eq!(of("1084", 20, 40), 0);
        assert!(of("1084", 0, 20) > 600 && of("1084", 40, 60) > 600 && of("1085", 20, 40) > 600);
        let profile = Profile::named("customer_a").unwrap();
        let settings = SimulationSettings {
            faults: "silent=99@1s..2s".parse().unwrap(),
            ..SimulationSettings::default()
        };
        assert!(
            Simulation::new(&profile, settings)
                .err()
                .unwrap()
                .to_string()
                .contains("the sensors are 1084, 1085, 1086")
        );
    }

    #[test]
    fn the_simulated_clock_meets_the_real_one_and_stays_with_it() {
        let launched = 1_600_000_000 * SECOND;
        let readings = run("customer_a", "late=1%,future=1%", |s| {
            (s.speed, s.start, s.launched) = (3600.0, launched - DAY, Some(launched));
        });
        let ahead = |r: &Reading| r.shown - (launched + r.after_us);
        assert!(readings.iter().filter(|r| r.fault.is_none()).all(|r| ahead(r) <= 0));
        assert!(
            readings
                .iter()
                .filter(|r| r.fault.is_none() && r.after_us > 25 * SECOND)
                .all(|r| ahead(r) == 0)
        );
        assert!(
            readings
                .iter()
                .filter(|r| r.fault == Some(Fault::Future))
                .all(|r| ahead(r) >= 10 * MINUTE)
        );
    }
}
