//! Kafka's variable-length integers: zigzag encoding, then groups of seven bits, lowest first.

/// Reads an integer at `at` and advances `at`; `None`: it is truncated or has too many groups.
// Always inlined: it is called for every field of every record, and the crate is built with
// little optimisation.
#[inline(always)]
pub(super) fn read(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let first = *bytes.get(*at)?;
    *at += 1;
    if first < 0x80 {
        return Some(unzigzag(u64::from(first)));
    }
    let second = *bytes.get(*at)?;
    *at += 1;
    let two = u64::from(first & 0x7f) | u64::from(second & 0x7f) << 7;
    if second < 0x80 { Some(unzigzag(two)) } else { read_rest(bytes, at, two) }
}

/// Reads the rest of an integer of more than two groups.
fn read_rest(bytes: &[u8], at: &mut usize, mut value: u64) -> Option<i64> {
    for shift in (14..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(unzigzag(value));
        }
    }
    None
}

/// Appends an integer.
pub(super) fn write(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[inline(always)]
fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_every_width_round_trip() {
        let edges = [0, 1, -1, 63, 64, -64, -65, 8191, 8192, i64::MAX, i64::MIN];
        for value in edges.into_iter().chain([i64::from(i32::MAX), i64::from(i32::MIN)]) {
            let mut bytes = Vec::new();
            write(&mut bytes, value);
            let mut at = 0;
            assert_eq!((read(&bytes, &mut at), at), (Some(value), bytes.len()));
            for length in 0..bytes.len() {
                assert_eq!(read(&bytes[..length], &mut 0), None);
            }
        }
        assert_eq!(read(&[0xff; 11], &mut 0), None);
    }
}
