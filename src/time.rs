//! Event time in microseconds since the Unix epoch, half-open windows, and the [`Clock`], which is
//! the only reader of the wall clock.

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

/// The earliest time: the watermark of a partition that has not produced a row.
pub const MIN_TIME: Micros = i64::MIN;
/// The latest time: the watermark of a drained (ended) stream, which closes every window.
pub const MAX_TIME: Micros = i64::MAX;

/// A half-open interval of event time, `[start, end)`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct Window {
    /// The first instant inside the window.
    pub start: Micros,
    /// The first instant after the window.
    pub end: Micros,
}

/// A source of the current time: the system clock, or a manual clock for tests and for the demo,
/// which runs faster than real time.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    manual: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The system clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that returns `now` until [`Clock::set`] changes it.
    pub fn manual(now: Micros) -> Self {
        Self { manual: Some(Arc::new(AtomicI64::new(now))) }
    }

    /// The current time.
    pub fn now(&self) -> Micros {
        match &self.manual {
            Some(now) => now.load(Ordering::Acquire),
            None => match SystemTime::now().duration_since(UNIX_EPOCH) {
                Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
                Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
            },
        }
    }

    /// Sets a manual clock; has no effect on the system clock.
    pub fn set(&self, now: Micros) {
        if let Some(manual) = &self.manual {
            manual.store(now, Ordering::Release);
        }
    }
}
