//! The physical operators that the planner adds to DataFusion's.

pub(crate) mod inputs;
pub(crate) mod key_counts;
pub(crate) mod offset_order;
pub(crate) mod placeholder;
