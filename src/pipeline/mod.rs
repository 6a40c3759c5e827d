//! One customer's pipeline: the only module that names every stage.

mod config;
mod driver;
pub(crate) mod engine;
mod history;
mod partition_discovery;
pub mod rebuild;
mod recovery;
mod reporter;
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
pub use recovery::plan;
pub use supervisor::run;
pub use topic_reader::{read_range, read_topic};
