//! Decompression of record batches: gzip, snappy (raw and in xerial's framing), lz4, zstd.
//!
//! Promise: the output is appended to a buffer of the caller, and is at most
//! [`MAX_BATCH_BYTES`] per batch, whatever the input claims.

use std::io::{self, Read};

/// The largest size of one decompressed batch. The largest batch of a broker has 2 GB, the default
/// is 1 MB; a small batch that claims more than this is an attack or a defect.
const MAX_BATCH_BYTES: usize = 1 << 30;
/// The magic bytes of xerial's snappy framing; two versions of four bytes follow.
const XERIAL: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_BYTES: usize = 16;

/// Appends the decompressed bytes of `input` to `out`. `codec` is the number in a batch's attributes.
///
/// # Errors
/// Input that the codec rejects, an unknown codec, or too much output.
pub(super) fn decompress(codec: u8, input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    match codec {
        1 => read_to_limit(flate2::read::MultiGzDecoder::new(input), out),
        2 => decompress_snappy(input, out),
        3 => read_to_limit(lz4_flex::frame::FrameDecoder::new(input), out),
        4 => read_to_limit(zstd::stream::read::Decoder::with_buffer(input)?, out),
        _ => Err(invalid(format!("unknown compression codec {codec}"))),
    }
}

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn read_to_limit(from: impl Read, out: &mut Vec<u8>) -> io::Result<()> {
    let read = from.take(MAX_BATCH_BYTES as u64 + 1).read_to_end(out)?;
    if read > MAX_BATCH_BYTES { Err(too_large()) } else { Ok(()) }
}

fn too_large() -> io::Error {
    invalid("one batch decompresses to more than 1 GiB")
}

fn decompress_snappy(input: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    if !input.starts_with(XERIAL) {
        return decompress_snappy_block(input, out, MAX_BATCH_BYTES);
    }
    let truncated = || invalid("a snappy stream is truncated");
    let mut rest = input.get(XERIAL_HEADER_BYTES..).ok_or_else(truncated)?;
    let mut max_bytes = MAX_BATCH_BYTES;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(truncated)?;
        let length = u32::from_be_bytes(*length) as usize;
        let block = after.get(..length).ok_or_else(truncated)?;
        let before = out.len();
        decompress_snappy_block(block, out, max_bytes)?;
        max_bytes -= out.len() - before;
        rest = &after[length..];
    }
    Ok(())
}

fn decompress_snappy_block(block: &[u8], out: &mut Vec<u8>, max_bytes: usize) -> io::Result<()> {
    let length = snap::raw::decompress_len(block).map_err(invalid)?;
    if length > max_bytes {
        return Err(too_large());
    }
    let start = out.len();
    out.resize(start + length, 0);
    let written =
        snap::raw::Decoder::new().decompress(block, &mut out[start..]).map_err(invalid)?;
    out.truncate(start + written);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn text() -> Vec<u8> {
        (0..20_000).flat_map(|n| format!("{{\"n\":{n}}}").into_bytes()).collect()
    }

    fn compressed(codec: u8, text: &[u8]) -> Vec<u8> {
        match codec {
            1 => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                gzip.write_all(text).unwrap();
                gzip.finish().unwrap()
            }
            2 => snap::raw::Encoder::new().compress_vec(text).unwrap(),
            3 => {
                let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
                lz4.write_all(text).unwrap();
                lz4.finish().unwrap()
            }
            _ => zstd::stream::encode_all(text, 3).unwrap(),
        }
    }

    fn xerial(text: &[u8]) -> Vec<u8> {
        let mut framed = XERIAL.to_vec();
        framed.extend([0, 0, 0, 1, 0, 0, 0, 1]);
        for block in text.chunks(32 << 10) {
            let block = compressed(2, block);
            framed.extend((block.len() as u32).to_be_bytes());
            framed.extend(block);
        }
        framed
    }

    #[test]
    fn every_codec_appends_the_original_bytes() {
        let text = text();
        for codec in 1..=4 {
            let mut out = b"before".to_vec();
            decompress(codec, &compressed(codec, &text), &mut out).unwrap();
            assert_eq!(out, [b"before", &text[..]].concat(), "codec {codec}");
        }
        let mut out = Vec::new();
        decompress(2, &xerial(&text), &mut out).unwrap();
        assert_eq!(out, text);
    }

    #[test]
    fn truncated_or_changed_bytes_never_cause_a_panic() {
        let text = text();
        for codec in 1..=4 {
            let whole = compressed(codec, &text);
            assert!(
                decompress(codec, &whole[..whole.len() / 2], &mut Vec::new()).is_err(),
                "{codec}"
            );
            for at in (0..whole.len()).step_by(97) {
                let mut bad = whole.clone();
                bad[at] ^= 0x55;
                let _ = decompress(codec, &bad, &mut Vec::new());
            }
        }
        let framed = xerial(&text);
        assert!(decompress(2, &framed[..framed.len() - 1], &mut Vec::new()).is_err());
        assert!(decompress(2, &framed[..12], &mut Vec::new()).is_err());
        assert!(decompress(5, b"", &mut Vec::new()).is_err());
    }

    #[test]
    fn a_batch_that_decompresses_to_too_much_is_rejected() {
        // A snappy block that claims 2 GiB.
        assert!(decompress(2, &[0x80, 0x80, 0x80, 0x80, 0x08, 0], &mut Vec::new()).is_err());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        let zeros = vec![0; 1 << 20];
        (0..1025).for_each(|_| gzip.write_all(&zeros).unwrap());
        assert!(decompress(1, &gzip.finish().unwrap(), &mut Vec::new()).is_err());
    }
}
