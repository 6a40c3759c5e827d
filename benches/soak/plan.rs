//! How long, how fast, and how much of the disk.

use std::path::Path;
use std::time::Duration;

/// Compaction keeps the files that it replaced for a day, so rows are in history twice.
const COPIES: f64 = 2.0;
/// Indexes, logs and what Kafka writes in smaller batches when events come slower.
const MARGIN: f64 = 1.1;

/// What is asked for.
pub struct Wishes {
    /// How long it is killed; SECONDS.
    pub seconds: u64,
    /// Events a second meanwhile, instead of half of the top rate; RATE.
    pub rate: Option<u64>,
    /// How much of the disk all of it may take; DISK_GB.
    pub disk_gb: u64,
}

impl Wishes {
    pub fn read() -> Self {
        let number = |name| std::env::var(name).ok().map(|text: String| text.parse().unwrap());
        Self {
            seconds: number("SECONDS").unwrap_or(600),
            rate: number("RATE"),
            disk_gb: number("DISK_GB").unwrap_or(20),
        }
    }

    /// The topic that the top rate is measured with grows for so long.
    pub fn fill(&self) -> Duration {
        Duration::from_secs((self.seconds / 10).clamp(5, 60))
    }

    /// Between two kills: a minute, or a quarter of a short run.
    pub fn between_kills(&self) -> Duration {
        Duration::from_secs((self.seconds / 4).clamp(1, 60))
    }
}

/// What was measured before the parts begin.
pub struct Measured {
    pub filled: u64,
    /// Events a second that the producer reaches alone.
    pub producer: u64,
    /// Events a second that the engine takes from a topic that was filled before.
    pub top: u64,
    /// Bytes of the disk that events take; none if nobody knows.
    pub disk: Option<Disk>,
}

/// Bytes of the disk.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    pub kafka: u64,
    pub history: u64,
}

impl Disk {
    /// What there is in a folder that holds nothing else: Kafka's in one of its folders.
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

    /// Gigabytes that an event takes in the long run, if these are those of so many events.
    fn of_an_event(self, events: u64) -> f64 {
        (self.kafka as f64 + COPIES * self.history as f64) * MARGIN / events as f64 / 1e9
    }
}

/// What is done.
pub struct Plan {
    /// Events a second of part 1.
    pub rate: u64,
    /// How long part 2 lasts.
    pub overload: Duration,
    /// What the disk forbids, for the table.
    pub cut: Option<String>,
}

impl Plan {
    /// Half of the top rate, and a tenth of the time more than it can take; or as much of both as the
    /// disk has room for.
    pub fn new(wishes: &Wishes, measured: &Measured) -> Self {
        let rate = wishes.rate.unwrap_or(measured.top / 2);
        let overload = wishes.seconds as f64 / 10.0;
        let whole = Self { rate, overload: Duration::from_secs_f64(overload), cut: None };
        let Some(disk) = measured.disk else { return whole };
        let bytes = disk.of_an_event(measured.filled);
        let gentle = rate.min(measured.producer) as f64 * wishes.seconds as f64;
        let hard = (measured.top * 3 / 2).min(measured.producer) as f64 * overload;
        let room = wishes.disk_gb as f64 - measured.filled as f64 * bytes;
        let share = (room / ((gentle + hard) * bytes)).max(0.0);
        if share >= 1.0 {
            return whole;
        }
        let needed = (measured.filled as f64 + gentle + hard) * bytes;
        let needs = format!("DISK_GB={:.0} is needed", needed.ceil());
        assert!(wishes.rate.is_none() && share > 0.05, "too little disk for that: {needs}");
        let cut = format!("{:.0} % of it for want of disk: {needs} for all of it", share * 100.0);
        let rate = (rate.min(measured.producer) as f64 * share) as u64;
        Self { rate, overload: Duration::from_secs_f64(overload * share), cut: Some(cut) }
    }
}

/// The bytes of all files below a folder, as far as they stay while one looks.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        // Not its length: Kafka makes the files of its indexes long before they hold anything.
        Ok(metadata) => std::os::unix::fs::MetadataExt::blocks(&metadata) * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
