//! Event time: microseconds since the Unix epoch, half-open windows, and the one clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// An instant, in microseconds since 1970-01-01T00:00:00Z.
pub type Micros = i64;

/// One second, in microseconds.
pub const SECOND: Micros = 1_000_000;
/// One minute, in microseconds.
pub const MINUTE: Micros = 60 * SECOND;
/// One hour, in microseconds.
pub const HOUR: Micros = 60 * MINUTE;
/// Twenty-four hours, in microseconds. A calendar day may be longer or shorter.
pub const DAY: Micros = 24 * HOUR;

/// "Before everything": the watermark of a partition that has not said anything.
pub const MIN_TIME: Micros = i64::MIN;
/// "After everything": the watermark of a drained stream.
pub const MAX_TIME: Micros = i64::MAX;

/// A half-open window of event time, [start, end).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Window {
    /// First instant inside.
    pub start: Micros,
    /// First instant after it.
    pub end: Micros,
}

/// The only reader of the wall clock. Tests and the faster-than-real-time demo set it by hand.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    manual: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands at `now` until [`Clock::set`].
    pub fn manual(now: Micros) -> Self {
        Self { manual: Some(Arc::new(AtomicI64::new(now))) }
    }

    /// The present instant.
    pub fn now(&self) -> Micros {
        match &self.manual {
            Some(now) => now.load(Ordering::Acquire),
            None => match SystemTime::now().duration_since(UNIX_EPOCH) {
                Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
                Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
            },
        }
    }

    /// Moves a manual clock; the machine's clock stays as it is.
    pub fn set(&self, now: Micros) {
        if let Some(manual) = &self.manual {
            manual.store(now, Ordering::Release);
        }
    }
}
