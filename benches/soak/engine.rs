//! The process under test, and a sample of it each second.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::job::commit_share;
use crate::process::{memory, metric, metrics};

/// A sample of a process.
pub struct Sample {
    /// The number of processes before this one.
    pub process: usize,
    /// Seconds since the process started.
    pub age: f64,
    /// Seconds since the soak test started.
    pub at: f64,
    pub resident_mb: f64,
    /// The lag of all partitions in /metrics; `None` until the process responds.
    pub lag: Option<f64>,
    /// The sum of the positions of all partitions in /metrics.
    pub position: Option<f64>,
}

/// `millstream run`, restarted after each kill.
pub struct Engine {
    child: Child,
    brokers: String,
    project: PathBuf,
    port: u16,
    number: usize,
    started: Instant,
    soak_start: Instant,
    last_sample_at: Instant,
    pub samples: Vec<Sample>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Also in a panic. The process may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command, on the cores of ENGINE_CORES if it is set, so that neither the producer nor the broker
/// slows it down.
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
            started: now,
            soak_start: now,
            last_sample_at: now,
            samples: Vec::new(),
        }
    }

    /// Kills the process with SIGKILL, calls `between`, and starts a new process.
    pub fn kill<T>(&mut self, between: impl FnOnce() -> T) -> T {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let found = between();
        self.child = serve(&self.brokers, &self.project, self.port);
        self.number += 1;
        self.started = Instant::now();
        found
    }

    /// Takes a sample if a second has passed since the last one; prints one in thirty.
    pub fn watch(&mut self) {
        if self.last_sample_at.elapsed() >= Duration::from_secs(1) {
            self.last_sample_at = Instant::now();
            let sample = self.sample();
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

    /// Takes a sample now.
    pub fn sample(&mut self) -> Sample {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "the engine ended by itself: {ended:?}");
        let text = metrics(self.port).unwrap_or_default();
        Sample {
            process: self.number,
            age: self.started.elapsed().as_secs_f64(),
            at: self.soak_start.elapsed().as_secs_f64(),
            resident_mb: memory(self.child.id(), "VmRSS:") / 1e3,
            lag: metric(&text, "millstream_partition_lag_records"),
            position: metric(&text, "millstream_partition_position"),
        }
    }

    /// The share of its CPU that commits take, in percent.
    pub fn commit_share(&self) -> f64 {
        commit_share(self.child.id())
    }

    /// Takes samples until `enough` accepts one, at most for `limit`; returns the duration, or `None`.
    pub fn until(&mut self, limit: Duration, enough: impl Fn(&Sample) -> bool) -> Option<Duration> {
        let since = Instant::now();
        while since.elapsed() < limit {
            self.watch();
            if enough(&self.sample()) {
                return Some(since.elapsed());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        None
    }

    /// Stops the process with SIGTERM, then drains the pipeline; returns all samples.
    pub fn end(mut self) -> Vec<Sample> {
        let status = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(
            status.success() && self.child.wait().unwrap().success(),
            "the engine did not stop"
        );
        let drained = command(&self.brokers, &self.project).arg("--drain").status().unwrap();
        assert!(drained.success(), "the engine did not drain");
        std::mem::take(&mut self.samples)
    }
}

fn serve(brokers: &str, project: &Path, port: u16) -> Child {
    command(brokers, project).args(["--http", &format!("127.0.0.1:{port}")]).spawn().unwrap()
}
