#![allow(clippy::unwrap_used)]

use super::*;

const HERE: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn signed_in(sessions: &Sessions, now: Instant) -> Secret {
    let key = sessions.link(now).unwrap();
    sessions.sign_in(key.as_str(), HERE, now).unwrap()
}

#[test]
fn a_link_signs_in_once_and_not_for_long() {
    let (sessions, now) = (Sessions::default(), Instant::now());
    let key = sessions.link(now).unwrap();
    let cookie = sessions.sign_in(key.as_str(), HERE, now).unwrap();
    assert_ne!(cookie, key);
    assert!(sessions.find(cookie.as_str(), Doing::Person, now).is_some());
    assert!(sessions.find(key.as_str(), Doing::Person, now).is_none());
    let again = sessions.sign_in(key.as_str(), HERE, now);
    assert_eq!(again.unwrap_err(), Refusal::NoLink);
    let old = sessions.link(now).unwrap();
    let late = sessions.sign_in(old.as_str(), HERE, now + LINK_TIME);
    assert_eq!(late.unwrap_err(), Refusal::NoLink);
    assert_eq!(key.as_str().len(), 64, "256 bits");
    assert_eq!(format!("{key:?}"), "Secret(..)");
}

#[test]
fn sessions_end_when_idle_and_when_signed_out() {
    let (sessions, now) = (Sessions::default(), Instant::now());
    let cookie = signed_in(&sessions, now);
    let later = now + IDLE - Duration::from_secs(1);
    let session = sessions
        .find(cookie.as_str(), Doing::Person, later)
        .unwrap();
    assert!(sessions.goes_on(&session, later + Duration::from_secs(2)));
    // An open page does not keep a session alive.
    let almost = later + IDLE - Duration::from_secs(1);
    assert!(
        sessions
            .find(cookie.as_str(), Doing::Page, almost)
            .is_some()
    );
    assert!(
        sessions
            .find(cookie.as_str(), Doing::Person, later + IDLE)
            .is_none()
    );
    assert!(!sessions.goes_on(&session, later + IDLE));

    let cookie = signed_in(&sessions, now);
    let session = sessions.find(cookie.as_str(), Doing::Person, now).unwrap();
    assert!(session.sent(session.csrf()) && !session.sent("") && !session.sent(cookie.as_str()));
    sessions.sign_out(&session);
    assert!(sessions.find(cookie.as_str(), Doing::Person, now).is_none());
}

#[test]
fn whoever_guesses_has_to_wait() {
    let (sessions, now) = (Sessions::default(), Instant::now());
    let other: IpAddr = "192.0.2.1".parse().unwrap();
    for _ in 0..TRIES {
        let wrong = sessions.sign_in("guess", HERE, now);
        assert_eq!(wrong.unwrap_err(), Refusal::NoLink);
    }
    let key = sessions.link(now).unwrap();
    let refused = sessions.sign_in(key.as_str(), HERE, now);
    assert_eq!(refused.unwrap_err(), Refusal::TooMany);
    sessions.sign_in(key.as_str(), other, now).unwrap();
    let key = sessions.link(now).unwrap();
    sessions
        .sign_in(key.as_str(), HERE, now + TRY_TIME)
        .unwrap();
    assert_eq!(
        neighbourhood("2001:db8::1".parse().unwrap()),
        neighbourhood("2001:db8::ffff:2".parse().unwrap())
    );
}

#[test]
fn there_are_bounds() {
    let (sessions, now) = (Sessions::default(), Instant::now());
    let first = sessions.link(now).unwrap();
    for n in 1..=LINKS_MAX as u64 {
        sessions.link(now + Duration::from_millis(n)).unwrap();
    }
    let gone = sessions.sign_in(first.as_str(), HERE, now);
    assert_eq!(gone.unwrap_err(), Refusal::NoLink);
    for n in 0..ADDRESSES_MAX as u32 {
        let from = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        drop(sessions.sign_in("guess", from, now));
    }
    assert_eq!(sessions.state().failures.len(), ADDRESSES_MAX);
    let cookie = signed_in(&Sessions::default(), now);
    assert!(sessions.find(cookie.as_str(), Doing::Person, now).is_none());
    let sessions = Sessions::default();
    let cookies: Vec<_> = (0..=SESSIONS_MAX as u64)
        .map(|n| signed_in(&sessions, now + Duration::from_millis(n)))
        .collect();
    assert!(
        sessions
            .find(cookies[0].as_str(), Doing::Person, now)
            .is_none()
    );
    assert!(
        sessions
            .find(cookies[1].as_str(), Doing::Person, now)
            .is_some()
    );
}
