#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;

/// Of tests: a day after the start of the host.
const START: Duration = Duration::from_secs(86_400);
const HERE: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn signed_in(sessions: &Sessions, now: Duration) -> Secret {
    let key = sessions.link(now).unwrap();
    sessions.sign_in(key.as_str(), HERE, now).unwrap()
}

#[test]
fn a_link_signs_in_once_and_not_for_long() {
    let (sessions, now) = (Sessions::default(), START);
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
    let (sessions, now) = (Sessions::default(), START);
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
    sessions.sign_out(&session, now);
    assert!(sessions.find(cookie.as_str(), Doing::Person, now).is_none());
}

#[test]
fn whoever_guesses_has_to_wait() {
    let (sessions, now) = (Sessions::default(), START);
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
    let (sessions, now) = (Sessions::default(), START);
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

/// Sessions of a daemon with this file.
fn started(file: &Path, now: Duration) -> Sessions {
    let sessions = Sessions::default();
    sessions.keep_in(file.to_owned(), now).unwrap();
    sessions
}

fn is_in(sessions: &Sessions, cookie: &Secret, now: Duration) -> bool {
    sessions.find(cookie.as_str(), Doing::Page, now).is_some()
}

#[test]
fn sessions_go_on_in_the_next_daemon_and_ended_ones_do_not() {
    let (dir, now) = (tempfile::tempdir().unwrap(), START);
    let file = dir.path().join("sessions");
    let first = started(&file, now);
    let (stays, leaves) = (signed_in(&first, now), signed_in(&first, now));
    let session = first.find(stays.as_str(), Doing::Person, now).unwrap();
    let old = std::fs::read(&file).unwrap();
    let left = first.find(leaves.as_str(), Doing::Person, now).unwrap();
    first.sign_out(&left, now);

    let text = std::fs::read_to_string(&file).unwrap();
    for secret in [stays.as_str(), leaves.as_str(), session.csrf()] {
        assert!(!text.contains(secret), "no secret is kept");
    }
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let second = started(&file, now);
    let again = second.find(stays.as_str(), Doing::Page, now).unwrap();
    assert!(again.sent(session.csrf()), "open pages have good forms");
    assert!(!is_in(&second, &leaves, now), "signed out");
    assert!(!is_in(&started(&file, now + IDLE), &stays, now + IDLE));

    // Of another start of the host, or from before this one's: a copy that somebody brought back.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let old = String::from_utf8(old).unwrap();
    std::fs::write(&file, old.replace(boot.trim(), "another")).unwrap();
    assert!(!is_in(&started(&file, now), &leaves, now));
    std::fs::write(&file, &old).unwrap();
    assert!(!is_in(
        &started(&file, now - Duration::from_secs(1)),
        &leaves,
        now
    ));
}

#[test]
fn what_a_person_does_is_written_down_now_and_then() {
    let (dir, now) = (tempfile::tempdir().unwrap(), START);
    let file = dir.path().join("sessions");
    let sessions = started(&file, now);
    let cookie = signed_in(&sessions, now);
    let written = std::fs::read(&file).unwrap();
    let soon = now + WRITE_AFTER / 2;
    sessions.find(cookie.as_str(), Doing::Person, soon).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), written, "not at every click");
    let later = now + WRITE_AFTER;
    sessions
        .find(cookie.as_str(), Doing::Person, later)
        .unwrap();
    let end = now + IDLE;
    assert!(
        is_in(&started(&file, end), &cookie, end),
        "it was used later"
    );
    assert!(!is_in(&started(&file, later + IDLE), &cookie, later + IDLE));
}

#[test]
fn a_file_that_is_damaged_or_open_to_others_signs_nobody_in() {
    let (dir, now) = (tempfile::tempdir().unwrap(), START);
    let file = dir.path().join("sessions");
    let cookie = signed_in(&started(&file, now), now);
    let good = std::fs::read(&file).unwrap();
    let open = |mode| {
        let to = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&file, to).unwrap();
    };
    open(0o644);
    let next = Sessions::default();
    next.keep_in(file.clone(), now).unwrap_err();
    assert!(!is_in(&next, &cookie, now));
    open(0o600);
    for end in [0, 1, good.len() / 2, good.len() - 1] {
        std::fs::write(&file, &good[..end]).unwrap();
        let next = Sessions::default();
        next.keep_in(file.clone(), now).unwrap_err();
        assert!(!is_in(&next, &cookie, now));
        let new = signed_in(&next, now);
        assert!(is_in(&started(&file, now), &new, now), "replaced");
    }
}

#[test]
fn where_nothing_can_be_written_no_old_list_stays() {
    let (dir, now) = (tempfile::tempdir().unwrap(), START);
    let file = dir.path().join("sessions");
    let sessions = started(&file, now);
    let cookie = signed_in(&sessions, now);
    let session = sessions.find(cookie.as_str(), Doing::Person, now).unwrap();
    // What is written beside it cannot be: a directory stands there.
    std::fs::create_dir_all(dir.path().join("sessions.new/full")).unwrap();
    sessions.sign_out(&session, now);
    assert!(!is_in(&started(&file, now), &cookie, now));
}
