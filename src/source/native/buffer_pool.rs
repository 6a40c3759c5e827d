//! A pool of response buffers, which are reused when the last chunk over one is dropped.
//!
//! A new buffer of some MB costs page faults; a reused one is in the processor's cache. Small
//! responses are not pooled.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers smaller than this are not pooled.
const MIN_POOLED_BYTES: usize = 64 << 10;
/// The maximum capacity of all idle buffers together.
const MAX_IDLE_BYTES: usize = 16 << 20;

/// The idle buffers.
#[derive(Default)]
pub(super) struct BufferPool {
    idle: Mutex<Vec<Vec<u8>>>,
}

/// A buffer that returns to its pool when it is dropped.
struct PooledBuffer {
    bytes: Vec<u8>,
    pool: Arc<BufferPool>,
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle_bytes: usize = idle.iter().map(Vec::capacity).sum();
        if idle_bytes + self.bytes.capacity() <= MAX_IDLE_BYTES {
            self.bytes.clear();
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl BufferPool {
    /// Returns an empty buffer with room for at least `bytes`.
    pub(super) fn acquire(&self, bytes: usize) -> Vec<u8> {
        if bytes < MIN_POOLED_BYTES {
            return Vec::with_capacity(bytes);
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // The buffer that was used last is in the cache.
        match idle.iter().rposition(|buffer| buffer.capacity() >= bytes) {
            Some(index) => idle.swap_remove(index),
            None => Vec::with_capacity(bytes.next_power_of_two()),
        }
    }

    /// Shares `bytes`; the buffer returns to the pool when the last reference is dropped.
    pub(super) fn share(self: &Arc<Self>, bytes: Vec<u8>) -> Bytes {
        if bytes.len() < MIN_POOLED_BYTES {
            return Bytes::from(bytes);
        }
        Bytes::from_owner(PooledBuffer { bytes, pool: Arc::clone(self) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_reused_after_its_last_slice_is_dropped() {
        let pool = Arc::new(BufferPool::default());
        let mut bytes = pool.acquire(100_000);
        bytes.resize(100_000, 7);
        let address = bytes.as_ptr();
        let shared = pool.share(bytes);
        let slice = shared.slice(99_999..);
        drop(shared);
        assert_eq!(slice[..], [7]);
        let other = pool.acquire(100_000);
        assert_ne!(other.as_ptr(), address, "a slice still refers to it");
        drop(slice);
        let again = pool.acquire(90_000);
        assert!(again.as_ptr() == address && again.is_empty());
    }

    #[test]
    fn idle_buffers_are_bounded() {
        let pool = Arc::new(BufferPool::default());
        let all: Vec<_> = (0..40).map(|_| pool.share(vec![0; 1 << 20])).collect();
        drop(all);
        let idle_bytes: usize = pool.idle.lock().unwrap().iter().map(Vec::capacity).sum();
        assert!(idle_bytes <= MAX_IDLE_BYTES && idle_bytes > MAX_IDLE_BYTES / 2, "{idle_bytes}");
    }
}
