//! The identity of the process that wrote a progress record.

use std::fmt;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};

use crate::time::Micros;

/// One process, described so that an operator can find it: the error of a fenced pipeline names the
/// process that took over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process id on its host.
    pub id: u32,
    /// The host's name.
    pub host: String,
    /// When it started to run this customer, by its wall clock.
    pub began: Micros,
}

impl Process {
    /// The current process, which starts to run a customer at `now`.
    pub fn this(now: Micros) -> Self {
        Self { id: std::process::id(), host: host_name(), began: now }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let began = DateTime::from_timestamp_micros(self.began).unwrap_or_default();
        let began = began.to_rfc3339_opts(SecondsFormat::Secs, true);
        write!(f, "process {} on {} (started at {began})", self.id, self.host)
    }
}

/// The host name from the kernel, or else from the environment.
fn host_name() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    match name.trim() {
        "" => "an unnamed host".to_owned(),
        name => name.to_owned(),
    }
}
