//! Files as people write them, and what becomes of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use offshoot_compose::{DiskFiles, FileData, FileError, FileSource, LoadRequest, load};

/// The test data under a fixed name, so that no path of this machine gets into a golden file.
struct Data;

impl FileSource for Data {
    fn read(&self, path: &Path, max: u64) -> Result<FileData, FileError> {
        let Ok(inside) = path.strip_prefix("/data") else {
            return Err(FileError::Missing);
        };
        let mut data = DiskFiles.read(
            &Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/data")
                .join(inside),
            max,
        )?;
        // A checkout's modes depend on the umask.
        data.mode = 0o644;
        Ok(data)
    }
}

fn request(files: &[&str]) -> LoadRequest {
    LoadRequest {
        files: files
            .iter()
            .map(|file| PathBuf::from("/data").join(file))
            .collect(),
        ..LoadRequest::default()
    }
}

/// The manifest as JSON, with warnings before it; or the problem.
fn shown(request: &LoadRequest) -> String {
    let lines = |lines: Vec<String>| {
        lines
            .into_iter()
            .map(|line| line + "\n")
            .collect::<String>()
    };
    match load(&Data, request) {
        Ok(loaded) => {
            let warnings = lines(loaded.warnings.iter().map(ToString::to_string).collect());
            let json = serde_json::to_string_pretty(&loaded.manifest).unwrap();
            format!("name: {:?}\n{warnings}{json}", loaded.name)
        }
        Err(error) => {
            let problem = error.problem();
            let warnings = lines(
                error
                    .warnings
                    .iter()
                    .map(|warning| format!("warning: {warning}"))
                    .collect(),
            );
            format!(
                "{}: {}\n{}{warnings}",
                problem.code,
                problem.what,
                lines(problem.details)
            )
        }
    }
}

#[test]
fn wordpress() {
    insta::assert_snapshot!(shown(&request(&["wordpress/compose.yaml"])));
}

#[test]
fn postgres_with_includes_and_extends() {
    insta::assert_snapshot!(shown(&request(&["postgres-app/compose.yaml"])));
}

#[test]
fn monitoring_with_an_override() {
    let mut request = request(&["monitoring/compose.yaml", "monitoring/override.yaml"]);
    request.environment = BTreeMap::from([("ADMIN_PASSWORD".to_owned(), "geheim".to_owned())]);
    insta::assert_snapshot!(shown(&request));
}

#[test]
fn offshoot_s_own_words() {
    insta::assert_snapshot!(shown(&request(&["offshoot/compose.yaml"])));
}

#[test]
fn every_mistake_is_named_with_its_line() {
    insta::assert_snapshot!(shown(&request(&["mistakes/compose.yaml"])));
}
