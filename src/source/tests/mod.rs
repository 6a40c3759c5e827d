pub(crate) mod brokers;
mod conformance;
pub(crate) mod mock;
