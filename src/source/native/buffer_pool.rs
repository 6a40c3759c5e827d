//! Buffers for responses, used again when the last chunk over one is gone.
//!
//! A fresh buffer of some MB costs the system's pages once more; one that was used is in the
//! processor's cache. Small responses are not worth it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers smaller than this are not kept.
const SMALL_BYTES: usize = 64 << 10;
/// No more than this is kept while it is not used.
const KEPT_BYTES: usize = 16 << 20;

/// The buffers that nobody uses.
#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<Vec<u8>>>,
}

/// A buffer that goes back to its pool.
struct Held {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = idle.iter().map(Vec::capacity).sum();
        if kept + self.bytes.capacity() <= KEPT_BYTES {
            self.bytes.clear();
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl Pool {
    /// An empty buffer with room for `bytes` at least.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        if bytes < SMALL_BYTES {
            return Vec::with_capacity(bytes);
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // The one used last is warm.
        match idle.iter().rposition(|buffer| buffer.capacity() >= bytes) {
            Some(index) => idle.swap_remove(index),
            None => Vec::with_capacity(bytes.next_power_of_two()),
        }
    }

    /// `bytes`, shared; the buffer comes back when nobody uses it any more.
    pub(super) fn share(self: &Arc<Self>, bytes: Vec<u8>) -> Bytes {
        if bytes.len() < SMALL_BYTES {
            return Bytes::from(bytes);
        }
        Bytes::from_owner(Held { bytes, pool: Arc::clone(self) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_slice_is_gone() {
        let pool = Arc::new(Pool::default());
        let mut bytes = pool.take(100_000);
        bytes.resize(100_000, 7);
        let place = bytes.as_ptr();
        let shared = pool.share(bytes);
        let slice = shared.slice(99_999..);
        drop(shared);
        assert_eq!(slice[..], [7]);
        let other = pool.take(100_000);
        assert_ne!(other.as_ptr(), place, "a slice still uses it");
        drop(slice);
        let again = pool.take(90_000);
        assert!(again.as_ptr() == place && again.is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let pool = Arc::new(Pool::default());
        let all: Vec<_> = (0..40).map(|_| pool.share(vec![0; 1 << 20])).collect();
        drop(all);
        let kept: usize = pool.idle.lock().unwrap().iter().map(Vec::capacity).sum();
        assert!(kept <= KEPT_BYTES && kept > KEPT_BYTES / 2, "{kept}");
    }
}
