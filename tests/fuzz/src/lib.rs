//! The parts of the crate that read untrusted bytes, with their reference implementations. They are built
//! alone, because a build of the whole crate with coverage takes half an hour.
//!
//! The modules have the same paths as in the crate, because the files refer to each other by absolute
//! paths. The `tests` modules are declared here because the crate declares them only for its tests.

#![allow(dead_code, unused_imports, missing_docs)]

pub mod error;
#[path = "../../../src/time.rs"]
pub mod time;
#[path = "../../../src/watermark.rs"]
pub mod watermark;

#[path = "../../../src/types"]
pub mod types {
    mod position;
    mod topic_partition;

    pub use position::SourcePosition;
    pub use topic_partition::TopicPartition;
}

#[path = "../../../src/source"]
pub mod source {
    pub mod chunk;
    mod varint;

    pub mod native {
        mod record_batch;

        pub mod tests {
            pub mod hostile;
        }
    }
}

#[path = "../../../src/decode"]
pub mod decode {
    mod civil_date;
    mod column;
    mod decoder;
    mod field;
    mod key_order;
    mod local_zone;
    mod number;
    mod reason;
    mod rejection;
    mod scanner;
    mod text_builder;
    pub mod timestamp;

    pub use decoder::{Decoded, Decoder};
    pub use field::Field;
    pub use reason::Reason;
    pub use rejection::{RejectedMessage, Rejection};
    pub use timestamp::TimestampFormat;

    pub mod tests {
        pub mod differential;
        mod reference_decoder;
    }
}

#[path = "../../../src/commit"]
pub mod commit {
    mod process;
    pub mod progress;

    pub mod tests {
        pub mod hostile;
    }
}

pub use error::{Error, Kind, Result};
