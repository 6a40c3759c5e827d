//! Network faults between the engine and the test's own Kafka. At the end, results, dead letters and history
//! must equal a batch over everything that was produced.

use std::time::{Duration, Instant};

use crate::own_broker::OwnBroker;
use crate::sample_project::LONG;
use crate::support::kafka::Kafka;
use crate::support::process::{self, Running};
use crate::support::proxy::{EndTxn, Faults, INIT_PRODUCER_ID, Injected, Proxy};
use crate::verified_load::{Load, Produced, seed};

/// A customer under load whose Kafka is behind a proxy.
struct ProxiedLoad {
    seed: u64,
    reader: &'static str,
    proxy: Proxy,
    broker: OwnBroker,
    load: Load,
}

impl ProxiedLoad {
    /// Starts the broker and the proxy; `None` without Kafka.
    fn start(test: &str, reader: &'static str) -> Option<Self> {
        Kafka::require(test)?;
        let seed = seed();
        let proxy = Proxy::start(seed);
        let broker = OwnBroker::start_behind(proxy.address());
        proxy.set_target(broker.proxied());
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

    /// Runs the engine under load while `inject` injects faults; then verifies all output.
    fn run_under_load(&self, inject: impl Fn(&mut Running)) {
        let produced = self.load.during(|| {
            let mut running = self.run(&[]);
            running.until("the pipeline", LONG, |output| output.contains("a partition joins"));
            inject(&mut running);
            self.proxy.faults(Faults::default());
            std::thread::sleep(Duration::from_secs(2));
            assert!(!running.ended(), "the engine ended by itself\n{}", running.stderr());
            running.signal("TERM");
            let finished = running.wait(LONG);
            println!("{}", finished.stderr);
            assert!(finished.status.success(), "the engine failed");
        });
        self.verify(&produced);
    }

    fn verify(&self, produced: &Produced) {
        let injected = self.proxy.injected();
        println!(
            "{} reader, seed {}: {} events; {} cuts, {} delays, {} EndTxn faults",
            self.reader,
            self.seed,
            produced.count(),
            injected.cuts,
            injected.delays,
            injected.end_txns
        );
        self.load.verify(produced).all_agree();
    }
}

fn seconds() -> Duration {
    let wanted = std::env::var("MILLSTREAM_NETWORK_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(wanted.unwrap_or(15))
}

fn cut_and_delayed(reader: &'static str) {
    let Some(proxied) = ProxiedLoad::start("cut and delayed", reader) else { return };
    proxied.run_under_load(|running| {
        let (cut, delay) = (0.01, (0.1, Duration::from_millis(50)));
        proxied.proxy.faults(Faults { cut, delay, end_txn: None });
        std::thread::sleep(seconds());
        assert!(!running.ended(), "the engine ended by itself\n{}", running.stderr());
    });
    assert!(proxied.proxy.injected().cuts > 5, "{:?}", proxied.proxy.injected());
}

#[test]
fn random_cuts_lose_nothing_with_the_native_reader() {
    cut_and_delayed("native");
}

#[test]
fn random_cuts_lose_nothing_with_librdkafka() {
    cut_and_delayed("rdkafka");
}

/// Number of producers that were started.
fn producers(injected: &Injected) -> u64 {
    injected.requests.get(&INIT_PRODUCER_ID).copied().unwrap_or(0)
}

/// Injects EndTxn faults `times` times and checks that each one replaces the producer.
fn end_txn_faults(test: &str, reader: &'static str, fate: EndTxn, times: u64) {
    let Some(proxied) = ProxiedLoad::start(test, reader) else { return };
    proxied.run_under_load(|running| {
        let before = proxied.proxy.injected();
        let deadline = Instant::now() + LONG;
        for time in 1..=times {
            let end_txn = Some((fate, 1.0));
            proxied.proxy.faults(Faults { end_txn, ..Faults::default() });
            while proxied.proxy.injected().end_txns < before.end_txns + time {
                assert!(Instant::now() < deadline, "no commit\n{}", running.stderr());
                std::thread::sleep(Duration::from_millis(2));
            }
            proxied.proxy.faults(Faults::default());
            // The producer is always replaced, whatever librdkafka reports about the old one.
            while producers(&proxied.proxy.injected()) < producers(&before) + time {
                assert!(
                    Instant::now() < deadline,
                    "the producer was not replaced\n{}",
                    running.stderr()
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        assert!(!running.ended(), "the engine ended by itself\n{}", running.stderr());
        // All responses are lost until the outcome is unknown; then the log is read.
        proxied.proxy.faults(Faults { end_txn: Some((fate, 1.0)), ..Faults::default() });
        let before = producers(&proxied.proxy.injected());
        let deadline = Instant::now() + LONG;
        while producers(&proxied.proxy.injected()) == before {
            assert!(
                Instant::now() < deadline,
                "the producer was not replaced\n{}",
                running.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        proxied.proxy.faults(Faults::default());
        running.until("reading the log", LONG, |output| output.contains("the log has epoch"));
    });
}

#[test]
fn a_commit_with_a_lost_response_is_resolved_from_the_log() {
    end_txn_faults("a lost answer", "native", EndTxn::DropResponse, 5);
}

#[test]
fn a_commit_without_a_response_is_resolved_from_the_log() {
    end_txn_faults("no answer", "rdkafka", EndTxn::NoResponse, 0);
}

#[test]
fn a_commit_that_arrives_late_ends_no_later_transaction() {
    let Some(proxied) = ProxiedLoad::start("a late commit", "native") else { return };
    proxied.run_under_load(|running| {
        let began = Instant::now();
        while began.elapsed() < seconds() {
            let end_txn = Some((EndTxn::Late(Duration::from_millis(700)), 0.3));
            proxied.proxy.faults(Faults { end_txn, ..Faults::default() });
            std::thread::sleep(Duration::from_millis(500));
            proxied.proxy.faults(Faults::default());
            std::thread::sleep(Duration::from_millis(1_500));
        }
        assert!(!running.ended(), "the engine ended by itself\n{}", running.stderr());
    });
    assert!(proxied.proxy.injected().end_txns > 0, "no request was delayed");
}

#[test]
fn a_broker_that_is_restarted_and_killed_loses_nothing() {
    let Some(proxied) = ProxiedLoad::start("a restarted broker", "native") else { return };
    // The load's own producer would fail while the broker is down, so it runs before.
    let produced = proxied.load.during(|| std::thread::sleep(Duration::from_secs(12)));
    let mut running = proxied.run(&["--commit-interval", "100 ms"]);
    running.until("the pipeline", LONG, |output| output.contains("a partition joins"));
    for round in 0..3 {
        // In a transaction: the response to EndTxn is held back while the broker stops.
        let before = proxied.proxy.injected().end_txns;
        let end_txn = Some((EndTxn::NoResponse, 1.0));
        proxied.proxy.faults(Faults { end_txn, ..Faults::default() });
        let deadline = Instant::now() + Duration::from_secs(20);
        while proxied.proxy.injected().end_txns == before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if round == 1 {
            proxied.broker.kill()
        } else {
            proxied.broker.stop()
        }
        proxied.proxy.faults(Faults::default());
        proxied.broker.restart();
        proxied.proxy.set_target(proxied.broker.proxied());
        std::thread::sleep(Duration::from_secs(3));
        assert!(!running.ended(), "the engine ended by itself\n{}", running.stderr());
    }
    running.signal("TERM");
    // If the broker does not respond yet, the engine ends without its last commit and reports it.
    let ended = running.wait(LONG);
    let output = ended.output();
    assert!(
        ended.status.success() || output.contains("stopped without the last commit"),
        "{output}"
    );
    proxied.verify(&produced);
}
