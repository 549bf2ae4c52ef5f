//! WordPress as its users see it: its installer, its posts, its pages; and the servers behind it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use offshoot_load::{Client, Target};
use offshoot_model::manifest::Role;
use offshoot_model::view::EnvironmentView;
use serde::Deserialize;

use crate::instance::Instance;

/// Patience with a page: the first ones fill PHP's caches.
const PATIENCE: Duration = Duration::from_secs(60);
const USER: &str = "demo";
// an example's account, made anew by every run, on loopback
const PASSWORD: &str = "offshoot-demo-only";

/// A running WordPress.
pub(crate) struct Site {
    /// Name of its environment.
    pub(crate) environment: String,
    /// Its front page.
    pub(crate) target: Target,
    /// Where a browser finds it.
    pub(crate) url: String,
    /// Layers by what they are for.
    pub(crate) app: String,
    pub(crate) sql: String,
    pub(crate) cache: String,
}

impl Site {
    /// Finds the parts of an environment.
    pub(crate) fn of(view: &EnvironmentView) -> anyhow::Result<Self> {
        let layer = |wanted: &[Role]| {
            let found = view
                .layers
                .iter()
                .find(|layer| wanted.contains(&layer.role));
            found.with_context(|| format!("{} has no layer of role {wanted:?}", view.name))
        };
        let url = view
            .url
            .clone()
            .with_context(|| format!("{} has no address", view.name))?;
        Ok(Self {
            environment: view.name.clone(),
            target: Target::parse(&url)?,
            url,
            app: layer(&[Role::App])?.name.clone(),
            sql: layer(&[Role::Sql])?.name.clone(),
            cache: layer(&[Role::Cache, Role::Nosql])?.name.clone(),
        })
    }

    fn client(&self) -> Client {
        Client::new(&self.target, PATIENCE)
    }

    /// Goes through WordPress' own installer.
    pub(crate) fn install(&self, title: &str) -> anyhow::Result<()> {
        let mut client = self.client();
        let form = [
            ("weblog_title", title),
            ("user_name", USER),
            ("admin_password", PASSWORD),
            ("admin_password2", PASSWORD),
            ("pw_weak", "on"),
            ("admin_email", "demo@example.org"),
            ("blog_public", "0"),
            ("Submit", "Install WordPress"),
        ];
        let answer = client
            .post("/wp-admin/install.php?step=2", &form)
            .context("WordPress' installer")?;
        let page = answer.text();
        if answer.status != 200
            || page.contains("class=\"error\"")
            || page.contains("<h1>Welcome</h1>")
        {
            bail!(
                "WordPress' installer answered {}: {}",
                answer.status,
                excerpt(&page)
            );
        }
        let front = client.get("/")?;
        if front.status != 200 || !front.text().contains(title) {
            bail!(
                "the front page answered {}: {}",
                front.status,
                excerpt(&front.text())
            );
        }
        Ok(())
    }

    /// Publishes a post through WordPress' XML-RPC interface and returns its number.
    pub(crate) fn publish(&self, title: &str) -> anyhow::Result<u64> {
        let field = |name: &str, value: &str| {
            format!("<member><name>{name}</name><value><string>{value}</string></value></member>")
        };
        let call = format!(
            "<?xml version=\"1.0\"?><methodCall><methodName>wp.newPost</methodName><params>\
             <param><value><int>1</int></value></param><param><value><string>{USER}</string></value></param>\
             <param><value><string>{PASSWORD}</string></value></param><param><value><struct>{}{}{}</struct></value></param>\
             </params></methodCall>",
            field("post_title", title),
            field("post_content", "Published by the demo."),
            field("post_status", "publish"),
        );
        let answer = self
            .client()
            .post_as("/xmlrpc.php", "text/xml", call.as_bytes())
            .context("publishing")?;
        let text = answer.text();
        let number = text
            .split("<string>")
            .nth(1)
            .and_then(|rest| rest.split('<').next())
            .and_then(|id| id.parse().ok());
        number
            .filter(|_| !text.contains("<fault>"))
            .with_context(|| {
                format!(
                    "publishing was answered with {}: {}",
                    answer.status,
                    excerpt(&text)
                )
            })
    }

    /// Whether the site has a post of that title: asks the page with the post's number, or the front page.
    pub(crate) fn shows(&self, title: &str) -> anyhow::Result<bool> {
        let answer = self.client().get("/")?;
        if answer.status != 200 {
            bail!(
                "the front page of {} answered {}",
                self.environment,
                answer.status
            );
        }
        Ok(answer.text().contains(title))
    }

    /// Where another environment of the same daemon answers.
    pub(crate) fn target_of(&self, environment: &str) -> Target {
        let host = match self.target.host.split_once('.') {
            Some((_, domain)) => format!("{environment}.{domain}"),
            None => environment.to_owned(),
        };
        Target {
            host,
            ..self.target.clone()
        }
    }

    /// A path that the web server answers by itself, so that it can be asked for every millisecond.
    pub(crate) fn static_path(&self) -> anyhow::Result<Target> {
        let mut client = self.client();
        for path in [
            "/healthz",
            "/license.txt",
            "/readme.html",
            "/wp-includes/images/blank.gif",
            "/wp-includes/css/buttons.min.css",
        ] {
            if client.get(path).is_ok_and(|answer| answer.status == 200) {
                return Ok(self.target.at(path));
            }
        }
        bail!("{} has no static file to ask for", self.environment)
    }

    /// Runs an SQL statement as the server's administrator and returns the plain result.
    pub(crate) fn sql(&self, instance: &Instance, statement: &str) -> anyhow::Result<String> {
        instance.exec(
            &self.environment,
            &self.sql,
            &["mariadb", "--batch", "--skip-column-names", "-e", statement],
        )
    }

    /// Runs a Redis command.
    pub(crate) fn redis(&self, instance: &Instance, command: &[&str]) -> anyhow::Result<String> {
        instance.exec(
            &self.environment,
            &self.cache,
            &[&["redis-cli"], command].concat(),
        )
    }

    /// What one of PHP's workers sees in memory, without changing it.
    pub(crate) fn status(&self) -> anyhow::Result<Status> {
        status(&mut self.client())
    }

    /// The connections of PHP's workers, as the servers number them: one that was made anew has another number.
    pub(crate) fn connections(&self) -> anyhow::Result<Connections> {
        let mut client = self.client();
        let mut connections = Connections::new();
        // nobody chooses the worker that answers: ask until none that is new has answered for a while
        let mut nothing_new = 0;
        while nothing_new < 30 {
            let status = status(&mut client)?;
            let known = connections.insert(
                status.worker,
                (status.mariadb.connection_id, status.redis.client_id),
            );
            nothing_new = if known.is_some() { nothing_new + 1 } else { 0 };
        }
        Ok(connections)
    }
}

/// Worker's process id inside, MariaDB's number of its connection, Redis' number of its connection.
pub(crate) type Connections = BTreeMap<u32, (u64, u64)>;

/// Answer of the example's `offshoot-status.php`.
#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) worker: u32,
    pub(crate) mariadb: MariaDb,
    pub(crate) redis: Redis,
}

/// See [`Status`].
#[derive(Debug, Deserialize)]
pub(crate) struct MariaDb {
    pub(crate) connection_id: u64,
    /// A server variable that the demo changes at run time.
    pub(crate) long_query_time: f64,
    pub(crate) posts: Option<u64>,
}

/// See [`Status`].
#[derive(Debug, Deserialize)]
pub(crate) struct Redis {
    pub(crate) client_id: u64,
    /// A counter that is nowhere but in memory.
    pub(crate) counter: u64,
}

fn status(client: &mut Client) -> anyhow::Result<Status> {
    let answer = client.get("/offshoot-status.php?peek=1")?;
    let text = answer.text();
    if answer.status != 200 {
        bail!(
            "the status page answered {}: {}",
            answer.status,
            excerpt(&text)
        );
    }
    serde_json::from_str(&text).with_context(|| format!("the status page answered {text:?}"))
}

fn excerpt(page: &str) -> String {
    let mut text = String::new();
    let mut tag = false;
    for c in page.chars() {
        match c {
            '<' => tag = true,
            '>' => tag = false,
            c if !tag => text.push(c),
            _ => {}
        }
    }
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(600)
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn pages_are_shortened_to_their_text() {
        assert_eq!(
            super::excerpt("<h1>Error</h1>\n <p class='x'>no  database</p>"),
            "Error no database"
        );
    }
}
