//! The order in which windows close.

use crate::time::{Micros, Window};

/// The place of a window in the order of closing: (end, start).
pub(crate) type ClosingKey = (Micros, Micros);

/// Returns the place of `window` in the order of closing.
pub(crate) fn closing_key(window: Window) -> ClosingKey {
    (window.end, window.start)
}

/// Returns the window at a place in the order of closing.
pub(crate) fn window_at((end, start): ClosingKey) -> Window {
    Window { start, end }
}
