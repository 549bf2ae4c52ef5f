//! Changing one number in a protobuf record and leaving all else as it is, fields this crate does not know included.

/// `record` with the number (wire type varint) at `path` set to `value`: field numbers from the outermost message inwards.
/// A field that is absent is added at the end of its message. `None` when the record is malformed or a field on the way is no
/// message.
pub(crate) fn set_number(record: &[u8], path: &[u32], value: u64) -> Option<Vec<u8>> {
    let (&wanted, deeper) = path.split_first()?;
    let mut out = Vec::with_capacity(record.len() + 10);
    let mut rest = record;
    let mut found = false;
    while !rest.is_empty() {
        let start = rest;
        let tag = take_varint(&mut rest)?;
        let content = take_content(&mut rest, tag & 7)?;
        if tag >> 3 != u64::from(wanted) {
            out.extend_from_slice(start.get(..start.len() - rest.len())?);
            continue;
        }
        found = true;
        put_varint(&mut out, tag);
        match (deeper.is_empty(), tag & 7) {
            (true, VARINT) => put_varint(&mut out, value),
            (false, LENGTH) => put_bytes(&mut out, &set_number(content, deeper, value)?),
            _ => return None,
        }
    }
    if !found {
        if deeper.is_empty() {
            put_varint(&mut out, u64::from(wanted) << 3 | VARINT);
            put_varint(&mut out, value);
        } else {
            put_varint(&mut out, u64::from(wanted) << 3 | LENGTH);
            put_bytes(&mut out, &set_number(&[], deeper, value)?);
        }
    }
    Some(out)
}

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// What follows a tag; for a length-delimited field without its length.
fn take_content<'a>(rest: &mut &'a [u8], wire_type: u64) -> Option<&'a [u8]> {
    let length = match wire_type {
        VARINT => {
            let start = *rest;
            take_varint(rest)?;
            return start.get(..start.len() - rest.len());
        }
        FIXED64 => 8,
        LENGTH => usize::try_from(take_varint(rest)?).ok()?,
        FIXED32 => 4,
        _ => return None,
    };
    let (content, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(content)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    struct Inner {
        #[prost(uint32, optional, tag = "6")]
        net: Option<u32>,
        #[prost(fixed64, optional, tag = "7")]
        other: Option<u64>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Outer {
        #[prost(uint32, required, tag = "1")]
        version: u32,
        #[prost(message, optional, tag = "3")]
        inner: Option<Inner>,
        #[prost(uint32, optional, tag = "5")]
        set: Option<u32>,
        #[prost(string, optional, tag = "13")]
        run: Option<String>,
    }

    fn outer(set: Option<u32>, net: Option<u32>) -> Outer {
        Outer {
            version: 300,
            inner: Some(Inner {
                net,
                other: Some(5),
            }),
            set,
            run: Some("x".repeat(200)),
        }
    }

    #[test]
    fn one_number_changes() {
        for (before, path, after) in [
            (
                outer(Some(1), Some(2)),
                &[5][..],
                outer(Some(70_000), Some(2)),
            ),
            (outer(None, Some(2)), &[5], outer(Some(70_000), Some(2))),
            (
                outer(Some(1), Some(2)),
                &[3, 6],
                outer(Some(1), Some(70_000)),
            ),
            (outer(Some(1), None), &[3, 6], outer(Some(1), Some(70_000))),
        ] {
            let changed = set_number(&before.encode_to_vec(), path, 70_000).unwrap();
            assert_eq!(Outer::decode(&changed[..]).unwrap(), after);
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        let good = outer(Some(1), Some(2)).encode_to_vec();
        for length in 1..good.len() {
            // Cut off anywhere: either refused or, between fields, a shorter message.
            if let Some(changed) = set_number(&good[..length], &[5], 9) {
                assert!(changed.len() >= length.saturating_sub(1));
            }
        }
        assert_eq!(set_number(&[0xff; 20], &[1], 1), None);
        assert_eq!(set_number(&good, &[13], 1), None, "text is no number");
        assert_eq!(
            set_number(&good, &[1, 2], 1),
            None,
            "a number is no message"
        );
    }
}
