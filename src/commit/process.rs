//! Who wrote a progress record.

use std::fmt;

use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};

use crate::time::Micros;

/// One process, as others can look for it: a pipeline that is fenced names the one that took over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id on its host.
    pub id: u32,
    /// The host's name.
    pub host: String,
    /// When it began with this customer, by its wall clock.
    pub began: Micros,
}

impl Process {
    /// This process, beginning at `now`.
    pub fn this(now: Micros) -> Self {
        Self { id: std::process::id(), host: host(), began: now }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let began = DateTime::from_timestamp_micros(self.began).unwrap_or_default();
        let began = began.to_rfc3339_opts(SecondsFormat::Secs, true);
        write!(f, "process {} on {}, which began at {began}", self.id, self.host)
    }
}

/// The host's name as the kernel has it, or as the shell was told.
fn host() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    match name.trim() {
        "" => "an unnamed host".to_owned(),
        name => name.to_owned(),
    }
}
