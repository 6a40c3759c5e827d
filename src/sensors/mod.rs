//! Simulated sensors: each person carries one sensor and moves between rooms during the day.
//!
//! A [`Simulation`] is an iterator of [`Reading`]s and a pure function of its [`Profile`] and
//! [`SimulationSettings`]: the same seed produces the same bytes. The demo and the tests run it
//! in-process; [`driver`] sends readings to a broker.
//!
//! There are two clocks. Readings are *sent* at real times relative to the start (`after_us`, from
//! the rate) and *carry* simulated times, which advance `speed` times faster. If the real time of
//! the start is set (`launched`), the simulated clock never passes the real one; once it has caught
//! up, it advances in real time. A fast replay of past days thus becomes live data, and no event
//! time lies in the future, except for the fault `future`.

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

/// The sensors of a customer: one per topic, each carried by one person.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The customer.
    pub customer: String,
    /// The time zone of the sensors' clocks.
    pub zone: Tz,
    /// The topics of the sensors; the number of a topic is the `part_id` of its person.
    pub topics: Vec<String>,
    /// The daily routine of the persons.
    pub routine: Routine,
    /// Whether records have the name of the topic as their key; otherwise they have no key.
    pub keyed: bool,
}

impl Profile {
    /// The names of the built-in profiles.
    pub const NAMES: [&str; 2] = ["customer_a", "customer_b"];

    /// The built-in profile of a customer: the rest home `customer_a` or the office `customer_b`.
    ///
    /// # Errors
    /// There is no such profile.
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

/// The parameters of a simulation.
#[derive(Debug, Clone)]
pub struct SimulationSettings {
    /// The seed of the random generator.
    pub seed: u64,
    /// Readings per second of real time, over all sensors, before faults.
    pub rate: f64,
    /// The speed of the simulated clock as a multiple of real time.
    pub speed: f64,
    /// The start of the simulated clock, in microseconds since the Unix epoch.
    pub start: Micros,
    /// The real time of the start, which limits the simulated clock to the real one; `None` is
    /// unlimited.
    pub launched: Option<Micros>,
    /// The length of the run in real time; `None` is unlimited.
    pub duration_us: Option<Micros>,
    /// The faults to inject.
    pub faults: Faults,
}

impl Default for SimulationSettings {
    /// Seed 1, 100 readings a second in real time, from 2019-10-30T00:00:00Z,
    /// unlimited, without faults.
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

/// One record to send, with the values that it was made from, for test oracles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The real time after the start at which it is sent, in microseconds.
    pub after_us: Micros,
    /// The topic that it is sent to.
    pub topic: Arc<str>,
    /// The key of the record.
    pub key: Option<Bytes>,
    /// The value of the record; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// The number of the person.
    pub part_id: i64,
    /// The room that the person is in, in its regular spelling.
    pub room: Arc<str>,
    /// The event time that the text of the value represents. In the hour that occurs twice at the end
    /// of daylight saving time, the text is ambiguous.
    pub shown: Micros,
    /// The fault of this record. Of a duplicate, only the copy has a fault.
    pub fault: Option<Fault>,
}

impl Reading {
    /// Whether the customer's schema decodes the record to a row, late or not.
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
    /// The most recently used day, cached because days are requested in order.
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
    /// Creates a simulation of the sensors of `profile`.
    ///
    /// # Errors
    /// The profile has no topics, a topic is not a number, or a fault names an unknown sensor.
    pub fn new(profile: &Profile, settings: SimulationSettings) -> Result<Self> {
        if profile.topics.is_empty() {
            return Err(Error::config("a simulation needs at least one sensor")
                .hint("list topics, as in --topics 1084,1085"));
        }
        let known = profile.topics.join(", ");
        for silence in &settings.faults.silences {
            if !profile.topics.contains(&silence.topic) {
                return Err(Error::config(format!(
                    "unknown sensor '{}' in the fault 'silent'",
                    silence.topic
                ))
                .hint(format!("the sensors are {known}")));
            }
        }
        let persons = profile.topics.iter().enumerate().map(|(rank, topic)| {
            let part_id = topic.parse().map_err(|_| {
                Error::config(format!("cannot parse the sensor topic '{topic}' as a number"))
                    .hint("the topic of a sensor is the number of its person, as in 1084")
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

    /// The simulated time at the real time `after_us` after the start.
    pub fn clock(&self, after_us: Micros) -> Micros {
        let simulated =
            self.settings.start.saturating_add((after_us as f64 * self.settings.speed) as Micros);
        match self.settings.launched {
            Some(launched) => simulated.min(launched + after_us),
            None => simulated,
        }
    }

    /// Adds the readings of the next tick to `ready`: one, none (a silent sensor) or two (a duplicate).
    /// Returns false at the end of the run.
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
        let shown = faults::shift_event_time(fault, now, real, &mut self.rng);
        let payload =
            faults::encode_payload(person.part_id, room, shown, zone, fault, &mut self.rng);
        if self.settings.faults.is_silent(&person.topic, after_us) {
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
    /// The room that the person is in at the instant `at`.
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
    fn the_same_seed_produces_the_same_bytes() {
        let faults =
            "malformed=5%,duplicate=1%,late=2%,future=0.1%,disorder=3%,tombstone=1%,spelling=2%";
        assert_eq!(run("customer_a", faults, |_| {}), run("customer_a", faults, |_| {}));
        assert_ne!(run("customer_a", faults, |_| {}), run("customer_a", faults, |s| s.seed = 2));
    }

    #[test]
    fn readings_without_faults_are_ordered_and_in_the_format_of_the_sensors() {
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
    fn faults_occur_at_their_shares() {
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
    fn a_silent_sensor_sends_nothing_and_the_others_continue() {
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
    fn the_simulated_clock_catches_up_with_the_real_clock() {
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
