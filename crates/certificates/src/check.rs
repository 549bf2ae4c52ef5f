//! What makes a certificate fit to be shown: its key, its names, its time, and the order of its chain.

use jiff::Timestamp;
use offshoot_edge_api::normal_pattern;
use offshoot_model::{Code, Fault, Problem};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::Issued;

/// Most certificates in a chain, and most names of one.
const CHAIN_MAX: usize = 10;
const NAMES_MAX: usize = 256;

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Host names that it is for, in lower case; `*.` stands for one label.
    pub names: Vec<String>,
    /// Who signed it: the common name, or all that is said.
    pub issuer: String,
    /// From when on it is valid.
    pub not_before: Timestamp,
    /// Until when it and all of its chain are.
    pub not_after: Timestamp,
}

/// Whether a certificate for `pattern` is one for `name`, either of which may begin with `*.`, which stands for one label
/// (RFC 6125, 6.4.3).
#[must_use]
pub fn covers(pattern: &str, name: &str) -> bool {
    let below = |parent: &str| name.split_once('.').is_some_and(|(_, rest)| rest == parent);
    pattern == name || (!name.starts_with("*.") && pattern.strip_prefix("*.").is_some_and(below))
}

/// Looks at a certificate and its key as clients of `wanted` would, at `now`; without any `wanted` at all its names.
///
/// # Errors
/// `certificate-invalid`: which of the two is at fault, and why.
pub fn check(issued: &Issued, wanted: &[String], now: Timestamp) -> Result<Checked, Problem> {
    let chain = parse_chain(&issued.chain)?;
    let mut checked = None;
    let mut not_after = Timestamp::MAX;
    let mut signer: Option<Vec<u8>> = None;
    for (at, der) in chain.iter().enumerate() {
        let number = at + 1;
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|_| of_chain(format!("number {number} in it is no certificate")))?;
        let (from, until) = validity(&certificate).ok_or_else(|| {
            of_chain(format!(
                "number {number} in it has no validity that can be read"
            ))
        })?;
        if until < now {
            return Err(of_chain(format!(
                "number {number} in it expired at {until}"
            )));
        }
        if from > now {
            return Err(of_chain(format!(
                "number {number} in it is not valid before {from}"
            )));
        }
        if signer
            .as_deref()
            .is_some_and(|signer| signer != certificate.subject().as_raw())
        {
            return Err(of_chain(format!(
                "number {number} in it did not sign number {at}: the host's own certificate comes first, then who signed it"
            )));
        }
        signer = Some(certificate.issuer().as_raw().to_vec());
        not_after = not_after.min(until);
        if checked.is_none() {
            checked = Some(Checked {
                names: names(&certificate)?,
                issuer: issuer(&certificate),
                not_before: from,
                not_after,
            });
        }
    }
    let Some(mut checked) = checked else {
        return Err(of_chain("no certificate is in it".to_owned()));
    };
    checked.not_after = not_after;
    for name in wanted {
        if !checked.names.iter().any(|own| covers(own, name)) {
            return Err(of_chain(format!(
                "it is not for {name}, but for {}",
                checked.names.join(", ")
            )));
        }
    }
    fits(chain, &issued.key)?;
    Ok(checked)
}

fn parse_chain(text: &str) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let chain = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| of_chain(format!("it is not PEM: {error}")))?;
    if chain.len() > CHAIN_MAX {
        return Err(of_chain(format!(
            "it has more than {CHAIN_MAX} certificates"
        )));
    }
    Ok(chain)
}

fn fits(chain: Vec<CertificateDer<'static>>, key: &str) -> Result<(), Problem> {
    // the library's words on a key are about its form and show nothing of it
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|_| of_key("it is no private key in PEM without a password".to_owned()))?;
    let key = aws_lc_rs::default_provider()
        .key_provider
        .load_private_key(key)
        .map_err(|error| of_key(format!("it cannot be used: {error}")))?;
    CertifiedKey::new(chain, key)
        .keys_match()
        .map_err(|_| of_key("it is not the key of the certificate".to_owned()))
}

fn validity(certificate: &X509Certificate<'_>) -> Option<(Timestamp, Timestamp)> {
    let validity = certificate.validity();
    // what lies past the last time stamp there is, is for ever
    let at = |seconds: i64| Timestamp::from_second(seconds.min(Timestamp::MAX.as_second())).ok();
    Some((
        at(validity.not_before.timestamp())?,
        at(validity.not_after.timestamp())?,
    ))
}

fn names(certificate: &X509Certificate<'_>) -> Result<Vec<String>, Problem> {
    let extension = certificate
        .subject_alternative_name()
        .map_err(|_| of_chain("its names cannot be read".to_owned()))?;
    let all = extension
        .iter()
        .flat_map(|extension| &extension.value.general_names);
    let mut names: Vec<String> = Vec::new();
    for name in all {
        let GeneralName::DNSName(text) = name else {
            continue;
        };
        let Some(name) = normal_pattern(text) else {
            continue;
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match names.len() {
        0 => Err(of_chain(
            "it is for no host name (subject alternative name)".to_owned(),
        )),
        1..=NAMES_MAX => Ok(names),
        many => Err(of_chain(format!(
            "it is for {many} host names; {NAMES_MAX} are the most"
        ))),
    }
}

fn issuer(certificate: &X509Certificate<'_>) -> String {
    let issuer = certificate.issuer();
    let common = issuer.iter_common_name().next();
    let text = common
        .and_then(|name| name.as_str().ok())
        .map_or_else(|| issuer.to_string(), str::to_owned);
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn of_chain(why: String) -> Problem {
    invalid("certificate", why)
}

fn of_key(why: String) -> Problem {
    invalid("key", why)
}

fn invalid(which: &str, why: String) -> Problem {
    Problem::new(
        Code::CertificateInvalid,
        Fault::Request,
        format!("the {which} cannot be used: {why}"),
        "give a chain in PEM that begins with the host's certificate, and its private key in PEM",
    )
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, Issuer, KeyPair, date_time_ymd};

    use super::*;

    fn now() -> Timestamp {
        "2026-06-01T00:00:00Z".parse().unwrap()
    }

    fn params(names: &[&str], until: i32) -> CertificateParams {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        params
    }

    fn made(names: &[&str], until: i32) -> Issued {
        let key = KeyPair::generate().unwrap();
        Issued {
            chain: params(names, until).self_signed(&key).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn refused(issued: &Issued, wanted: &[&str]) -> String {
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let problem = check(issued, &wanted, now()).unwrap_err();
        assert_eq!(problem.code, Code::CertificateInvalid);
        problem.what
    }

    #[test]
    fn what_fits_is_read() {
        let issued = made(&["A.test", "*.b.test"], 2030);
        let wanted = [
            "a.test".to_owned(),
            "*.b.test".to_owned(),
            "x.b.test".to_owned(),
        ];
        let checked = check(&issued, &wanted, now()).unwrap();
        assert_eq!(checked.names, ["a.test", "*.b.test"]);
        assert_eq!(checked.not_after, "2030-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(checked.not_before, "2026-01-01T00:00:00Z".parse().unwrap());
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let good = made(&["a.test"], 2030);
        let mut other = good.clone();
        other.key = made(&["a.test"], 2030).key;
        assert!(refused(&other, &[]).contains("the key cannot be used: it is not the key"));
        other.key = "nonsense".to_owned();
        assert!(refused(&other, &[]).contains("no private key"));
        assert!(refused(&good, &["b.test"]).contains("not for b.test, but for a.test"));
        assert!(refused(&good, &["x.a.test"]).contains("not for x.a.test"));
        assert!(refused(&made(&["a.test"], 2026), &[]).contains("number 1 in it expired at 2026"));
        assert!(refused(&made(&[], 2030), &[]).contains("no host name"));
        let mut other = good.clone();
        other.chain = "nonsense".to_owned();
        assert!(refused(&other, &[]).contains("no certificate is in it"));
        other.chain = format!("{}{}", good.chain, made(&["a.test"], 2026).chain);
        assert!(refused(&other, &[]).contains("number 2 in it expired"));
    }

    #[test]
    fn a_chain_stands_in_its_order() {
        let root_key = KeyPair::generate().unwrap();
        let mut root = params(&[], 2028);
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        root.distinguished_name
            .push(rcgen::DnType::CommonName, "Some root");
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let leaf = params(&["a.test"], 2030)
            .signed_by(&key, &Issuer::new(root, root_key))
            .unwrap()
            .pem();
        let mut issued = Issued {
            chain: format!("{leaf}{root_pem}"),
            key: key.serialize_pem(),
        };
        let checked = check(&issued, &[], now()).unwrap();
        assert_eq!(checked.issuer, "Some root");
        // the whole chain must be valid
        assert_eq!(checked.not_after, "2028-01-01T00:00:00Z".parse().unwrap());
        issued.chain = format!("{root_pem}{leaf}");
        assert!(refused(&issued, &[]).contains("no host name"));
        issued.chain = format!("{leaf}{leaf}");
        assert!(refused(&issued, &[]).contains("number 2 in it did not sign number 1"));
    }

    #[test]
    fn a_star_is_one_label() {
        for (pattern, name, fits) in [
            ("a.test", "a.test", true),
            ("*.a.test", "x.a.test", true),
            ("*.a.test", "*.a.test", true),
            ("*.a.test", "a.test", false),
            ("*.a.test", "x.y.a.test", false),
            ("*.test", "*.a.test", false),
            ("x.a.test", "*.a.test", false),
        ] {
            assert_eq!(covers(pattern, name), fits, "{pattern} {name}");
        }
    }
}
