//! CRIU's image files: what is read from a finished set, and what is changed in it so that the clone can use it.
//!
//! An image file is a magic number or two (little-endian `u32`), then records: length (little-endian `u32`) and protobuf
//! (`images/` and `criu/include/magic.h` of CRIU 4.2).

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use crate::container::Container;
use crate::error::CriuError;
use crate::rpc::{Cgroups, DumpStats, IdExtent, Inventory, PsTree, RemapFilePath, Stats, UserNs};
use crate::wire::set_number;

/// First word of most images, followed by a second one that names the kind.
pub(crate) const COMMON_MAGIC: u32 = 0x5456_4319;
/// First word of service files such as the statistics.
const SERVICE_MAGIC: u32 = 0x5510_5940;
/// Second word of `userns-<n>.img`.
const USERNS_MAGIC: u32 = 0x5547_4906;
/// Second word of `stats-dump`.
const STATS_MAGIC: u32 = 0x5709_3306;
/// Second word of `pstree.img`.
const PSTREE_MAGIC: u32 = 0x5027_3030;
/// Second word of `mm-<pid>.img`.
pub(crate) const MM_MAGIC: u32 = 0x5749_2820;
/// Second word of `pagemap-<pid>.img`.
pub(crate) const PAGEMAP_MAGIC: u32 = 0x5608_4025;
/// The only word of `inventory.img`.
const INVENTORY_MAGIC: u32 = 0x5831_3116;
/// Second word of `cgroup.img`.
const CGROUP_MAGIC: u32 = 0x5938_3330;
/// Second word of `remap-fpath.img`.
const REMAP_MAGIC: u32 = 0x5913_3954;
/// `root_cg_set` of `inventory_entry`: the cgroups that CRIU itself was in.
const INVENTORY_CGROUPS: &[u32] = &[5];
/// `root_ids.net_ns_id` of `inventory_entry`: the network namespace that CRIU itself was in.
const INVENTORY_NETWORK: &[u32] = &[3, 6];
/// A namespace that no image names: CRIU numbers them from 1.
const ELSEWHERE: u64 = 0x7fff_ffff;
/// The files that are read whole here are small; more than this is not one of them.
const SMALL: u64 = 16 * 1024 * 1024;
/// Where `runc restore` looks for the descriptors that the container was started with.
const DESCRIPTORS: &str = "descriptors.json";

/// What one dump left behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// What CRIU counted.
    pub(crate) stats: DumpStats,
    pub(crate) processes: u32,
}

/// Gives the clone its own range of ids: inside nothing changes, outside id 0 becomes `id_base`.
///
/// Every other image holds ids as the container sees them, because CRIU translates them when it dumps; only the map itself
/// (`userns-<n>.img`) has host ids. May be repeated.
///
/// # Errors
/// When `images` holds no user namespace, or more than one, or it cannot be written.
pub fn rewrite_ids(images: &Path, id_base: u32, id_count: u32) -> Result<(), CriuError> {
    let mut found = None;
    for entry in fs::read_dir(images).map_err(|e| broken(images, "cannot be listed", Some(e)))? {
        let path = entry
            .map_err(|e| broken(images, "cannot be listed", Some(e)))?
            .path();
        if name_of(&path).is_some_and(|n| n.starts_with("userns-") && n.ends_with(".img")) {
            if found.is_some() {
                return Err(broken(images, "holds more than one user namespace", None));
            }
            found = Some(path);
        }
    }
    let path = found.ok_or_else(|| broken(images, "holds no user namespace", None))?;
    let map = |old: &[IdExtent]| -> Result<Vec<IdExtent>, CriuError> {
        match old {
            [
                IdExtent {
                    first: 0, count, ..
                },
            ] if *count <= id_count => Ok(vec![IdExtent {
                first: 0,
                lower_first: id_base,
                count: id_count,
            }]),
            _ => Err(broken(
                &path,
                &format!("maps ids in a way that does not fit {id_count} ids from 0: {old:?}"),
                None,
            )),
        }
    };
    let records = read_records(&path, &[COMMON_MAGIC, USERNS_MAGIC])?;
    let [record] = records.as_slice() else {
        return Err(broken(&path, "does not hold one record", None));
    };
    let old: UserNs = decode(&path, record)?;
    let new = UserNs {
        uid_map: map(&old.uid_map)?,
        gid_map: map(&old.gid_map)?,
    };
    write_records(&path, &[COMMON_MAGIC, USERNS_MAGIC], &[new.encode_to_vec()])
}

/// Whether the dump gave a name to a file that had lost its own. When that cannot be told, it may have.
pub(crate) fn has_named_files(images: &Path) -> bool {
    let path = images.join("remap-fpath.img");
    if !path.exists() {
        return false;
    }
    read_records(&path, &[COMMON_MAGIC, REMAP_MAGIC]).map_or(true, |records| {
        records.iter().any(|record| {
            decode::<RemapFilePath>(&path, record).map_or(true, |remap| {
                remap.kind.unwrap_or(RemapFilePath::LINKED) == RemapFilePath::LINKED
            })
        })
    })
}

/// Replaces an image as a whole.
pub(crate) fn write_records(
    path: &Path,
    magic: &[u32],
    records: &[Vec<u8>],
) -> Result<(), CriuError> {
    let mut bytes: Vec<u8> = magic.iter().flat_map(|word| word.to_le_bytes()).collect();
    for record in records {
        let length =
            u32::try_from(record.len()).map_err(|_| broken(path, "would be too long", None))?;
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(record);
    }
    let new_path = path.with_extension("new");
    fs::write(&new_path, bytes)
        .and_then(|()| fs::rename(&new_path, path))
        .map_err(|e| broken(path, "cannot be replaced", Some(e)))
}

/// Changes what the images say about where CRIU itself was, by which the restore decides what it has to make.
///
/// **Cgroups.** The images name the parent's, and runc 1.1 lets CRIU restore them: the clone's processes would end up in the
/// parent's node. So the list of cgroups is emptied, and the processes' own are said to be CRIU's, which means that they stay
/// where runc puts CRIU.
///
/// **Network.** CRIU dumps inside the node's network namespace, which spares it dumping the namespace (25 ms, most of it
/// looking for connection tracking). Here CRIU is said to have been elsewhere, so that the restore makes a namespace, empty:
/// which is what runc asks for.
fn change_inventory(images: &Path) -> Result<(), CriuError> {
    let cgroups = images.join("cgroup.img");
    let mut sets = Vec::new();
    for record in read_records(&cgroups, &[COMMON_MAGIC, CGROUP_MAGIC])? {
        sets.extend(
            decode::<Cgroups>(&cgroups, &record)?
                .sets
                .into_iter()
                .map(|set| set.id),
        );
    }
    let path = images.join("inventory.img");
    let records = read_records(&path, &[INVENTORY_MAGIC])?;
    let [record] = records.as_slice() else {
        return Err(broken(&path, "does not hold one record", None));
    };
    let criu = decode::<Inventory>(&path, record)?.root_cg_set;
    sets.retain(|id| Some(*id) != criu);
    let malformed = || broken(&path, "holds something else", None);
    let mut record = set_number(record, INVENTORY_NETWORK, ELSEWHERE).ok_or_else(malformed)?;
    match sets.as_slice() {
        [] => {} // the node was in the daemon's own, or this was done before
        [set] => {
            record =
                set_number(&record, INVENTORY_CGROUPS, u64::from(*set)).ok_or_else(malformed)?
        }
        _ => {
            return Err(broken(
                &cgroups,
                "has the node's processes in several cgroups",
                None,
            ));
        }
    }
    // In this order: if it is done again after a crash in between, the list is still there.
    write_records(&path, &[INVENTORY_MAGIC], &[record])?;
    write_records(&cgroups, &[COMMON_MAGIC, CGROUP_MAGIC], &[])
}

/// Completes what CRIU wrote, so that `runc restore` takes it. Not done in the freeze.
pub(crate) fn complete(images: &Path, container: &Container) -> Result<Summary, CriuError> {
    let descriptors = images.join(DESCRIPTORS);
    serde_json::to_vec(&container.descriptors)
        .map_err(io::Error::other)
        .and_then(|json| fs::write(&descriptors, json))
        .map_err(|e| broken(&descriptors, "cannot be written", Some(e)))?;
    change_inventory(images)?;
    summary(images)
}

/// Compresses the archives of tmpfs mounts as the restore expects them; the dump wrote them as they are, to be quick.
pub(crate) fn compress_tmpfs(images: &Path) -> Result<(), CriuError> {
    for entry in fs::read_dir(images).map_err(|e| broken(images, "cannot be listed", Some(e)))? {
        let path = entry
            .map_err(|e| broken(images, "cannot be listed", Some(e)))?
            .path();
        if name_of(&path).is_some_and(|n| n.starts_with("tmpfs-") && n.ends_with(".tar.gz.img")) {
            compress(&path).map_err(|e| broken(&path, "cannot be compressed", Some(e)))?;
        }
    }
    Ok(())
}

fn compress(path: &Path) -> io::Result<()> {
    let mut plain = File::open(path)?;
    let mut start = [0; 2];
    if plain.read(&mut start)? == 2 && start == [0x1f, 0x8b] {
        return Ok(()); // is compressed
    }
    let mut plain = File::open(path)?;
    let new_path = path.with_extension("new");
    // Stored, not deflated: it stays in memory for a second or two, and time is what a clone has least of.
    let mut packer = GzEncoder::new(
        BufWriter::new(File::create(&new_path)?),
        Compression::none(),
    );
    io::copy(&mut plain, &mut packer)?;
    packer.finish()?.flush()?;
    fs::rename(new_path, path)
}

/// What CRIU counted in its last dump or pre-dump with this working folder.
pub(crate) fn stats(folder: &Path) -> Result<DumpStats, CriuError> {
    let path = folder.join("stats-dump");
    let records = read_records(&path, &[SERVICE_MAGIC, STATS_MAGIC])?;
    let record = records
        .first()
        .ok_or_else(|| broken(&path, "is empty", None))?;
    Ok(decode::<Stats>(&path, record)?.dump.unwrap_or_default())
}

fn summary(images: &Path) -> Result<Summary, CriuError> {
    let path = images.join("pstree.img");
    let processes = read_records(&path, &[COMMON_MAGIC, PSTREE_MAGIC])?
        .iter()
        .map(|record| decode::<PsTree>(&path, record).map(|p| p.pid))
        .collect::<Result<Vec<u32>, _>>()?;
    Ok(Summary {
        stats: stats(images)?,
        processes: u32::try_from(processes.len()).unwrap_or(u32::MAX),
    })
}

pub(crate) fn decode<M: Message + Default>(path: &Path, record: &[u8]) -> Result<M, CriuError> {
    M::decode(record).map_err(|e| broken(path, &format!("holds something else: {e}"), None))
}

/// The records of an image that begins with the words `magic`.
pub(crate) fn read_records(path: &Path, magic: &[u32]) -> Result<Vec<Vec<u8>>, CriuError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(SMALL).read_to_end(&mut bytes))
        .map_err(|e| broken(path, "cannot be read", Some(e)))?;
    let mut rest = bytes.as_slice();
    for expected in magic {
        let word = take_word(&mut rest).ok_or_else(|| broken(path, "is too short", None))?;
        if *expected != word {
            return Err(broken(
                path,
                &format!("does not start like its kind: {word:#x}"),
                None,
            ));
        }
    }
    let mut records = Vec::new();
    while let Some(length) = take_word(&mut rest) {
        let (record, after) = rest
            .split_at_checked(length as usize)
            .ok_or_else(|| broken(path, "is cut off", None))?;
        records.push(record.to_vec());
        rest = after;
    }
    Ok(records)
}

fn take_word(rest: &mut &[u8]) -> Option<u32> {
    let (word, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_le_bytes(*word))
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name().and_then(|n| n.to_str())
}

fn broken(path: &Path, what: &str, source: Option<io::Error>) -> CriuError {
    CriuError::Image {
        path: PathBuf::from(path),
        what: what.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_were_given_a_name_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path();
        assert!(!has_named_files(images));
        let path = images.join("remap-fpath.img");
        for (kinds, expected) in [
            (&[Some(1), Some(2)][..], false),
            (&[Some(1), Some(RemapFilePath::LINKED)], true),
            (&[None], true),
        ] {
            let records: Vec<_> = kinds
                .iter()
                .map(|kind| RemapFilePath { kind: *kind }.encode_to_vec())
                .collect();
            write_records(&path, &[COMMON_MAGIC, REMAP_MAGIC], &records).unwrap();
            assert_eq!(has_named_files(images), expected, "{kinds:?}");
        }
        fs::write(&path, "something else").unwrap();
        assert!(has_named_files(images));
    }

    fn userns(first: u32, lower: u32, count: u32) -> Vec<u8> {
        let extent = IdExtent {
            first,
            lower_first: lower,
            count,
        };
        let body = UserNs {
            uid_map: vec![extent],
            gid_map: vec![extent],
        }
        .encode_to_vec();
        let mut bytes = Vec::new();
        for word in [COMMON_MAGIC, USERNS_MAGIC, body.len() as u32] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend(body);
        bytes
    }

    #[test]
    fn ids_are_rewritten_as_criu_would_have_written_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("userns-14.img");
        fs::write(&path, userns(0, 300_000, 65536)).unwrap();
        // The very bytes that CRIU 4.2.1 wrote for this map.
        assert_eq!(
            fs::read(&path).unwrap(),
            [
                0x19, 0x43, 0x56, 0x54, 0x06, 0x49, 0x47, 0x55, 0x18, 0, 0, 0, 0x0a, 0x0a, 0x08, 0,
                0x10, 0xe0, 0xa7, 0x12, 0x18, 0x80, 0x80, 0x04, 0x12, 0x0a, 0x08, 0, 0x10, 0xe0,
                0xa7, 0x12, 0x18, 0x80, 0x80, 0x04
            ]
        );
        for _ in 0..2 {
            rewrite_ids(dir.path(), 500_000, 65536).unwrap();
            assert_eq!(fs::read(&path).unwrap(), userns(0, 500_000, 65536));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn maps_that_do_not_fit_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            rewrite_ids(dir.path(), 1, 1)
                .unwrap_err()
                .to_string()
                .contains("no user namespace")
        );
        let path = dir.path().join("userns-1.img");
        for (bytes, why) in [
            (userns(0, 1000, 65536), "does not fit"),
            (userns(5, 1000, 10), "does not fit"),
            (userns(0, 1000, 10)[..20].to_vec(), "cut off"),
            (b"abc".to_vec(), "too short"),
            (b"abcdefgh".to_vec(), "start like"),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = rewrite_ids(dir.path(), 7000, 100).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn archives_are_compressed_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tmpfs-dev-41.tar.gz.img");
        fs::write(&path, vec![b'x'; 100_000]).unwrap();
        compress_tmpfs(dir.path()).unwrap();
        let packed = fs::read(&path).unwrap();
        compress_tmpfs(dir.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), packed);
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&packed[..])
            .read_to_end(&mut plain)
            .unwrap();
        assert_eq!(plain, vec![b'x'; 100_000]);
    }
}
