//! Shared by the integration tests: a real Kafka if there is one, project folders, the real binary with
//! a time limit, a network proxy, and a batch oracle for SQL.

pub mod kafka;
pub mod oracle;
pub mod process;
pub mod project;
pub mod proxy;
