//! Types that several stages share; they depend on nothing but `error` and `time`.

mod event_rows;
mod out_record;
mod position;
mod topic_partition;
mod window_spec;

pub use event_rows::{HistoryRows, event_schema};
pub use out_record::OutRecord;
pub use position::SourcePosition;
pub use topic_partition::TopicPartition;
pub use window_spec::{Size, TruncUnit, WindowSpec};
