//! Reads a record batch, with its length corrected, with the reader and its reference implementation.

#![no_main]

use libfuzzer_sys::fuzz_target;
use millstream_fuzz::source::native::tests::hostile::check;

fuzz_target!(|data: &[u8]| {
    check(data).unwrap();
    let mut batch = data.to_vec();
    if batch.len() > 16 {
        batch[0] &= 0x7f;
        batch[8..12].copy_from_slice(&(data.len() as u32 - 12).to_be_bytes());
        batch[16] = 2;
        check(&batch).unwrap();
    }
});
