//! A network that breaks on purpose, between the engine and a Kafka of the test's own: in the end
//! results, dead letters and history are what a batch over everything that was produced says.

use std::time::{Duration, Instant};

use crate::own_broker::OwnBroker;
use crate::sample_project::LONG;
use crate::support::kafka::Kafka;
use crate::support::process::{self, Running};
use crate::support::proxy::{Done, EndTxn, INIT_PRODUCER_ID, Proxy, Weather};
use crate::verified_load::{Load, Produced, seed};

/// A customer under load whose Kafka stands behind a proxy.
struct Scene {
    seed: u64,
    reader: &'static str,
    proxy: Proxy,
    broker: OwnBroker,
    load: Load,
}

impl Scene {
    /// `None` where there is no Kafka to be had.
    fn set(test: &str, reader: &'static str) -> Option<Self> {
        Kafka::require(test)?;
        let seed = seed();
        let proxy = Proxy::start(seed);
        let broker = OwnBroker::start_behind(proxy.address());
        proxy.lead_to(broker.proxied());
        let load = Load::new(broker.kafka.clone(), "net", seed, 300);
        Some(Self { seed, reader, proxy, broker, load })
    }

    fn run(&self, more: &[&str]) -> Running {
        let reader = format!("millstream.reader={}", self.reader);
        let mut all = vec!["run", "--brokers", self.proxy.address(), "--create-topics"];
        all.extend(["--snapshot-interval", "2 s", "--check-replays", "--kafka", &reader]);
        all.extend(["--log", "info,millstream::commit=debug"]);
        all.extend(more);
        process::start(self.load.project.path(), &all)
    }

    /// Load while `trouble` makes trouble for the running engine; then all is looked at.
    fn play(&self, trouble: impl Fn(&mut Running)) {
        let produced = self.load.during(|| {
            let mut running = self.run(&[]);
            running.until("the pipeline", LONG, |output| output.contains("a partition joins"));
            trouble(&mut running);
            self.proxy.weather(Weather::default());
            std::thread::sleep(Duration::from_secs(2));
            assert!(!running.ended(), "it ended by itself\n{}", running.stderr());
            running.signal("TERM");
            let finished = running.wait(LONG);
            println!("{}", finished.stderr);
            assert!(finished.status.success(), "it failed");
        });
        self.agrees(&produced);
    }

    fn agrees(&self, produced: &Produced) {
        let done = self.proxy.done();
        println!(
            "{} reader, seed {}: {} events; {} cuts, {} delays, {} EndTxn meddled with",
            self.reader,
            self.seed,
            produced.count(),
            done.cuts,
            done.delays,
            done.end_txns
        );
        self.load.prove(produced).all_agree();
    }
}

fn seconds() -> Duration {
    let wanted = std::env::var("MILLSTREAM_NETWORK_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(wanted.unwrap_or(15))
}

fn cut_and_delayed(reader: &'static str) {
    let Some(scene) = Scene::set("cut and delayed", reader) else { return };
    scene.play(|running| {
        let (cut, delay) = (0.01, (0.1, Duration::from_millis(50)));
        scene.proxy.weather(Weather { cut, delay, end_txn: None });
        std::thread::sleep(seconds());
        assert!(!running.ended(), "it ended by itself\n{}", running.stderr());
    });
    assert!(scene.proxy.done().cuts > 5, "{:?}", scene.proxy.done());
}

#[test]
fn cut_at_random_nothing_is_lost_with_the_native_reader() {
    cut_and_delayed("native");
}

#[test]
fn cut_at_random_nothing_is_lost_with_librdkafka() {
    cut_and_delayed("rdkafka");
}

/// How many producers have begun.
fn producers(done: &Done) -> u64 {
    done.requests.get(&INIT_PRODUCER_ID).copied().unwrap_or(0)
}

/// EndTxn is meddled with until that has happened `times` times.
fn meddled(test: &str, reader: &'static str, fate: EndTxn, times: u64) {
    let Some(scene) = Scene::set(test, reader) else { return };
    scene.play(|running| {
        let before = scene.proxy.done();
        let deadline = Instant::now() + LONG;
        for time in 1..=times {
            let end_txn = Some((fate, 1.0));
            scene.proxy.weather(Weather { end_txn, ..Weather::default() });
            while scene.proxy.done().end_txns < before.end_txns + time {
                assert!(Instant::now() < deadline, "no commit\n{}", running.stderr());
                std::thread::sleep(Duration::from_millis(2));
            }
            scene.proxy.weather(Weather::default());
            // A new producer, always, whatever librdkafka may say of the old one.
            while producers(&scene.proxy.done()) < producers(&before) + time {
                assert!(Instant::now() < deadline, "the producer stays\n{}", running.stderr());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        assert!(!running.ended(), "it ended by itself\n{}", running.stderr());
        // All answers are lost until the outcome is indefinite: then the log is asked.
        scene.proxy.weather(Weather { end_txn: Some((fate, 1.0)), ..Weather::default() });
        let before = producers(&scene.proxy.done());
        let deadline = Instant::now() + LONG;
        while producers(&scene.proxy.done()) == before {
            assert!(Instant::now() < deadline, "the producer stays\n{}", running.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
        scene.proxy.weather(Weather::default());
        running.until("a look into the log", LONG, |output| output.contains("the log has epoch"));
    });
}

#[test]
fn a_lost_answer_to_a_commit_is_looked_up_and_not_guessed() {
    meddled("a lost answer", "native", EndTxn::DropAnswer, 5);
}

#[test]
fn a_commit_without_an_answer_is_looked_up_and_not_guessed() {
    meddled("no answer", "rdkafka", EndTxn::Silence, 0);
}

#[test]
fn a_commit_that_arrives_late_ends_no_later_transaction() {
    let Some(scene) = Scene::set("a late commit", "native") else { return };
    scene.play(|running| {
        let began = Instant::now();
        while began.elapsed() < seconds() {
            let end_txn = Some((EndTxn::Late(Duration::from_millis(700)), 0.3));
            scene.proxy.weather(Weather { end_txn, ..Weather::default() });
            std::thread::sleep(Duration::from_millis(500));
            scene.proxy.weather(Weather::default());
            std::thread::sleep(Duration::from_millis(1_500));
        }
        assert!(!running.ended(), "it ended by itself\n{}", running.stderr());
    });
    assert!(scene.proxy.done().end_txns > 0, "nothing was late");
}

#[test]
fn a_broker_that_is_restarted_and_killed_loses_nothing() {
    let Some(scene) = Scene::set("a restarted broker", "native") else { return };
    // The load's own producer would give up on a broker that is away: it comes first.
    let produced = scene.load.during(|| std::thread::sleep(Duration::from_secs(12)));
    let mut running = scene.run(&["--commit-interval", "100 ms"]);
    running.until("the pipeline", LONG, |output| output.contains("a partition joins"));
    for round in 0..3 {
        // In a transaction: the answer to its end is held back while the broker goes down.
        let before = scene.proxy.done().end_txns;
        let end_txn = Some((EndTxn::Silence, 1.0));
        scene.proxy.weather(Weather { end_txn, ..Weather::default() });
        let deadline = Instant::now() + Duration::from_secs(20);
        while scene.proxy.done().end_txns == before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if round == 1 {
            scene.broker.kill()
        } else {
            scene.broker.stop()
        }
        scene.proxy.weather(Weather::default());
        scene.broker.again();
        scene.proxy.lead_to(scene.broker.proxied());
        std::thread::sleep(Duration::from_secs(3));
        assert!(!running.ended(), "it ended by itself\n{}", running.stderr());
    }
    running.signal("TERM");
    // Where the broker does not answer yet, it ends without its last commit, and says so.
    let ended = running.wait(LONG);
    let output = ended.output();
    assert!(
        ended.status.success() || output.contains("stopped without the last commit"),
        "{output}"
    );
    scene.agrees(&produced);
}
