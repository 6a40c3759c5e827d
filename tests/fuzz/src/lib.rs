//! The parts of the crate that read untrusted bytes, with their reference implementations. They are built
//! alone, because a build of the whole crate with coverage takes half an hour.

#![allow(dead_code, unused_imports, missing_docs)]

#[path = "../../../src/decode/mod.rs"]
pub mod decode;
pub mod error;
#[path = "../../../src/time.rs"]
pub mod time;
#[path = "../../../src/watermark.rs"]
pub mod watermark;

#[path = "../../../src/source"]
pub mod source {
    pub mod chunk;
    mod partition;
    mod varint;

    pub use partition::TopicPartition;

    pub mod native {
        mod batch;
        pub mod hostile;
    }
}

#[path = "../../../src/log"]
pub mod log {
    pub mod hostile;
    pub mod progress;
}

/// The reference implementations of the decoder.
#[path = "../../../src/decode"]
pub mod twin {
    pub use crate::decode::*;

    pub mod differential;
    pub mod reference;
}

pub use error::{Error, Kind, Result};
