//! `image`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use offshoot_compose::{FileData, FileError, FileSource, LoadRequest};
use offshoot_model::view::{ImagePullRequest, ImageView};
use offshoot_model::{Code, Fault, ImageSource, Operation, Problem};

use super::create::variables;
use super::manifest;
use crate::api::Route;
use crate::context::{Context, Format};
use crate::failure::Failure;
use crate::follow::{Wait, complete_all};
use crate::human;
use crate::table::Grid;
use crate::term::Paint;

/// List, fetch and remove images.
///
/// An image is what a node's file system is made from. `create` fetches what it needs by itself; these commands do
/// it ahead of time, or from files.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot image ls\n  \
    offshoot image pull docker.io/library/nginx:1.27\n  \
    offshoot image import docker-archive:nginx.tar\n  \
    offshoot image rm 0123456789ab")]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List images
    #[command(after_help = "Examples:\n  offshoot image ls\n  offshoot image ls -q       ids only")]
    Ls,
    /// Fetch an image from a registry
    #[command(after_help = "Examples:\n  \
        offshoot image pull nginx:1.27\n  \
        offshoot image pull registry.example.org/team/app@sha256:...")]
    Pull {
        /// Image references; without a host they are from docker.io, without a tag `latest`
        #[arg(value_name = "REF", required = true)]
        references: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take an image from files on this host, or make those a Compose file describes
    #[command(after_help = "Sources:\n  \
        oci:DIR[:TAG]               a directory in OCI image layout (skopeo, buildah, ...)\n  \
        docker-archive:FILE[:TAG]   a file written by `docker save`\n  \
        FILE.yaml                   every image of a Compose file, also those made from packages\n\n\
        Examples:\n  \
        offshoot image import oci:./layout\n  \
        offshoot image import docker-archive:app.tar\n  \
        offshoot image import compose.yaml")]
    Import {
        /// Where the image is
        #[arg(value_name = "SOURCE", required = true)]
        sources: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Remove images that no environment uses
    #[command(after_help = "Examples:\n  \
        offshoot image rm 0123456789ab\n  \
        offshoot image rm docker.io/library/nginx:1.27")]
    Rm {
        /// Images: by id, the beginning of an id, or where they came from
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
    },
}

pub(crate) async fn run(context: &Context, args: ImageArgs) -> Result<(), Failure> {
    match args.command {
        ImageCommand::Ls => {
            let images: Vec<ImageView> = context.client.get(&Route::to("images")).await?;
            if context.is_quiet() && context.format == Format::Table {
                return context.print(
                    &images
                        .iter()
                        .map(|image| format!("{}\n", image.id))
                        .collect::<String>(),
                );
            }
            context.answer(&images, || {
                list(&images, context.out_paint, Timestamp::now())
            })
        }
        ImageCommand::Pull { references, wait } => {
            let sources: Result<_, Problem> =
                references.iter().map(|text| registry(text)).collect();
            fetch(context, sources?, wait).await
        }
        ImageCommand::Import { sources, wait } => {
            let mut all = Vec::new();
            for text in sources {
                for source in import_sources(context, &text)? {
                    if !all.contains(&source) {
                        all.push(source);
                    }
                }
            }
            fetch(context, all, wait).await
        }
        ImageCommand::Rm { images } => {
            for image in &images {
                context
                    .client
                    .delete_now(&Route::to("images").then(image))
                    .await?;
                if context.format == Format::Table {
                    context.print(image)?;
                }
            }
            if context.format == Format::Json {
                context.json(&images)
            } else {
                Ok(())
            }
        }
    }
}

async fn fetch(context: &Context, sources: Vec<ImageSource>, wait: Wait) -> Result<(), Failure> {
    let mut begun: Vec<Result<Operation, Problem>> = Vec::new();
    for source in sources {
        begun.push(
            context
                .client
                .post(&Route::to("images"), &ImagePullRequest { source })
                .await,
        );
    }
    complete_all(context, begun, wait).await
}

fn import_sources(context: &Context, text: &str) -> Result<Vec<ImageSource>, Failure> {
    if let Some(rest) = text.strip_prefix("oci:") {
        let (path, tag) = path_and_tag(rest)?;
        return Ok(vec![ImageSource::OciLayout { path, tag }]);
    }
    if let Some(rest) = text.strip_prefix("docker-archive:") {
        let (path, tag) = path_and_tag(rest)?;
        return Ok(vec![ImageSource::DockerArchive { path, tag }]);
    }
    if !Path::new(text)
        .extension()
        .is_some_and(|end| end == "yaml" || end == "yml")
    {
        return Err(Failure::Usage(format!(
            "{text:?} is not a source: write oci:DIR, docker-archive:FILE, or a Compose file ending in .yaml"
        )));
    }
    let request = LoadRequest {
        files: vec![PathBuf::from(text)],
        environment: variables(),
        ..LoadRequest::default()
    };
    // The name is of no interest here and must not be in the way.
    let read = manifest::read(request, Some("images"))?;
    for warning in &read.warnings {
        context.warn(warning);
    }
    Ok(read
        .manifest
        .layers
        .into_iter()
        .map(|layer| layer.image)
        .collect())
}

/// A reference completed as `image:` in a Compose file is, by the very code that does it there.
fn registry(text: &str) -> Result<ImageSource, Problem> {
    struct OneImage(String);
    impl FileSource for OneImage {
        fn read(&self, path: &Path, _max: u64) -> Result<FileData, FileError> {
            if path.file_name().is_none_or(|name| name != "image") {
                return Err(FileError::Missing);
            }
            Ok(FileData {
                bytes: self.0.clone().into_bytes(),
                mode: 0o600,
            })
        }
    }
    let refuse = |why: String| {
        let next = "write it as HOST/NAME:TAG, for instance docker.io/library/nginx:1.27";
        Problem::new(Code::BadRequest, Fault::Request, why, next)
    };
    // JSON is YAML; `$` would begin a variable.
    let file = serde_json::json!({ "services": { "image": { "image": text.replace('$', "$$") } } });
    let request = LoadRequest {
        files: vec![PathBuf::from("/image")],
        ..LoadRequest::default()
    };
    let loaded =
        offshoot_compose::load(&OneImage(file.to_string()), &request).map_err(|error| {
            refuse(
                error
                    .errors
                    .first()
                    .map_or_else(|| error.to_string(), |first| first.message.clone()),
            )
        })?;
    match loaded
        .manifest
        .layers
        .into_iter()
        .next()
        .map(|layer| layer.image)
    {
        Some(source @ ImageSource::Registry { .. }) => Ok(source),
        _ => Err(refuse(format!(
            "{text:?} is not in a registry; take it with `offshoot image import`"
        ))),
    }
}

/// Splits `PATH[:TAG]`, and makes the path absolute. What exists as a whole is a path.
fn path_and_tag(text: &str) -> Result<(String, Option<String>), Problem> {
    let (path, tag) = match text.rsplit_once(':') {
        Some((path, tag)) if !tag.is_empty() && !tag.contains('/') && !Path::new(text).exists() => {
            (path, Some(tag.to_owned()))
        }
        _ => (text, None),
    };
    let absolute = std::fs::canonicalize(path).map_err(|error| {
        Problem::new(
            Code::ImageNotFound,
            Fault::Request,
            format!("{path:?} cannot be used as an image: {error}"),
            "check the path",
        )
    })?;
    match absolute.into_os_string().into_string() {
        Ok(path) => Ok((path, tag)),
        Err(path) => Err(Problem::new(
            Code::BadRequest,
            Fault::Request,
            format!("the path {path:?} is not UTF-8"),
            "give the file another name",
        )),
    }
}

fn list(images: &[ImageView], paint: Paint, now: Timestamp) -> String {
    let mut grid = Grid::new(&["ID", "SOURCE", "CREATED", "SIZE", "NODES"], paint).right(&[3, 4]);
    for image in images {
        grid.row([
            human::short_digest(&image.id).to_owned(),
            image.source.clone(),
            human::age(image.created, now),
            human::bytes(image.size),
            image.used_by.to_string(),
        ]);
    }
    grid.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fixtures;

    #[test]
    fn images_for_people() {
        insta::assert_snapshot!(list(&fixtures::images(), Paint::Plain, fixtures::now()));
    }

    #[test]
    fn references_are_completed_as_in_a_compose_file() {
        let reference = |text: &str| match registry(text) {
            Ok(ImageSource::Registry { reference }) => Some(reference),
            _ => None,
        };
        assert_eq!(
            reference("nginx:1.27").as_deref(),
            Some("docker.io/library/nginx:1.27")
        );
        assert_eq!(
            reference("localhost:5000/a/b").as_deref(),
            Some("localhost:5000/a/b:latest")
        );
        for bad in ["", "A", "oci:/tmp", "${HOME}", "a b", "nginx:1\n2"] {
            assert_eq!(reference(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_colon_in_a_path_is_not_always_a_tag() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let plain = dir.join("layout");
        let odd = dir.join("a:b");
        std::fs::create_dir(&plain).unwrap();
        std::fs::create_dir(&odd).unwrap();
        let of = |text: String| path_and_tag(&text);
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        assert_eq!(of(text(&plain)).unwrap(), (text(&plain), None));
        assert_eq!(
            of(format!("{}:1.2", text(&plain))).unwrap(),
            (text(&plain), Some("1.2".to_owned()))
        );
        assert_eq!(of(text(&odd)).unwrap(), (text(&odd), None));
        assert_eq!(
            of(format!("{}:t", text(&odd))).unwrap(),
            (text(&odd), Some("t".to_owned()))
        );
        assert_eq!(
            of(text(&dir.join("none"))).unwrap_err().code,
            Code::ImageNotFound
        );
    }
}
