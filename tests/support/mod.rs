//! What the tests stand on: a real Kafka if there is one, projects in folders of their own, the
//! real binary under a time limit, and a slow and simple second opinion on what SQL means.

pub mod kafka;
pub mod oracle;
pub mod process;
pub mod project;
pub mod proxy;
