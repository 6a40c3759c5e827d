//! The queue between the threads of a reader and the pipeline, bounded in bytes.
//!
//! Invariants: `used` counts the bytes that were sent and not yet received; an error is the last
//! item that is sent, and after it every sender is stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::source::event::Event;
use crate::{Error, Result};

/// The capacity of the queue in bytes.
pub const QUEUE_BYTES: usize = 32 << 20;
/// How long a thread waits for room before it checks whether it must stop.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The fill level of the queue.
#[derive(Default)]
struct Budget {
    used: Mutex<usize>,
    freed: Condvar,
    stop: AtomicBool,
}

impl Budget {
    fn used(&self) -> MutexGuard<'_, usize> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.freed.notify_all();
    }
}

/// The end of the queue that the threads fill. A clone is another sender into the same queue.
#[derive(Clone)]
pub(super) struct ChunkSender {
    sender: mpsc::UnboundedSender<Result<Event>>,
    budget: Arc<Budget>,
}

/// The end of the queue that the pipeline reads. Dropping it stops the threads.
pub(super) struct ChunkReceiver {
    events: mpsc::UnboundedReceiver<Result<Event>>,
    budget: Arc<Budget>,
    failed: bool,
}

/// Creates a queue.
pub(super) fn chunk_queue() -> (ChunkSender, ChunkReceiver) {
    let budget = Arc::new(Budget::default());
    let (sender, events) = mpsc::unbounded_channel();
    let receiver = ChunkReceiver { events, budget: Arc::clone(&budget), failed: false };
    (ChunkSender { sender, budget }, receiver)
}

impl ChunkSender {
    /// Sends an event, whether there is room or not. Returns `false` if the sender must stop.
    pub(super) fn send(&self, event: Event) -> bool {
        *self.budget.used() += event.size();
        self.sender.send(Ok(event)).is_ok() && !self.is_stopped()
    }

    /// Sends the error that ends the queue. Only the first error is sent.
    pub(super) fn fail(&self, error: Error) {
        // Two threads may fail at once; one error is enough.
        if !self.budget.stop.swap(true, Ordering::AcqRel) {
            // Sending fails only if the receiver was dropped.
            let _ = self.sender.send(Err(error));
        }
        self.budget.freed.notify_all();
    }

    /// Whether the threads must stop.
    pub(super) fn is_stopped(&self) -> bool {
        self.budget.stop.load(Ordering::Acquire)
    }

    /// Whether there is room at present.
    pub(super) fn has_room(&self) -> bool {
        *self.budget.used() < QUEUE_BYTES
    }

    /// Waits until there is room. Returns `false` if the threads must stop.
    pub(super) fn wait_for_room(&self) -> bool {
        let mut used = self.budget.used();
        while *used >= QUEUE_BYTES && !self.is_stopped() {
            let waited = self.budget.freed.wait_timeout(used, STOP_CHECK_INTERVAL);
            used = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        !self.is_stopped()
    }
}

impl ChunkReceiver {
    /// Receives the next event. The call is cancel-safe: no event is lost.
    ///
    /// # Errors
    /// The error of a thread; every later call fails, too.
    pub(super) async fn next(&mut self) -> Result<Event> {
        match self.events.recv().await {
            Some(Ok(event)) if !self.failed => {
                *self.budget.used() -= event.size();
                self.budget.freed.notify_all();
                Ok(event)
            }
            Some(Err(error)) if !self.failed => {
                self.failed = true;
                self.events.close();
                Err(error)
            }
            _ => Err(Error::internal("the Kafka reader has already stopped after an error")),
        }
    }

    /// Requests that the threads stop.
    pub(super) fn stop(&self) {
        self.budget.stop();
    }

    /// The number of bytes in the queue.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        *self.budget.used()
    }
}

impl Drop for ChunkReceiver {
    fn drop(&mut self) {
        self.budget.stop();
    }
}
