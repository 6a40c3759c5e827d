//! Durations, rates and disk space of a run.

use std::path::Path;
use std::time::Duration;

/// Compaction keeps replaced files for a day, so rows are stored twice.
const COPIES: f64 = 2.0;
/// For indexes, logs, and the overhead of smaller batches at lower rates.
const MARGIN: f64 = 1.1;

/// The settings from the environment.
pub struct RunSettings {
    /// Duration of part 1 in seconds; SECONDS.
    pub seconds: u64,
    /// Events per second in part 1, instead of half of the top rate; RATE.
    pub rate: Option<u64>,
    /// Disk space for the whole run; DISK_GB.
    pub disk_gb: u64,
}

impl RunSettings {
    pub fn read() -> Self {
        let number = |name| std::env::var(name).ok().map(|text: String| text.parse().unwrap());
        Self {
            seconds: number("SECONDS").unwrap_or(600),
            rate: number("RATE"),
            disk_gb: number("DISK_GB").unwrap_or(20),
        }
    }

    /// How long the topic for measuring the top rate is filled.
    pub fn fill(&self) -> Duration {
        Duration::from_secs((self.seconds / 10).clamp(5, 60))
    }

    /// The time between two kills: a minute, or a quarter of a short run.
    pub fn between_kills(&self) -> Duration {
        Duration::from_secs((self.seconds / 4).clamp(1, 60))
    }
}

/// The measurements before part 1.
pub struct Measured {
    pub filled: u64,
    /// Events per second that the producer reaches alone.
    pub producer: u64,
    /// Events per second that the engine processes from a topic that was filled before.
    pub top: u64,
    /// Disk space of the events; `None` if it is unknown.
    pub disk: Option<Disk>,
}

/// Disk space in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    pub kafka: u64,
    pub history: u64,
}

impl Disk {
    /// The disk space of a scratch folder, which contains Kafka's files in `kafka/`.
    pub fn of(folder: &Path) -> Self {
        let kafka = folder_bytes(&folder.join("kafka"));
        Self { kafka, history: folder_bytes(folder).saturating_sub(kafka) }
    }

    pub fn since(self, before: Self) -> Self {
        let Self { kafka, history } = before;
        Self {
            kafka: self.kafka.saturating_sub(kafka),
            history: self.history.saturating_sub(history),
        }
    }

    pub fn all(self) -> u64 {
        self.kafka + self.history
    }

    /// Gigabytes per event in the long run, if this is the disk space of `events` events.
    fn of_an_event(self, events: u64) -> f64 {
        (self.kafka as f64 + COPIES * self.history as f64) * MARGIN / events as f64 / 1e9
    }
}

/// The plan of the run.
pub struct Plan {
    /// Events per second in part 1.
    pub rate: u64,
    /// Duration of part 2.
    pub overload: Duration,
    /// How the run was reduced because of disk space, for the table.
    pub cut: Option<String>,
}

impl Plan {
    /// Part 1 at half of the top rate, and part 2 for a tenth of the time above the top rate; both are
    /// reduced by the same factor if the disk space is too small.
    pub fn new(settings: &RunSettings, measured: &Measured) -> Self {
        let rate = settings.rate.unwrap_or(measured.top / 2);
        let overload = settings.seconds as f64 / 10.0;
        let whole = Self { rate, overload: Duration::from_secs_f64(overload), cut: None };
        let Some(disk) = measured.disk else { return whole };
        let bytes = disk.of_an_event(measured.filled);
        let gentle = rate.min(measured.producer) as f64 * settings.seconds as f64;
        let hard = (measured.top * 3 / 2).min(measured.producer) as f64 * overload;
        let room = settings.disk_gb as f64 - measured.filled as f64 * bytes;
        let share = (room / ((gentle + hard) * bytes)).max(0.0);
        if share >= 1.0 {
            return whole;
        }
        let needed = (measured.filled as f64 + gentle + hard) * bytes;
        let needs = format!("DISK_GB={:.0} is needed", needed.ceil());
        assert!(settings.rate.is_none() && share > 0.05, "too little disk space: {needs}");
        let cut =
            format!("reduced to {:.0} % by disk space: {needs} for the whole run", share * 100.0);
        let rate = (rate.min(measured.producer) as f64 * share) as u64;
        Self { rate, overload: Duration::from_secs_f64(overload * share), cut: Some(cut) }
    }
}

/// The bytes of all files below a folder. Files that vanish meanwhile are not counted.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        // Not its length: Kafka preallocates its index files.
        Ok(metadata) => std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
