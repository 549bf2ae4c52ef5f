//! Until when a certificate is valid: the one field that the TLS library does not tell.

use jiff::civil::DateTime;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0]`, constructed: the version.
const VERSION: u8 = 0xa0;

/// `notAfter` of a certificate in DER, in UTC; `None` when it is not a certificate (RFC 5280, 4.1).
pub(super) fn not_after(certificate: &[u8]) -> Option<DateTime> {
    let (certificate, _) = take(certificate, SEQUENCE)?;
    let (mut rest, _) = take(certificate, SEQUENCE)?;
    if let Some((_, after)) = take(rest, VERSION) {
        rest = after;
    }
    // serial number, signature algorithm, issuer
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, rest) = take(rest, tag)?;
    }
    let (validity, _) = take(rest, SEQUENCE)?;
    let (_, _, rest) = element(validity)?;
    match element(rest)? {
        // two digits of the year: RFC 5280, 4.1.2.5.1
        (UTC_TIME, time, _) => {
            let century = if *time.first()? >= b'5' { "19" } else { "20" };
            date_time(&format!("{century}{}", std::str::from_utf8(time).ok()?))
        }
        (GENERALIZED_TIME, time, _) => date_time(std::str::from_utf8(time).ok()?),
        _ => None,
    }
}

fn date_time(text: &str) -> Option<DateTime> {
    DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()
}

/// The content of the first element, which has to have that tag, and what follows it.
fn take(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(input)?;
    (found == tag).then_some((content, rest))
}

/// Tag and content of the first element, and what follows it (X.690, 8.1; no tag here is longer than a byte).
fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        let add = |length: usize, digit: &u8| length << 8 | usize::from(*digit);
        (digits.iter().fold(0, add), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn certificate(until: (i32, u8, u8)) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(["a.org".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_found_in_either_writing() {
        for until in [(2049, 12, 31), (2050, 1, 1), (1999, 2, 3), (4096, 1, 1)] {
            let found = not_after(&certificate(until)).unwrap();
            let date = (found.year(), found.month(), found.day());
            let wanted = (i16::try_from(until.0).unwrap(), until.1, until.2);
            assert_eq!(
                date,
                (wanted.0, wanted.1.cast_signed(), wanted.2.cast_signed())
            );
        }
    }

    #[test]
    fn what_is_cut_off_is_no_certificate() {
        let whole = certificate((2049, 12, 31));
        for length in 0..whole.len() {
            assert_eq!(not_after(&whole[..length]), None, "{length}");
        }
        assert_eq!(date_time("99991231235959Z").unwrap().year(), 9999);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(at in 0_usize..400, byte in any::<u8>(), any in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut damaged = certificate((2049, 12, 31));
            let length = damaged.len();
            damaged[at % length] = byte;
            let _ = not_after(&damaged);
            prop_assert_eq!(not_after(&any), None);
        }
    }
}
