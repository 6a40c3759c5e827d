//! Reads progress records, one per line.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use millstream_fuzz::commit::tests::hostile::check;

fuzz_target!(|data: &[u8]| {
    let records: Vec<_> = data.split(|byte| *byte == b'\n').map(Bytes::copy_from_slice).collect();
    check(&records).unwrap();
});
