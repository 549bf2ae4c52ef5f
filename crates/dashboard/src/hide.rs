//! What is nobody's business on a screen: values of variables and words of commands that are, or look like, secrets.

/// What is shown instead.
pub(crate) const HIDDEN: &str = "••••••";
/// Shortest secret that is looked for in other texts: shorter ones would blank out half of them.
const SECRET_MIN: usize = 4;
/// Parts of a variable's name whose value is a secret.
const SECRET_NAMES: [&str; 8] = [
    "PASSWORD",
    "PASSWD",
    "SECRET",
    "TOKEN",
    "KEY",
    "CREDENTIAL",
    "AUTH",
    "PRIVATE",
];

/// Whether the value of a variable is a secret: it sounds like one, or is an address with a password.
pub(crate) fn is_secret(name: &str, value: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    // `..._FILE` says where a secret is, not what.
    let sounds = !upper.ends_with("_FILE") && SECRET_NAMES.iter().any(|part| upper.contains(part));
    let has_password = value
        .split_once("://")
        .and_then(|(_, rest)| rest.split(['/', '?']).next()?.rsplit_once('@'))
        .is_some_and(|(user, _)| user.contains(':'));
    sounds || has_password
}

/// A command without `secrets`, without what stands behind `...password=`, `--token `, and the like, and without the
/// passwords that the clients of MySQL, Redis and curl take in a word.
pub(crate) fn conceal<'a>(command: &str, secrets: impl Iterator<Item = &'a str>) -> String {
    let mut text = command.to_owned();
    for secret in secrets.filter(|secret| secret.len() >= SECRET_MIN) {
        text = text.replace(secret, HIDDEN);
    }
    let sounds = |word: &str| {
        let word = word
            .trim_start_matches('-')
            .to_ascii_uppercase()
            .replace('-', "_");
        SECRET_NAMES.iter().any(|part| word.contains(part))
    };
    let mut out = String::with_capacity(text.len());
    let mut option = None;
    for piece in text.split_inclusive(char::is_whitespace) {
        let word = piece.trim_end();
        let space = piece.get(word.len()..).unwrap_or_default();
        let follows_secretly = match option {
            _ if word.starts_with('-') => false,
            Some("-a") => true,
            Some("-u" | "--user") => word.contains(':'),
            Some(option) => sounds(option),
            None => false,
        };
        let shown = match word.split_once('=') {
            _ if follows_secretly || is_secret("", word) => HIDDEN.to_owned(),
            Some((name, value)) if is_secret(name.trim_start_matches('-'), value) => {
                format!("{name}={HIDDEN}")
            }
            None if word.len() > 2 && word.starts_with("-p") => format!("-p{HIDDEN}"),
            _ => word.to_owned(),
        };
        if !word.is_empty() {
            option = (word.starts_with('-') && !word.contains('=')).then_some(word);
        }
        out.push_str(&shown);
        out.push_str(space);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out() {
        for (name, value) in [
            ("DB_PASSWORD", "x"),
            ("api_key", "x"),
            ("GITHUB_TOKEN", "x"),
            ("DATABASE_URL", "postgres://shop:pass@db/shop"),
        ] {
            assert!(is_secret(name, value), "{name}");
        }
        for (name, value) in [
            ("DB_PASSWORD_FILE", "/run/secrets/db"),
            ("DATABASE_URL", "postgres://db/shop?at=a:b@c"),
            ("LANG", "C.UTF-8"),
        ] {
            assert!(!is_secret(name, value), "{name}");
        }
    }

    #[test]
    fn commands_are_shown_without_secrets() {
        for (command, shown) in [
            (
                "mysqladmin ping -phunter2 -h db",
                "mysqladmin ping -p•••••• -h db",
            ),
            ("redis-cli -a hunter2 ping", "redis-cli -a •••••• ping"),
            ("tool --api-token hunter2 -v", "tool --api-token •••••• -v"),
            ("tool --password=hunter2", "tool --password=••••••"),
            (
                "PGPASSWORD=hunter2 psql -c  'select 1'",
                "PGPASSWORD=•••••• psql -c  'select 1'",
            ),
            ("echo s3cret/s3cret", "echo ••••••/••••••"),
            ("curl http://a:hunter2@web/", "curl ••••••"),
            ("wget -q http://web/health", "wget -q http://web/health"),
            ("pg_isready -U shop", "pg_isready -U shop"),
        ] {
            assert_eq!(conceal(command, ["s3cret", "abc"].into_iter()), shown);
        }
    }
}
