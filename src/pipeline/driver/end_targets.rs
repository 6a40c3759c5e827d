//! The ends of the source partitions, and the end of a run that does not follow its topics.

use crate::pipeline::config::Mode;
use crate::pipeline::engine::Engine;
use crate::pipeline::partition_discovery::EndOffsets;

/// The known ends, and the offsets at which a run with an end is complete.
pub struct EndTargets {
    has_end: bool,
    ends: EndOffsets,
    targets: Option<EndOffsets>,
}

impl EndTargets {
    /// No end is known yet.
    pub fn new(mode: Mode) -> Self {
        Self { has_end: mode != Mode::Follow, ends: EndOffsets::new(), targets: None }
    }

    /// The newest known ends.
    pub fn ends(&self) -> &EndOffsets {
        &self.ends
    }

    /// Records the ends of a discovery.
    pub fn update(&mut self, ends: EndOffsets) {
        self.ends.extend(ends);
    }

    /// Makes the known ends the targets of the run, if it has an end and no targets yet. To be
    /// called once all partitions are known and have joined.
    pub fn set_targets(&mut self) {
        if self.has_end && self.targets.is_none() {
            self.targets = Some(self.ends.clone());
        }
    }

    /// Whether the engine has reached every target.
    pub fn are_reached(&self, engine: &Engine) -> bool {
        let Some(targets) = &self.targets else { return false };
        targets
            .iter()
            .all(|(partition, end)| engine.position(partition).is_some_and(|at| at.offset >= *end))
    }
}
