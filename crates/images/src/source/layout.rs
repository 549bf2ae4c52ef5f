//! An OCI image layout: a directory with `index.json` and `blobs/` (image-spec, image-layout.md).

use std::path::Path;

use offshoot_sys::fsx::Root;

use super::{LayerFile, Local};
use crate::ImageError;
use crate::oci::{self, DOCUMENT_MAX, Descriptor, Digest, Parsed};

/// Annotation that carries a tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Indexes may point to indexes, not without end.
const NESTING_MAX: usize = 4;

/// Reads the layout at `path`. Its layers are verified when they are unpacked.
pub(crate) fn open(
    path: &Path,
    tag: Option<&str>,
    wanted: &str,
    image: &str,
) -> Result<Local, ImageError> {
    let root = Root::open(path).map_err(|e| ImageError::NotFound {
        image: image.into(),
        why: format!("{}: {e}", path.display()),
    })?;
    let invalid = |why: String| ImageError::invalid(image, why);
    let read = |inner: &str| {
        root.read(Path::new(inner), DOCUMENT_MAX)
            .map_err(|e| ImageError::invalid(image, format!("{inner} cannot be read: {e}")))
    };
    let document = |descriptor: &Descriptor| -> Result<Vec<u8>, ImageError> {
        let digest = Digest::parse(&descriptor.digest).map_err(invalid)?;
        let content = read(&blob(&digest))?;
        if Digest::of(&content) == digest {
            Ok(content)
        } else {
            Err(invalid(format!(
                "the content of {digest} does not match its digest"
            )))
        }
    };
    let Parsed::Index(entries) = oci::parse_document(&read("index.json")?).map_err(invalid)? else {
        return Err(invalid("index.json is not an index".into()));
    };
    let mut entry = choose_tag(&entries, tag, wanted).map_err(|why| ImageError::NotFound {
        image: image.into(),
        why,
    })?;
    let mut manifest = None;
    for _ in 0..NESTING_MAX {
        match oci::parse_document(&document(&entry)?).map_err(invalid)? {
            Parsed::Manifest(found) => {
                manifest = Some(found);
                break;
            }
            Parsed::Index(entries) => {
                entry = oci::choose(&entries, wanted).map_err(invalid)?.clone();
            }
        }
    }
    let manifest = manifest.ok_or_else(|| invalid("its indexes are nested too deeply".into()))?;
    let config = document(&manifest.config)?;
    let id = Digest::of(&config);
    let config = oci::parse_config(&config, manifest.layers.len(), wanted).map_err(invalid)?;
    let mut layers = Vec::new();
    for layer in &manifest.layers {
        let digest = Digest::parse(&layer.digest).map_err(invalid)?;
        let inner = blob(&digest);
        // Opened through the root: a link in the layout leads nowhere outside it.
        let file = root
            .open_file(Path::new(&inner))
            .map_err(|e| ImageError::invalid(image, format!("{inner} cannot be read: {e}")))?;
        let size = file
            .metadata()
            .map_err(ImageError::io("look at", path.join(&inner)))?
            .len();
        if layer.size != 0 && layer.size != size {
            return Err(invalid(format!(
                "{inner} has {size} bytes and should have {}",
                layer.size
            )));
        }
        layers.push(LayerFile {
            path: path.join(inner),
            offset: 0,
            size,
            digest: Some(digest),
        });
    }
    Ok(Local { id, config, layers })
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn choose_tag(
    entries: &[Descriptor],
    tag: Option<&str>,
    wanted: &str,
) -> Result<Descriptor, String> {
    let names: Vec<_> = entries
        .iter()
        .filter_map(|e| e.annotations.get(REF_NAME).cloned())
        .collect();
    match tag {
        Some(tag) => {
            let named = |e: &&Descriptor| {
                e.annotations.get(REF_NAME).is_some_and(|name| {
                    name == tag || name.rsplit_once(':').is_some_and(|(_, last)| last == tag)
                })
            };
            let tagged: Vec<_> = entries.iter().filter(named).cloned().collect();
            match tagged.as_slice() {
                [] => Err(format!(
                    "the layout has no {tag:?}, only {}",
                    names.join(", ")
                )),
                [only] => Ok(only.clone()),
                several => oci::choose(several, wanted).cloned(),
            }
        }
        None => match entries {
            [only] => Ok(only.clone()),
            several => oci::choose(several, wanted).cloned().map_err(|_| {
                format!(
                    "the layout holds several images, name one of {}",
                    names.join(", ")
                )
            }),
        },
    }
}
