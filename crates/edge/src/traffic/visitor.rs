//! The edge's cookie: who a visitor is, and what was counted of them already.
//!
//! `<id>` and up to four of `.<tag>-<sides>-<goals>`: the tag stands for one counting of one owner, the other two are
//! the sides where the visitor came and the goals they reached, a bit each; all in hexadecimal digits. Marks of several
//! owners are there because paths of one host name may lead to several. It is the client's word, as every cookie is:
//! whoever writes their own chooses their side and is counted again.

use std::fmt::Write;

use super::Facts;

/// Name of the cookie.
pub(crate) const COOKIE: &str = "offshoot-visitor";
/// Seconds that it is kept after it was set: 90 days.
const MAX_AGE: u32 = 90 * 86_400;
const MARKS_MAX: usize = 4;

/// Who asks, and what was counted of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Visitor {
    id: [u8; 16],
    /// The last that was used last.
    marks: Vec<Mark>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    tag: u32,
    sides: u32,
    goals: u32,
}

/// What is counted of a visitor for the first time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct New {
    /// Whether they had not been on this side before.
    pub(super) visitor: bool,
    /// The goals that they had not reached before, a bit each.
    pub(super) goals: u32,
}

impl Visitor {
    /// Who asks; somebody new when there is no cookie of ours. `None` when the kernel gives no random numbers.
    pub(super) fn of(request: &Facts<'_>) -> Option<Self> {
        let known = request.cookies(COOKIE).find_map(Self::parse);
        known.or_else(|| {
            let mut id = [0; 16];
            getrandom::fill(&mut id).ok()?;
            let marks = Vec::new();
            Some(Self { id, marks })
        })
    }

    /// What stays the same for a visitor.
    pub(super) fn id(&self) -> &[u8] {
        &self.id
    }

    /// Notes that they came to a side and reached goals, a bit each.
    pub(super) fn note(&mut self, tag: u32, side: usize, goals: u32) -> New {
        let side = u32::try_from(side)
            .ok()
            .and_then(|at| 1_u32.checked_shl(at));
        let side = side.unwrap_or(0);
        let place = self.marks.iter().position(|mark| mark.tag == tag);
        let mut mark = match place {
            Some(place) => self.marks.remove(place),
            None => Mark {
                tag,
                sides: 0,
                goals: 0,
            },
        };
        let new = New {
            visitor: mark.sides & side != side,
            goals: goals & !mark.goals,
        };
        mark.sides |= side;
        mark.goals |= goals;
        if self.marks.len() >= MARKS_MAX {
            self.marks.remove(0);
        }
        self.marks.push(mark);
        new
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(value).ok()?.split('.');
        let id = hexadecimal(parts.next()?, 32..=32)?.to_be_bytes();
        let marks = parts.map(Mark::parse).collect::<Option<Vec<_>>>()?;
        (marks.len() <= MARKS_MAX).then_some(Self { id, marks })
    }

    /// The value of a `Set-Cookie` field.
    pub(super) fn set_cookie(&self, secure: bool) -> String {
        let mut text = format!("{COOKIE}={:032x}", u128::from_be_bytes(self.id));
        for Mark { tag, sides, goals } in &self.marks {
            // writing to a string does not fail
            let _ = write!(text, ".{tag:08x}-{sides:x}-{goals:x}");
        }
        let _ = write!(text, "; Path=/; Max-Age={MAX_AGE}; HttpOnly; SameSite=Lax");
        if secure {
            text.push_str("; Secure");
        }
        text
    }
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let mut next = |digits| u32::try_from(hexadecimal(parts.next()?, digits)?).ok();
        let mark = Self {
            tag: next(8..=8)?,
            sides: next(1..=8)?,
            goals: next(1..=8)?,
        };
        parts.next().is_none().then_some(mark)
    }
}

/// A number in hexadecimal digits as we write them: that many, in lower case.
fn hexadecimal(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u128> {
    let ours = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if !digits.contains(&text.len()) || !text.bytes().all(ours) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::facts::tests::request;
    use super::*;

    const ID: &str = "000102030405060708090a0b0c0d0e0f";

    fn parse(text: &str) -> Option<Visitor> {
        Visitor::parse(text.as_bytes())
    }

    #[test]
    fn cookies_are_written_as_they_are_read() {
        let mut visitor = parse(ID).unwrap();
        assert_eq!(visitor.id(), (0..16).collect::<Vec<u8>>());
        let new = |visitor, goals| New { visitor, goals };
        assert_eq!(visitor.note(7, 0, 0), new(true, 0));
        assert_eq!(visitor.note(7, 0, 0b11), new(false, 0b11));
        assert_eq!(visitor.note(7, 31, 0b110), new(true, 0b100));
        assert_eq!(visitor.note(8, 0, 0b1), new(true, 0b1));
        assert_eq!(visitor.note(7, 0, 0b111), new(false, 0));
        let text = visitor.set_cookie(false);
        let wanted = format!("{COOKIE}={ID}.00000008-1-1.00000007-80000001-7");
        assert_eq!(
            text,
            format!("{wanted}; Path=/; Max-Age=7776000; HttpOnly; SameSite=Lax")
        );
        assert_eq!(visitor.set_cookie(true), format!("{text}; Secure"));
        let value = wanted.split_once('=').unwrap().1;
        assert_eq!(parse(value), Some(visitor));
    }

    #[test]
    fn marks_are_bounded_and_the_oldest_goes() {
        let mut visitor = parse(ID).unwrap();
        for tag in 0..9 {
            visitor.note(tag, 0, 0);
        }
        let tags: Vec<_> = visitor.marks.iter().map(|mark| mark.tag).collect();
        assert_eq!(tags, [5, 6, 7, 8]);
    }

    #[test]
    fn what_is_not_ours_is_absent() {
        for text in [
            "",
            "1",
            "000102030405060708090A0B0C0D0E0F",
            "000102030405060708090a0b0c0d0e0f00",
            "+00102030405060708090a0b0c0d0e0f",
            "000102030405060708090a0b0c0d0e0f.",
            "000102030405060708090a0b0c0d0e0f.00000001",
            "000102030405060708090a0b0c0d0e0f.00000001-1",
            "000102030405060708090a0b0c0d0e0f.00000001-1-",
            "000102030405060708090a0b0c0d0e0f.00000001-1-1-1",
            "000102030405060708090a0b0c0d0e0f.1-1-1",
            "000102030405060708090a0b0c0d0e0f.00000001-100000000-1",
            "000102030405060708090a0b0c0d0e0f.00000001-0-0.00000001-0-0.00000001-0-0.00000001-0-0.00000001-0-0",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        let cookie = format!("{COOKIE}=x; {COOKIE}={ID}");
        let request = request("GET", "/", &[("cookie", &cookie)]);
        let found = Visitor::of(&Facts::new(&request, None));
        assert_eq!(found, parse(ID), "a planted cookie hides ours");
    }

    proptest! {
        #[test]
        fn no_value_breaks_it(value in "[0-9a-f]{32}(\\.[0-9a-f]{8}-[0-9a-f]{0,9}-[0-9a-f]{0,9}){0,5}|.{0,80}") {
            if let Some(mut visitor) = parse(&value) {
                visitor.note(1, 99, u32::MAX);
                let text = visitor.set_cookie(true);
                let value = text.split(['=', ';']).nth(1).unwrap();
                prop_assert_eq!(parse(value), Some(visitor));
            }
        }
    }
}
