//! A full disk: the pipeline continues, and history catches up once space is freed.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::failures::get;
use crate::sample_project::{LONG, sample_project};
use crate::support::kafka::Kafka;
use crate::support::process;

/// A small disk, in memory.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts a tmpfs; `None` if it cannot be mounted and MILLSTREAM_REQUIRE_KAFKA is not set.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let options = ["-t", "tmpfs", "-o", "size=24m", "tmpfs"];
        let mount = |program: &[&str]| {
            let mut command = Command::new(program[0]);
            let command = command.args(&program[1..]).args(options).arg(folder.path());
            command.output().is_ok_and(|output| output.status.success())
        };
        if mount(&["mount"]) || mount(&["sudo", "-n", "mount"]) {
            return Some(Self { folder });
        }
        assert!(
            std::env::var_os("MILLSTREAM_REQUIRE_KAFKA").is_none(),
            "a tmpfs cannot be mounted, and MILLSTREAM_REQUIRE_KAFKA forbids to skip the test"
        );
        eprintln!("a full disk: needs the right to mount a tmpfs; skipped");
        None
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Fills the disk.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        for program in [&["umount"][..], &["sudo", "-n", "umount"]] {
            let mut command = Command::new(program[0]);
            let done = command.args(&program[1..]).arg("-l").arg(self.folder.path()).status();
            if done.is_ok_and(|status| status.success()) {
                return;
            }
        }
    }
}

#[test]
fn a_full_disk_stops_nothing_and_loses_nothing() {
    let Some(kafka) = Kafka::require("a full disk") else { return };
    let Some(disk) = SmallDisk::mount() else { return };
    let sample = sample_project(kafka, 1);
    let data = disk.path().join("data");
    let data = data.to_str().unwrap();
    let arguments = ["run", "--brokers", &sample.kafka.brokers, "--create-topics", "--data-dir"];
    let mut all = arguments.to_vec();
    all.extend([data, "--http", "127.0.0.1:0", "--snapshot-interval", "2 s"]);
    let mut running = process::start(sample.project.path(), &all);
    running.until("the pipeline", LONG, |output| output.contains("a partition joins"));
    let output = running.stderr();
    let address = output.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        let deadline = Instant::now() + LONG;
        while !holds() {
            assert!(Instant::now() < deadline, "{what}: {}", get(address, "/readyz"));
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    let alerts = |wanted: i64| {
        let count = (0..wanted).filter(|minute| minute % 3 == 0).count();
        until("results", &|| sample.results("alerts").len() == count);
    };
    sample.events(0..60);
    alerts(60);
    let filler = disk.fill();
    sample.events(60..120);
    alerts(120);
    until("/readyz reports that history lags", &|| {
        get(address, "/readyz").contains("history has not committed")
    });
    sample.events(120..180);
    alerts(180);
    let waits = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("millstream_history_waits_seconds"));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |v| v.parse::<f64>().unwrap())
    };
    assert!(waits(&get(address, "/metrics")) > 60.0);
    assert!(!running.ended(), "{}", running.stderr());
    std::fs::remove_file(filler).unwrap();
    until("history catches up", &|| get(address, "/readyz").contains("ready\n"));
    running.signal("TERM");
    running.wait(LONG).ok();
    let ask = |sql: &str| {
        let sql = sql.replace("{c}", &sample.customer);
        let arguments = ["query", "--data-dir", data, "--format", "csv", &sql];
        let answer = process::run(sample.project.path(), &arguments).ok();
        answer.stdout.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(ask("SELECT count(*), count(DISTINCT _offset) FROM {c}.events"), ["180,180"]);
    assert_eq!(ask("SELECT count(*) FROM {c}.alerts"), ["60"]);
    let audit = ["audit", "--brokers", &sample.kafka.brokers, "--data-dir", data];
    process::run(sample.project.path(), &audit).ok();
}
