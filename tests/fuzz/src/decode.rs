//! Decodes records, separated by 0xfe, with the decoder, its reference implementation and serde_json.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use millstream_fuzz::decode::Decoder;
use millstream_fuzz::decode::tests::differential::{ZONE, agrees_with_serde_json, compare, fields};

thread_local! {
    static DECODER: RefCell<Decoder> = RefCell::new(Decoder::new(fields(), ZONE).unwrap());
}

fuzz_target!(|data: &[u8]| {
    let records: Vec<_> = data.split(|byte| *byte == 0xfe).map(|r| Some(r.to_vec())).collect();
    DECODER.with_borrow_mut(|decoder| compare(decoder, &fields(), &records)).unwrap();
    for record in records.iter().flatten() {
        assert!(agrees_with_serde_json(record));
    }
});
