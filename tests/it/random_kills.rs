//! Kills the process with SIGKILL at random moments, twenty times, under load, against a real Kafka.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::kafka::Kafka;
use crate::verified_load::{Load, Verdict, seed};

const KILLS: usize = 20;

#[test]
fn twenty_random_kills_lose_and_duplicate_nothing() {
    let Some(kafka) = Kafka::require("kill") else { return };
    let seed = seed();
    let load = Load::new(kafka, "kill", seed, 150);
    let produced = load.during(|| {
        let mut random = StdRng::seed_from_u64(seed ^ 7);
        for kill in 0..KILLS {
            let mut running = load.start(&[]);
            std::thread::sleep(Duration::from_millis(random.random_range(200..3_500)));
            assert!(!running.ended(), "run {kill} ended by itself\n{}", running.stderr());
            running.kill();
        }
    });
    let verdict = load.verify(&produced);
    let Verdict { compared, lost, duplicated, .. } = &verdict;
    println!("{compared} rows compared, {lost} lost, {duplicated} duplicated");
    verdict.all_agree();
}
