//! Decompression of record batches: gzip, snappy (raw and in xerial's framing), lz4, zstd.
//!
//! Promise: what comes out is appended to a buffer that the caller gives, and never more than
//! [`MOST_BYTES`] of one batch, whatever its bytes say.

use std::io::{self, Read};

/// The most that one batch may take when it is unpacked. A broker's largest batch is 2 GB, its
/// default 1 MB; a small batch that claims more than this is an attack or a defect.
const MOST_BYTES: usize = 1 << 30;
/// What xerial's snappy library begins a stream with; two versions of four bytes follow.
const XERIAL: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER_BYTES: usize = 16;

/// Appends the plain bytes of `packed` to `out`. `codec` is the number in a batch's attributes.
///
/// # Errors
/// Bytes that the codec does not take, a codec that is not known, or too many bytes.
pub(super) fn unpack(codec: u8, packed: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    match codec {
        1 => drain(flate2::read::MultiGzDecoder::new(packed), out),
        2 => snappy(packed, out),
        3 => drain(lz4_flex::frame::FrameDecoder::new(packed), out),
        4 => drain(zstd::stream::read::Decoder::with_buffer(packed)?, out),
        _ => Err(invalid(format!("compression {codec} is not known"))),
    }
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn drain(from: impl Read, out: &mut Vec<u8>) -> io::Result<()> {
    let read = from.take(MOST_BYTES as u64 + 1).read_to_end(out)?;
    if read > MOST_BYTES { Err(too_much()) } else { Ok(()) }
}

fn too_much() -> io::Error {
    invalid("one batch unpacks to more than 1 GiB")
}

fn snappy(packed: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    if !packed.starts_with(XERIAL) {
        return snappy_block(packed, out, MOST_BYTES);
    }
    let cut = || invalid("a snappy stream is cut off");
    let mut rest = packed.get(XERIAL_HEADER_BYTES..).ok_or_else(cut)?;
    let mut room = MOST_BYTES;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_be_bytes(*length) as usize;
        let block = after.get(..length).ok_or_else(cut)?;
        let before = out.len();
        snappy_block(block, out, room)?;
        room -= out.len() - before;
        rest = &after[length..];
    }
    Ok(())
}

fn snappy_block(block: &[u8], out: &mut Vec<u8>, room: usize) -> io::Result<()> {
    let length = snap::raw::decompress_len(block).map_err(invalid)?;
    if length > room {
        return Err(too_much());
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

    fn packed(codec: u8, text: &[u8]) -> Vec<u8> {
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
            let block = packed(2, block);
            framed.extend((block.len() as u32).to_be_bytes());
            framed.extend(block);
        }
        framed
    }

    #[test]
    fn every_codec_gives_the_bytes_back_after_what_is_there() {
        let text = text();
        for codec in 1..=4 {
            let mut out = b"before".to_vec();
            unpack(codec, &packed(codec, &text), &mut out).unwrap();
            assert_eq!(out, [b"before", &text[..]].concat(), "codec {codec}");
        }
        let mut out = Vec::new();
        unpack(2, &xerial(&text), &mut out).unwrap();
        assert_eq!(out, text);
    }

    #[test]
    fn bytes_that_are_cut_or_changed_are_refused_and_never_a_panic() {
        let text = text();
        for codec in 1..=4 {
            let whole = packed(codec, &text);
            assert!(unpack(codec, &whole[..whole.len() / 2], &mut Vec::new()).is_err(), "{codec}");
            for at in (0..whole.len()).step_by(97) {
                let mut bad = whole.clone();
                bad[at] ^= 0x55;
                let _ = unpack(codec, &bad, &mut Vec::new());
            }
        }
        let framed = xerial(&text);
        assert!(unpack(2, &framed[..framed.len() - 1], &mut Vec::new()).is_err());
        assert!(unpack(2, &framed[..12], &mut Vec::new()).is_err());
        assert!(unpack(5, b"", &mut Vec::new()).is_err());
    }

    #[test]
    fn a_batch_that_unpacks_to_too_much_is_refused() {
        // A snappy block that claims 2 GiB.
        assert!(unpack(2, &[0x80, 0x80, 0x80, 0x80, 0x08, 0], &mut Vec::new()).is_err());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        let zeros = vec![0; 1 << 20];
        (0..1025).for_each(|_| gzip.write_all(&zeros).unwrap());
        assert!(unpack(1, &gzip.finish().unwrap(), &mut Vec::new()).is_err());
    }
}
