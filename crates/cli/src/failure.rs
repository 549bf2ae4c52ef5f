//! How a command fails: what is printed, and the exit status.

use std::io::{self, Write as _};

use offshoot_model::{Code, Fault, Problem};

use crate::context::{Context, Format};
use crate::term::{Paint, safe};

/// Exit status for a problem.
pub(crate) const STATUS_PROBLEM: i32 = 1;
/// Exit status for a command line that was not understood (clap's own is the same).
pub(crate) const STATUS_USAGE: i32 = 2;

/// Why a command ends with a status other than 0.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something went wrong; printed as a problem.
    Problem(Box<Problem>),
    /// The command line asks for something that cannot be.
    Usage(String),
    /// All was said already; or the status of a command that was run.
    Status(i32),
    /// Whoever reads our output went away, as `head` does: not an error.
    ReaderGone,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ReaderGone;
        }
        Problem::new(
            Code::Internal,
            Fault::Host,
            format!("input or output failed: {error}"),
            "check that the disk has room and that standard input and output are open",
        )
        .into()
    }
}

impl Failure {
    /// Prints what is to be said, on standard error, and answers the exit status.
    pub(crate) fn report(&self, context: &Context) -> i32 {
        // Nothing is left to do when standard error cannot be written to.
        let mut stderr = io::stderr().lock();
        match self {
            Self::Problem(problem) => {
                let _ = match context.format {
                    Format::Json => writeln!(stderr, "{}", problem_json(problem)),
                    Format::Table => write!(stderr, "{}", render(problem, context.err_paint)),
                };
                STATUS_PROBLEM
            }
            Self::Usage(text) => {
                let _ = match context.format {
                    Format::Json => writeln!(
                        stderr,
                        "{}",
                        problem_json(&Problem::new(
                            Code::BadRequest,
                            Fault::Request,
                            text,
                            "see --help"
                        ))
                    ),
                    Format::Table => writeln!(stderr, "{} {text}", context.err_paint.red("error:")),
                };
                STATUS_USAGE
            }
            Self::Status(status) => *status,
            Self::ReaderGone => 0,
        }
    }
}

fn problem_json(problem: &Problem) -> String {
    serde_json::to_string(problem).unwrap_or_else(|error| format!("{{\"what\":\"{error}\"}}"))
}

/// A problem for people: `error[code]: what`, then details, whose doing it is, and what to do.
pub(crate) fn render(problem: &Problem, paint: Paint) -> String {
    let mut text = format!(
        "{} {}\n",
        paint.red(&format!("error[{}]:", problem.code)),
        safe(&problem.what)
    );
    for detail in &problem.details {
        for line in detail.lines() {
            text.push_str(&format!("  {}\n", safe(line)));
        }
    }
    let fault = match problem.fault {
        Fault::Request => "the request",
        Fault::Host => "the host",
        Fault::Environment => "what runs in the environment, or its image",
        Fault::Offshoot => "Offshoot itself: a defect",
    };
    text.push_str(&format!("  {} {fault}\n", paint.dim("fault:")));
    if !problem.next.is_empty() {
        text.push_str(&format!(
            "  {}  {}\n",
            paint.cyan("next:"),
            safe(&problem.next)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem() -> Problem {
        Problem::new(
            Code::ManifestUnsupported,
            Fault::Request,
            "the manifest asks for something that Offshoot does not do",
            "remove the line, or run the service elsewhere",
        )
        .detail("compose.yaml:12: services.web.gpus is not supported")
        .detail("two\nlines, one \u{1b}]0;hostile\u{7}")
    }

    #[test]
    fn a_problem_for_people() {
        insta::assert_snapshot!(render(&problem(), Paint::Plain), @r"
        error[manifest-unsupported]: the manifest asks for something that Offshoot does not do
          compose.yaml:12: services.web.gpus is not supported
          two
          lines, one ?]0;hostile?
          fault: the request
          next:  remove the line, or run the service elsewhere
        ");
    }

    #[test]
    fn colours_only_when_asked() {
        assert!(render(&problem(), Paint::Colour).contains("\u{1b}["));
        assert!(!render(&problem(), Paint::Plain).contains('\u{1b}'));
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(failure, Failure::ReaderGone));
    }
}
