//! The queue between a reader's threads and the pipeline, bounded in bytes.
//!
//! Invariants: `used` counts what was sent and not taken; an error is the last thing that is
//! sent, and after it everybody who asks is told to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::source::reader::Event;
use crate::{Error, Result};

/// How much the queue between threads and pipeline holds, in bytes.
pub const QUEUE_BYTES: usize = 32 << 20;
/// How long a thread waits for room before it looks whether it is wanted still.
const WAIT: Duration = Duration::from_millis(100);

/// How full the queue is.
#[derive(Default)]
struct Budget {
    used: Mutex<usize>,
    less: Condvar,
    stop: AtomicBool,
}

impl Budget {
    fn used(&self) -> MutexGuard<'_, usize> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.less.notify_all();
    }
}

/// The threads' end. A clone is another sender into the same queue.
#[derive(Clone)]
pub(super) struct Sink {
    sender: mpsc::UnboundedSender<Result<Event>>,
    budget: Arc<Budget>,
}

/// The reader's end; when it is dropped, the threads are told to stop.
pub(super) struct Source {
    events: mpsc::UnboundedReceiver<Result<Event>>,
    budget: Arc<Budget>,
    failed: bool,
}

/// A new queue.
pub(super) fn queue() -> (Sink, Source) {
    let budget = Arc::new(Budget::default());
    let (sender, events) = mpsc::unbounded_channel();
    (Sink { sender, budget: Arc::clone(&budget) }, Source { events, budget, failed: false })
}

impl Sink {
    /// Sends an event, whether there is room or not. False: nobody wants it any more.
    pub(super) fn send(&self, event: Event) -> bool {
        *self.budget.used() += event.size();
        self.sender.send(Ok(event)).is_ok() && !self.stopped()
    }

    /// Sends the last word.
    pub(super) fn fail(&self, error: Error) {
        // Two threads may fail at once: one of them is enough.
        if !self.budget.stop.swap(true, Ordering::AcqRel) {
            // Nobody listens any more when this fails.
            let _ = self.sender.send(Err(error));
        }
        self.budget.less.notify_all();
    }

    /// Whether the threads should end.
    pub(super) fn stopped(&self) -> bool {
        self.budget.stop.load(Ordering::Acquire)
    }

    /// Whether there is room now.
    pub(super) fn has_room(&self) -> bool {
        *self.budget.used() < QUEUE_BYTES
    }

    /// Waits until there is room. False: the threads should end.
    pub(super) fn wait(&self) -> bool {
        let mut used = self.budget.used();
        while *used >= QUEUE_BYTES && !self.stopped() {
            let waited = self.budget.less.wait_timeout(used, WAIT);
            used = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        !self.stopped()
    }
}

impl Source {
    /// The next event. Cancelling it loses none.
    ///
    /// # Errors
    /// What a thread failed with; from then on, always an error.
    pub(super) async fn next(&mut self) -> Result<Event> {
        match self.events.recv().await {
            Some(Ok(event)) if !self.failed => {
                *self.budget.used() -= event.size();
                self.budget.less.notify_all();
                Ok(event)
            }
            Some(Err(error)) if !self.failed => {
                self.failed = true;
                self.events.close();
                Err(error)
            }
            _ => Err(Error::internal("the Kafka reader has stopped after its error")),
        }
    }

    /// Tells the threads to end.
    pub(super) fn stop(&self) {
        self.budget.stop();
    }

    /// Bytes that are in the queue.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        *self.budget.used()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.budget.stop();
    }
}
