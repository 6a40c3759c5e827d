//! The process that is soaked, and what is seen of it each second.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::job::commit_share;
use crate::process::{memory, metric, metrics};

/// What was seen of a process at a moment.
pub struct Sample {
    /// Which process: how many there were before it.
    pub process: usize,
    /// How old it was, in seconds.
    pub age: f64,
    /// When, in seconds since the soak began.
    pub at: f64,
    pub resident_mb: f64,
    /// What its /metrics says of all partitions, once it answers.
    pub lag: Option<f64>,
    /// Where it is in the topic, all partitions together.
    pub position: Option<f64>,
}

/// `millstream run`, again and again.
pub struct Engine {
    child: Child,
    brokers: String,
    project: PathBuf,
    port: u16,
    number: usize,
    since: Instant,
    began: Instant,
    looked: Instant,
    pub samples: Vec<Sample>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        // In a panic too; it may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program; on cores of its own if ENGINE_CORES names them, so that neither the producer nor the
/// broker slows it down.
pub fn millstream(project: &Path) -> Command {
    let engine = env!("CARGO_BIN_EXE_millstream");
    let mut command = match std::env::var("ENGINE_CORES") {
        Ok(cores) => {
            let mut command = Command::new("taskset");
            command.args(["--cpu-list", &cores, engine]);
            command
        }
        Err(_) => Command::new(engine),
    };
    command.current_dir(project).stdin(Stdio::null());
    command
}

fn command(brokers: &str, project: &Path) -> Command {
    let mut command = millstream(project);
    command.args(["run", "--brokers", brokers, "--create-topics", "--log", "error"]);
    command
}

impl Engine {
    pub fn start(brokers: &str, project: &Path, port: u16) -> Self {
        let child = serve(brokers, project, port);
        let now = Instant::now();
        Self {
            child,
            brokers: brokers.to_owned(),
            project: project.to_owned(),
            port,
            number: 0,
            since: now,
            began: now,
            looked: now,
            samples: Vec::new(),
        }
    }

    /// SIGKILL, `between`, and a new process.
    pub fn kill<T>(&mut self, between: impl FnOnce() -> T) -> T {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let found = between();
        self.child = serve(&self.brokers, &self.project, self.port);
        self.number += 1;
        self.since = Instant::now();
        found
    }

    /// Takes a sample if a second has passed since the last; tells of one in thirty.
    pub fn watch(&mut self) {
        if self.looked.elapsed() >= Duration::from_secs(1) {
            self.looked = Instant::now();
            let sample = self.look();
            if self.samples.len().is_multiple_of(30) {
                let Sample { process, age, at, resident_mb, lag, .. } = &sample;
                println!(
                    "{at:.0} s: process {process}, {age:.0} s old, {resident_mb:.0} MB, lag {}",
                    lag.map_or("unknown".to_owned(), |lag| lag.to_string())
                );
            }
            self.samples.push(sample);
        }
    }

    /// What there is to be seen now.
    pub fn look(&mut self) -> Sample {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "the engine ended by itself: {ended:?}");
        let text = metrics(self.port).unwrap_or_default();
        Sample {
            process: self.number,
            age: self.since.elapsed().as_secs_f64(),
            at: self.began.elapsed().as_secs_f64(),
            resident_mb: memory(self.child.id(), "VmRSS:") / 1e3,
            lag: metric(&text, "millstream_partition_lag_records"),
            position: metric(&text, "millstream_partition_position"),
        }
    }

    /// Percent of its CPU that went into commits.
    pub fn commit_share(&self) -> f64 {
        commit_share(self.child.id())
    }

    /// Watches until `enough` of a sample, or for as long as `limit`; says how long it took.
    pub fn until(&mut self, limit: Duration, enough: impl Fn(&Sample) -> bool) -> Option<Duration> {
        let since = Instant::now();
        while since.elapsed() < limit {
            self.watch();
            if enough(&self.look()) {
                return Some(since.elapsed());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        None
    }

    /// SIGTERM and a good end; then every window is closed.
    pub fn end(mut self) -> Vec<Sample> {
        let status = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success() && self.child.wait().unwrap().success(), "it does not stop");
        let drained = command(&self.brokers, &self.project).arg("--drain").status().unwrap();
        assert!(drained.success(), "it does not drain");
        std::mem::take(&mut self.samples)
    }
}

fn serve(brokers: &str, project: &Path, port: u16) -> Child {
    command(brokers, project).args(["--http", &format!("127.0.0.1:{port}")]).spawn().unwrap()
}
