//! Moves memory out of CRIU's images to beside them, as a cut does (formats: `images/{pagemap,mm,vma}.proto` and `criu/page-xfer.c`
//! of CRIU 4.2).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

const PAGE: u64 = 4096;
/// Status and flags of a memory area: plain private memory without a file that does not grow by itself.
const ANON_PRIVATE: u64 = 1 << 9;
const SPECIAL: u64 = 1 << 3 | 1 << 12 | 1 << 13;
const GROWSDOWN: u64 = 0x100;

/// Moves all that may be moved and gives the number of pages.
pub(crate) fn thin(images: &Path) -> u64 {
    let mut moved = 0;
    for entry in fs::read_dir(images).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let number = name
            .strip_prefix("pagemap-")
            .and_then(|rest| rest.strip_suffix(".img"))
            .and_then(|number| number.parse().ok());
        if let Some(number) = number {
            moved += thin_process(images, number);
        }
    }
    moved
}

fn thin_process(images: &Path, number: u32) -> u64 {
    let (_, mm) = records(&images.join(format!("mm-{number}.img")));
    let areas: Vec<(u64, u64)> = fields(&mm[0])
        .filter_map(|(field, value)| match (field, value) {
            (14, Value::Bytes(bytes)) => Some(bytes),
            _ => None,
        })
        .map(|bytes| [1, 2, 6, 7].map(|wanted| number_of(bytes, wanted).unwrap()))
        .filter(|[_, _, flags, status]| {
            status & ANON_PRIVATE != 0 && status & SPECIAL == 0 && flags & GROWSDOWN == 0
        })
        .map(|[start, end, ..]| (start, end))
        .collect();
    let path = images.join(format!("pagemap-{number}.img"));
    let (head, entries) = records(&path);
    let (id, runs) = entries.split_first().unwrap();
    let pages_path = images.join(format!("pages-{}.img", number_of(id, 1).unwrap()));
    let pages = File::options()
        .read(true)
        .write(true)
        .open(&pages_path)
        .unwrap();
    let memory = File::create(images.join(format!("memory-{number}"))).unwrap();
    let (mut list, mut kept) = (Vec::new(), vec![id.clone()]);
    let (mut from, mut to, mut moved) = (0, 0, 0);
    for run in runs {
        let start = number_of(run, 1).unwrap();
        let count = number_of(run, 5).unwrap_or(number_of(run, 2).unwrap());
        let flags = number_of(run, 4).unwrap();
        for address in (start..)
            .step_by(4096)
            .take(usize::try_from(count).unwrap())
        {
            let mut page = [0; 4096];
            pages.read_exact_at(&mut page, from).unwrap();
            from += PAGE;
            if areas
                .iter()
                .any(|(start, end)| (start..end).contains(&&address))
            {
                memory.write_all_at(&page, address).unwrap();
                list.extend([address, 1].map(u64::to_le_bytes).concat());
                moved += 1;
            } else {
                // behind what was read
                pages.write_all_at(&page, to).unwrap();
                to += PAGE;
                kept.push([entry(1, address), entry(2, 1), entry(4, flags), entry(5, 1)].concat());
            }
        }
    }
    pages.set_len(to).unwrap();
    fs::write(images.join(format!("memory-{number}.pages")), list).unwrap();
    let mut file = head;
    for record in kept {
        file.extend(u32::try_from(record.len()).unwrap().to_le_bytes());
        file.extend(record);
    }
    fs::write(path, file).unwrap();
    moved
}

/// The two magic numbers, and what follows: messages with their length before them.
fn records(path: &Path) -> (Vec<u8>, Vec<Vec<u8>>) {
    let bytes = fs::read(path).unwrap();
    let (head, mut rest) = bytes.split_at(8);
    let mut all = Vec::new();
    while let Some((len, after)) = rest.split_first_chunk::<4>() {
        let (record, after) = after.split_at(u32::from_le_bytes(*len) as usize);
        all.push(record.to_vec());
        rest = after;
    }
    (head.to_vec(), all)
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message (protocol buffers' wire format).
fn fields(mut rest: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let key = varint(&mut rest);
        let value = match key & 7 {
            0 => Value::Number(varint(&mut rest)),
            2 => {
                let len = usize::try_from(varint(&mut rest)).unwrap();
                let (bytes, after) = rest.split_at(len);
                rest = after;
                Value::Bytes(bytes)
            }
            other => panic!("wire type {other}"),
        };
        Some((key >> 3, value))
    })
}

fn number_of(message: &[u8], wanted: u64) -> Option<u64> {
    fields(message).find_map(|(field, value)| match value {
        Value::Number(number) if field == wanted => Some(number),
        _ => None,
    })
}

fn varint(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (byte, after) = rest.split_first().unwrap();
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn entry(field: u64, mut value: u64) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(field << 3).unwrap()];
    while value > 0x7f {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}
