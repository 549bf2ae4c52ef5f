use std::collections::BTreeMap;

use offshoot_model::manifest::{ImageConfig, ImageFile};

use super::*;

fn recipe() -> PackageImage {
    PackageImage {
        suite: "bookworm".into(),
        packages: vec![
            "nginx".into(),
            "libstdc++6:amd64".into(),
            "redis=5:7.0.15-1~deb12u1".into(),
        ],
        files: BTreeMap::from([(
            "/etc/a".into(),
            ImageFile {
                content: "a".into(),
                mode: 0o644,
            },
        )]),
        run: vec!["true".into()],
        config: ImageConfig::default(),
    }
}

#[test]
fn hostile_recipes_are_refused() {
    check(&recipe()).unwrap();
    for package in [
        "", "-o", "--root=/", "a b", "a;b", "../x.deb", "/x.deb", "Nginx", "nginx-", "./a",
    ] {
        let recipe = PackageImage {
            packages: vec![package.into()],
            ..recipe()
        };
        assert!(check(&recipe).is_err(), "{package:?}");
    }
    for path in ["etc/a", "/etc/../../a", "/", "/a/", "/a\0b", ""] {
        let file = ImageFile {
            content: String::new(),
            mode: 0o644,
        };
        let recipe = PackageImage {
            files: BTreeMap::from([(path.into(), file)]),
            ..recipe()
        };
        assert!(check(&recipe).is_err(), "{path:?}");
    }
    let file = ImageFile {
        content: String::new(),
        mode: 0o100_644,
    };
    let recipe = PackageImage {
        files: BTreeMap::from([("/a".into(), file)]),
        ..recipe()
    };
    assert!(check(&recipe).is_err());
}

#[test]
fn an_id_says_what_is_inside() {
    let id = recipe_id(&recipe(), "sha256:base").unwrap();
    assert_eq!(id, recipe_id(&recipe(), "sha256:base").unwrap());
    assert_ne!(id, recipe_id(&recipe(), "sha256:other").unwrap());
    let other = PackageImage {
        run: vec!["false".into()],
        ..recipe()
    };
    assert_ne!(id, recipe_id(&other, "sha256:base").unwrap());
}
