//! Environments that can be had by a button.
//!
//! Their manifests are what `offshoot create` makes of the Compose files in `examples/`; a test compares them.

use offshoot_model::{Code, Fault, Manifest, Problem};

/// An example that is built in.
#[derive(Debug)]
pub(crate) struct Example {
    /// Name, also of the environment that it becomes.
    pub(crate) name: &'static str,
    /// What it is, a few sentences.
    pub(crate) what: &'static str,
    /// What it takes, on a host that has none of its images yet.
    pub(crate) takes: &'static str,
    manifest: &'static str,
}

/// All of them.
pub(crate) const EXAMPLES: &[Example] = &[
    Example {
        name: "visitors",
        what: "A small web page that counts its visitors in memory, and nowhere else. Clone it, then visit both.",
        takes: "The first time about half a minute, and 150 MiB of disk. Then seconds.",
        manifest: include_str!("../examples/visitors.json"),
    },
    Example {
        name: "blog",
        what: "WordPress with nginx, PHP, MariaDB and Redis. It asks for a title and a password when it is first opened.",
        takes: "The first time about a minute, and 1.2 GiB of disk. Then seconds.",
        manifest: include_str!("../examples/blog.json"),
    },
];

impl Example {
    /// What is to be created.
    pub(crate) fn manifest(&self) -> Result<Manifest, Problem> {
        serde_json::from_str(self.manifest).map_err(|error| {
            Problem::internal(format!("example {} is no manifest: {error}", self.name))
        })
    }
}

/// The example of that name.
pub(crate) fn find(name: &str) -> Result<&'static Example, Problem> {
    EXAMPLES
        .iter()
        .find(|example| example.name == name)
        .ok_or_else(|| {
            Problem::new(
                Code::NotFound,
                Fault::Request,
                format!("there is no example {name:?}"),
                "go to the list of environments for those that are there",
            )
        })
}
