//! What people leave out: the role of a layer and the entry of an environment.

use offshoot_model::ImageSource;
use offshoot_model::manifest::{Protocol, Role};

use super::extension::Entry;
use super::service::Service;
use crate::diagnostic::Report;

/// Names of images and packages, and the role they tell; the first that fits counts, so what keeps data comes
/// before what merely stands in front.
const KNOWN: [(Role, &[&str]); 6] = [
    (
        Role::Sql,
        &[
            "mysql",
            "mariadb",
            "postgres",
            "postgresql",
            "percona",
            "postgis",
            "timescaledb",
            "cockroach",
            "tidb",
            "mssql",
            "pgvector",
            "clickhouse",
        ],
    ),
    (
        Role::Nosql,
        &[
            "mongo",
            "mongodb",
            "cassandra",
            "scylla",
            "couchdb",
            "couchbase",
            "elasticsearch",
            "opensearch",
            "neo4j",
            "arangodb",
            "influxdb",
            "solr",
            "rethinkdb",
            "ferretdb",
        ],
    ),
    (
        Role::Cache,
        &[
            "redis",
            "memcached",
            "valkey",
            "keydb",
            "dragonfly",
            "varnish",
            "hazelcast",
        ],
    ),
    (
        Role::Storage,
        &[
            "minio",
            "seaweedfs",
            "glusterfs",
            "nfs-kernel-server",
            "nfs-ganesha",
            "ceph",
            "garage",
        ],
    ),
    (
        Role::App,
        &[
            "php",
            "wordpress",
            "drupal",
            "joomla",
            "nextcloud",
            "magento",
            "node",
            "python",
            "python3",
            "ruby",
            "rails",
            "tomcat",
            "openjdk",
            "golang",
            "django",
            "flask",
            "gunicorn",
            "ghost",
            "gitea",
            "odoo",
        ],
    ),
    (
        Role::Balancer,
        &[
            "nginx", "haproxy", "traefik", "caddy", "envoy", "pound", "lighttpd",
        ],
    ),
];

/// Ports on which an application is usually met with a browser, the likeliest first.
const HTTP_PORTS: [u16; 9] = [80, 8080, 8000, 3000, 5000, 8888, 4000, 8081, 9000];

/// The role that an image's name or packages tell.
pub(super) fn role(image: &ImageSource) -> Role {
    let names: Vec<String> = match image {
        ImageSource::Registry { reference } => {
            let name = reference.rsplit('/').next().unwrap_or_default();
            vec![name.split([':', '@']).next().unwrap_or_default().to_owned()]
        }
        ImageSource::OciLayout { path, .. } | ImageSource::DockerArchive { path, .. } => {
            let name = path.rsplit('/').next().unwrap_or_default();
            vec![name.split('.').next().unwrap_or_default().to_owned()]
        }
        ImageSource::Packages(image) => image.packages.clone(),
    };
    // `php8.2-fpm` and `mariadb-server` begin with a known name; `phpmyadmin` does not.
    let begins = |name: &str, known: &str| {
        name.strip_prefix(known)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
    };
    let served = |name: &&String| {
        let client = [
            "-client",
            "-exporter",
            "-common",
            "-tools",
            "-mysql",
            "-redis",
            "-psycopg2",
        ];
        !client.iter().any(|suffix| name.ends_with(suffix))
    };
    let names: Vec<_> = names.iter().filter(served).collect();
    let fits = |known: &&[&str]| {
        known
            .iter()
            .any(|known| names.iter().any(|name| begins(name, known)))
    };
    KNOWN
        .iter()
        .find(|(_, known)| fits(known))
        .map_or(Role::Other, |(role, _)| *role)
}

/// Chooses the layer that the edge sends people to, when nobody said: the one that publishes a usual HTTP port,
/// a balancer before others; failing that the one that exposes one.
pub(super) fn entry(services: &mut [Service<'_>], report: &mut Report) {
    if services
        .iter()
        .any(|service| matches!(service.entry, Entry::Port(_)))
    {
        return;
    }
    let published = |service: &Service<'_>| {
        let ports = service
            .layer
            .ports
            .iter()
            .filter(|port| port.protocol == Protocol::Tcp);
        best(&ports.map(|port| port.target).collect::<Vec<_>>())
    };
    let exposed = |service: &Service<'_>| {
        let mut ports = service.layer.expose.clone();
        if let ImageSource::Packages(image) = &service.layer.image {
            ports.extend(&image.config.exposed_ports);
        }
        best(&ports)
    };
    let candidates = |port_of: &dyn Fn(&Service<'_>) -> Option<u16>| -> Vec<(usize, u16)> {
        let open = services
            .iter()
            .enumerate()
            .filter(|(_, service)| service.entry == Entry::Unsaid);
        open.filter_map(|(index, service)| Some((index, port_of(service)?)))
            .collect()
    };
    let mut found = candidates(&published);
    if found.is_empty() {
        found = candidates(&exposed);
    }
    let balancers: Vec<_> = found
        .iter()
        .copied()
        .filter(|(index, _)| {
            services
                .get(*index)
                .is_some_and(|service| service.layer.role == Role::Balancer)
        })
        .collect();
    if balancers.len() == 1 {
        found = balancers;
    }
    match found.as_slice() {
        [] => {}
        [(index, port)] => {
            if let Some(service) = services.get_mut(*index) {
                service.layer.entry = Some(*port);
            }
        }
        several => {
            let names: Vec<_> = several
                .iter()
                .filter_map(|(index, _)| services.get(*index))
                .map(|s| s.layer.name.as_str())
                .collect();
            if let Some(service) = several.first().and_then(|(index, _)| services.get(*index)) {
                let names = names.join(", ");
                report.warn(
                    service.at.place,
                    &service.at.path,
                    format!("several layers could answer at the environment's host name ({names}), so none does; choose with x-offshoot: {{entry: PORT}}"),
                );
            }
        }
    }
}

fn best(ports: &[u16]) -> Option<u16> {
    HTTP_PORTS.iter().copied().find(|port| ports.contains(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_model::manifest::PackageImage;

    #[test]
    fn roles() {
        for (reference, expected) in [
            ("docker.io/library/nginx:1.27", Role::Balancer),
            ("docker.io/library/postgres@sha256:00", Role::Sql),
            ("docker.io/bitnami/mongodb:7", Role::Nosql),
            ("docker.io/library/redis:7-alpine", Role::Cache),
            ("quay.io/minio/minio:latest", Role::Storage),
            ("docker.io/library/phpmyadmin:latest", Role::Other),
            ("docker.io/oliver006/redis_exporter:latest", Role::Cache),
            ("docker.io/prom/mysqld-exporter:latest", Role::Other),
        ] {
            assert_eq!(
                role(&ImageSource::Registry {
                    reference: reference.to_owned()
                }),
                expected,
                "{reference}"
            );
        }
        for (packages, expected) in [
            (
                vec!["php8.2-fpm", "php-mysql", "php-redis", "wordpress"],
                Role::App,
            ),
            (vec!["mariadb-server"], Role::Sql),
            (vec!["redis-server"], Role::Cache),
            (vec!["nginx"], Role::Balancer),
            (
                vec!["python3-psycopg2", "python3", "postgresql-client"],
                Role::App,
            ),
            (vec![], Role::Other),
        ] {
            let packages = packages.into_iter().map(str::to_owned).collect();
            let image = PackageImage {
                packages,
                ..PackageImage::empty()
            };
            assert_eq!(role(&ImageSource::Packages(image)), expected);
        }
    }

    trait Empty {
        fn empty() -> Self;
    }

    impl Empty for PackageImage {
        fn empty() -> Self {
            Self {
                suite: "bookworm".to_owned(),
                packages: Vec::new(),
                files: Default::default(),
                run: Vec::new(),
                config: Default::default(),
            }
        }
    }
}
