//! Runs the real binary with a time limit, so that a test that hangs fails and shows the output.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A finished run.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Finished {
    /// Panics with everything that was printed unless the process succeeded.
    pub fn ok(self) -> Self {
        assert!(
            self.status.success(),
            "{}\n--- stdout\n{}\n--- stderr\n{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Panics unless the process failed.
    pub fn failed(self) -> Self {
        assert!(
            !self.status.success(),
            "the process succeeded\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// Standard output and standard error together.
    pub fn output(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A running millstream.
pub struct Running {
    child: Child,
    output: TempDir,
    since: Instant,
}

/// Starts the binary in `folder` with `arguments`.
pub fn start(folder: &Path, arguments: &[&str]) -> Running {
    start_with_stdin(folder, arguments, None)
}

/// Starts the binary with variables of its environment set.
pub fn start_with_env(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Running {
    spawn(folder, arguments, None, environment)
}

/// Starts the binary with `input` on its standard input.
pub fn start_with_stdin(folder: &Path, arguments: &[&str], input: Option<&str>) -> Running {
    spawn(folder, arguments, input, &[])
}

fn spawn(
    folder: &Path,
    arguments: &[&str],
    input: Option<&str>,
    environment: &[(&str, &str)],
) -> Running {
    let output = tempfile::tempdir().unwrap();
    let file = |name: &str| File::create(output.path().join(name)).unwrap();
    let stdin = match input {
        None => Stdio::null(),
        Some(text) => {
            std::fs::write(output.path().join("in"), text).unwrap();
            File::open(output.path().join("in")).unwrap().into()
        }
    };
    // MILLSTREAM_BINARY runs the tests with another build.
    let built = || env!("CARGO_BIN_EXE_millstream").to_owned();
    let binary = std::env::var("MILLSTREAM_BINARY").unwrap_or_else(|_| built());
    let child = Command::new(binary)
        .args(arguments)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .envs(environment.iter().copied())
        .stdin(stdin)
        .stdout(file("out"))
        .stderr(file("err"))
        .spawn()
        .unwrap();
    Running { child, output, since: Instant::now() }
}

/// Runs the binary to its end, at most `limit`.
pub fn run_for(folder: &Path, arguments: &[&str], limit: Duration) -> Finished {
    start(folder, arguments).wait(limit)
}

/// Runs the binary to its end, at most two minutes.
pub fn run(folder: &Path, arguments: &[&str]) -> Finished {
    run_for(folder, arguments, Duration::from_secs(120))
}

impl Running {
    fn printed(&self, name: &str) -> String {
        let path: PathBuf = self.output.path().join(name);
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    pub fn stdout(&self) -> String {
        self.printed("out")
    }

    pub fn stderr(&self) -> String {
        self.printed("err")
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process has ended already.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// The peak resident memory so far, in bytes; `None` if it has ended or the kernel does not report it.
    pub fn peak_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
    }

    /// Kills the process with SIGKILL.
    pub fn kill(mut self) -> Finished {
        self.child.kill().unwrap();
        self.wait(Duration::from_secs(30))
    }

    /// Sends SIGTERM, SIGINT, SIGSTOP or SIGCONT; `name` is without the prefix SIG.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap();
        assert!(status.success(), "the signal could not be sent");
    }

    /// Waits until `seen` is true for the output so far (both streams).
    pub fn until(&mut self, what: &str, limit: Duration, seen: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + limit;
        loop {
            let printed = format!("{}{}", self.stdout(), self.stderr());
            if seen(&printed) {
                return;
            }
            let ended = self.ended();
            assert!(
                !ended && Instant::now() < deadline,
                "{what}: {}\n{printed}",
                if ended { "the process ended" } else { "timed out" }
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the process ends; kills it and panics after `limit`.
    pub fn wait(mut self, limit: Duration) -> Finished {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() >= deadline {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                panic!(
                    "still running after {limit:?}\n--- stdout\n{}\n--- stderr\n{}",
                    self.stdout(),
                    self.stderr()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Finished {
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
            took: self.since.elapsed(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
