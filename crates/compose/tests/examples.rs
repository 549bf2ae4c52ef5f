//! The examples are manifests without a warning.

use std::path::{Path, PathBuf};

use offshoot_compose::{DiskFiles, LoadRequest, load};
use offshoot_model::manifest::{Condition, Role};
use offshoot_model::{ImageSource, Manifest};

fn example(name: &str) -> Manifest {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples")
        .join(name)
        .join("compose.yaml");
    let request = LoadRequest {
        files: vec![PathBuf::from(&file)],
        ..LoadRequest::default()
    };
    let loaded =
        load(&DiskFiles, &request).unwrap_or_else(|error| panic!("{:#?}", error.problem()));
    assert!(loaded.warnings.is_empty(), "{:#?}", loaded.warnings);
    loaded.manifest
}

fn roles(manifest: &Manifest) -> Vec<(&str, Role)> {
    manifest
        .layers
        .iter()
        .map(|layer| (layer.name.as_str(), layer.role))
        .collect()
}

#[test]
fn wordpress() {
    let manifest = example("wordpress");
    let expected = [
        ("nginx", Role::Balancer),
        ("php", Role::App),
        ("mariadb", Role::Sql),
        ("redis", Role::Cache),
    ];
    assert_eq!(roles(&manifest), expected);
    assert_eq!(
        manifest
            .entry()
            .map(|(layer, port)| (layer.name.as_str(), port)),
        Some(("nginx", 80))
    );
    assert_eq!(manifest.volumes.len(), 2);
    let ImageSource::Packages(php) = &manifest.layers[1].image else {
        panic!()
    };
    assert_eq!(php.suite, "bookworm");
    assert!(
        php.files["/srv/wordpress/wp-config.php"]
            .content
            .contains("$_SERVER['HTTP_HOST']")
    );
    assert!(
        manifest
            .layers
            .iter()
            .all(|layer| layer.healthcheck.is_some())
    );
    assert_eq!(
        manifest.layers[0].depends_on[0].condition,
        Condition::Healthy
    );
}

#[test]
fn postgres_python() {
    let manifest = example("postgres-python");
    assert_eq!(
        roles(&manifest),
        [("app", Role::App), ("postgres", Role::Sql)]
    );
    assert_eq!(manifest.entry().map(|(_, port)| port), Some(8000));
    let ImageSource::Packages(postgres) = &manifest.layers[1].image else {
        panic!()
    };
    assert_eq!(postgres.files["/usr/local/bin/postgres-node"].mode, 0o755);
}
