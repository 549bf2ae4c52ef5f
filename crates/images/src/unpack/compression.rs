//! Undoing whatever compression a layer has, told by its first bytes and not by what its media type claims.

use std::io::{self, BufRead, BufReader, Read};

/// A reader of the plain bytes: gzip (RFC 1952, also several members in a row), zstd (RFC 8878) or as they are.
pub(crate) fn decompress<'a>(raw: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut raw = BufReader::with_capacity(128 << 10, raw);
    let start = raw.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(BufReader::with_capacity(
            128 << 10,
            flate2::bufread::MultiGzDecoder::new(raw),
        )))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable(start) {
        // The library's own bound on the window, 128 MiB, is what the format's RFC recommends at least 8 MiB of.
        Ok(Box::new(zstd::stream::read::Decoder::with_buffer(raw)?))
    } else {
        Ok(Box::new(raw))
    }
}

/// A skippable zstd frame may come first (zstd:chunked layers have them).
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}
