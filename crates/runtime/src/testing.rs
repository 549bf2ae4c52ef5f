//! A specification for this crate's tests.

use std::path::Path;

use crate::spec::{NodeSpec, ProcessSpec, Start, Tools};

pub(crate) fn spec(run_dir: &Path) -> NodeSpec {
    NodeSpec {
        node: "abcdefgh.web-1".parse().unwrap(),
        instance: "os".into(),
        run_dir: run_dir.to_owned(),
        log_dir: run_dir.join("log"),
        rootfs: "/pool/rootfs".into(),
        binds: Vec::new(),
        files: Vec::new(),
        tmpfs: Vec::new(),
        process: ProcessSpec {
            args: vec!["/bin/sh".into()],
            env: vec!["PATH=/bin".into()],
            cwd: "/".into(),
            ..Default::default()
        },
        hostname: "web-1".into(),
        id_base: 100_000,
        id_count: 65_536,
        limits: Default::default(),
        cap_add: Vec::new(),
        cap_drop: Vec::new(),
        sysctls: Default::default(),
        ulimits: Default::default(),
        no_new_privileges: true,
        read_only: false,
        init: false,
        link: None,
        start: Start::Fresh,
        share_memory: false,
        hold_jobs: false,
        tools: Tools {
            runc: "/usr/bin/runc".into(),
            criu_dir: None,
            criu_kernel: None,
            shim: "/usr/bin/offshoot-shim".into(),
        },
    }
}
