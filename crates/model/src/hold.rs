//! What an environment must not do: a copy of production must not write to customers, nor bill them twice.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// TCP ports at which mail is handed over (RFC 5321, RFC 8314, RFC 6409; 2525 is what providers offer where 25 is closed).
pub const MAIL_PORTS: [u16; 4] = [25, 465, 587, 2525];

/// What an environment is kept from; `PUT /api/v1/environments/{environment}/held`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hold {
    /// Its mail: connections to [`MAIL_PORTS`] outside of the environment are refused.
    pub mail: bool,
    /// Its jobs: layers that run jobs do not run, and known schedulers in other nodes stand still.
    pub jobs: bool,
}

impl Hold {
    /// Both.
    pub const ALL: Self = Self {
        mail: true,
        jobs: true,
    };

    /// Whether anything is held.
    #[must_use]
    pub fn any(self) -> bool {
        self.mail || self.jobs
    }

    /// What this or `other` holds.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            mail: self.mail || other.mail,
            jobs: self.jobs || other.jobs,
        }
    }

    /// What this holds and `other` does not.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self {
            mail: self.mail && !other.mail,
            jobs: self.jobs && !other.jobs,
        }
    }

    /// What is held, for a sentence: `mail and jobs`; `None` when nothing is.
    #[must_use]
    pub fn words(self) -> Option<&'static str> {
        match (self.mail, self.jobs) {
            (true, true) => Some("mail and jobs"),
            (true, false) => Some("mail"),
            (false, true) => Some("jobs"),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIL: Hold = Hold {
        mail: true,
        jobs: false,
    };
    const JOBS: Hold = Hold {
        mail: false,
        jobs: true,
    };

    #[test]
    fn holds_are_put_together_and_taken_apart() {
        assert_eq!(MAIL.and(JOBS), Hold::ALL);
        assert_eq!(Hold::ALL.without(MAIL), JOBS);
        assert_eq!(MAIL.without(JOBS), MAIL);
        assert!(!JOBS.without(JOBS).any());
        assert_eq!(Hold::default().words(), None);
        assert_eq!(Hold::ALL.words(), Some("mail and jobs"));
    }

    #[test]
    fn what_is_not_said_is_not_held_and_what_is_unknown_is_refused() {
        assert_eq!(
            serde_json::from_str::<Hold>(r#"{"mail":true}"#).unwrap(),
            MAIL
        );
        assert!(serde_json::from_str::<Hold>(r#"{"mails":true}"#).is_err());
    }
}
