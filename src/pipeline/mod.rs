//! One customer's pipeline: the only module that names every stage.
//!
//! ```text
//!  supervisor ─► recovery ─► RunningPipeline ─► driver ─► engine
//!      ▲                                          │
//!      └────────── failure: restart ──────────────┘
//! ```
//!
//! [`rebuild`] calls the phases of recovery and then the driver with a sink that collects records.

mod config;
mod driver;
pub(crate) mod engine;
mod history;
mod output_dedup;
mod partition_discovery;
mod planning;
pub mod rebuild;
mod recovery;
mod reporter;
mod running_pipeline;
mod snapshot_lifecycle;
mod stop;
mod supervisor;
#[cfg(test)]
mod tests;
mod topic_reader;
mod topics;

pub use config::{Mode, OnMissingOffsets, PipelineConfig, Reset, cores, history_root};
pub use engine::query_state::publication;
pub use engine::row_reader::decoder;
pub use engine::{Engine, EngineOutput, reference_tables};
pub use planning::plan;
pub use supervisor::run;
pub use topic_reader::{read_range, read_topic};
