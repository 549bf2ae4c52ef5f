//! What a person sees of an operation while it runs: bars on a terminal, lines elsewhere, on standard error.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use offshoot_model::operation::{Progress, StepState};
use offshoot_model::{Operation, OperationKind, OperationState, StepRecord};
use tokio::time::Instant;

use crate::context::{Context, Format};
use crate::human;
use crate::term::{Paint, safe};

/// How often a bar's spinner turns.
const TICK: Duration = Duration::from_millis(100);
/// Longest silence of a long step where there are no bars.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows an operation's steps.
pub(crate) struct Display {
    kind: Kind,
    paint: Paint,
    /// The state and step states last shown.
    state: Option<OperationState>,
    steps: Vec<StepState>,
}

enum Kind {
    Silent,
    Lines {
        last: Instant,
    },
    Bars {
        all: MultiProgress,
        bars: BTreeMap<usize, ProgressBar>,
        wait: Option<ProgressBar>,
    },
}

impl Display {
    /// As fits standard error and `--quiet`.
    pub(crate) fn new(context: &Context) -> Self {
        let kind = if context.is_quiet() {
            Kind::Silent
        } else if io::stderr().is_terminal() {
            Kind::Bars {
                all: MultiProgress::new(),
                bars: BTreeMap::new(),
                wait: None,
            }
        } else if context.format == Format::Json {
            // A program reads standard error for the problem.
            Kind::Silent
        } else {
            Kind::Lines {
                last: Instant::now(),
            }
        };
        Self {
            kind,
            paint: context.err_paint,
            state: None,
            steps: Vec::new(),
        }
    }

    /// Shows what changed.
    pub(crate) fn update(&mut self, operation: &Operation) {
        if self.state.is_none() {
            self.line(&headline(operation));
        }
        if self.state != Some(operation.state) {
            self.state = Some(operation.state);
            match operation.state {
                OperationState::Waiting => {
                    self.wait("waiting for another change to the same environment")
                }
                OperationState::Undoing => {
                    self.clear_bars();
                    self.line("undoing what was done");
                }
                _ => self.wait_over(),
            }
        }
        self.steps.resize(operation.steps.len(), StepState::Pending);
        for (index, step) in operation.steps.iter().enumerate() {
            let before = self.steps.get(index).copied().unwrap_or(StepState::Pending);
            if before != step.state {
                if let Some(line) = transition(step, self.paint) {
                    self.end_bar(index);
                    self.line(&line);
                }
                if let Some(slot) = self.steps.get_mut(index) {
                    *slot = step.state;
                }
            }
            if step.state == StepState::Running {
                self.running(index, step);
            }
        }
    }

    /// Takes the bars away: what follows is written below what was.
    pub(crate) fn finish(&mut self) {
        self.clear_bars();
        self.wait_over();
    }

    /// A message between the bars.
    pub(crate) fn line(&mut self, text: &str) {
        match &self.kind {
            Kind::Silent => {}
            Kind::Lines { .. } => {
                let _ = writeln!(io::stderr().lock(), "{text}");
            }
            Kind::Bars { all, .. } => {
                let _ = all.println(text);
            }
        }
    }

    /// Runs `talk` with the bars out of the way.
    pub(crate) fn suspend<T>(&mut self, talk: impl FnOnce() -> T) -> T {
        match &self.kind {
            Kind::Bars { all, .. } => all.suspend(talk),
            _ => talk(),
        }
    }

    fn wait(&mut self, text: &str) {
        if let Kind::Bars { all, wait, .. } = &mut self.kind {
            let bar = all.add(ProgressBar::new_spinner().with_message(text.to_owned()));
            bar.enable_steady_tick(TICK);
            *wait = Some(bar);
        } else {
            self.line(text);
        }
    }

    fn wait_over(&mut self) {
        if let Kind::Bars { wait, .. } = &mut self.kind
            && let Some(bar) = wait.take()
        {
            bar.finish_and_clear();
        }
    }

    fn running(&mut self, index: usize, step: &StepRecord) {
        match &mut self.kind {
            Kind::Silent => {}
            Kind::Lines { last } => {
                if let Some(progress) = &step.progress
                    && last.elapsed() >= LINE_EVERY
                {
                    *last = Instant::now();
                    let line = format!("  {}: {}", step.name, amounts(progress));
                    self.line(&line);
                }
            }
            Kind::Bars { all, bars, .. } => {
                let bar = bars.entry(index).or_insert_with(|| {
                    let bar = all.add(ProgressBar::new_spinner());
                    bar.enable_steady_tick(TICK);
                    bar
                });
                show_progress(bar, step);
            }
        }
    }

    fn end_bar(&mut self, index: usize) {
        if let Kind::Bars { bars, .. } = &mut self.kind
            && let Some(bar) = bars.remove(&index)
        {
            bar.finish_and_clear();
        }
    }

    fn clear_bars(&mut self) {
        if let Kind::Bars { bars, .. } = &mut self.kind {
            for bar in std::mem::take(bars).into_values() {
                bar.finish_and_clear();
            }
        }
    }
}

/// `Cloning shop as shop-clone`.
pub(crate) fn headline(operation: &Operation) -> String {
    let subject = safe(&operation.subject);
    match (operation.kind, &operation.parent) {
        (OperationKind::Create, _) => format!("Creating {subject}"),
        (OperationKind::Clone, Some(parent)) => format!("Cloning {} as {subject}", safe(parent)),
        (OperationKind::Clone, None) => format!("Cloning {subject}"),
        (OperationKind::Rename, _) => format!("Renaming {subject}"),
        (OperationKind::Hold, _) => format!("Changing what {subject} holds"),
        (OperationKind::Start, _) => format!("Starting {subject}"),
        (OperationKind::Stop, _) => format!("Stopping {subject}"),
        (OperationKind::Remove, _) => format!("Removing {subject}"),
        (OperationKind::ImagePull, _) => format!("Fetching image {subject}"),
        (OperationKind::PoolGrow, _) => "Growing the pool".to_owned(),
        (OperationKind::DomainAdd, _) => format!("Adding domains to {subject}"),
        (OperationKind::DomainRemove, _) => format!("Removing a domain from {subject}"),
        (OperationKind::DomainHttps, _) => format!("Changing a domain of {subject}"),
        (OperationKind::CertificateAdd, _) => format!("Getting a certificate for {subject}"),
        (OperationKind::CertificateRemove, _) => {
            format!("Removing the certificate of {subject}")
        }
        (OperationKind::CertificateRenew, _) => format!("Renewing the certificate of {subject}"),
        (OperationKind::Swap, _) => match &operation.swap {
            Some(swap) => format!("Swapping {subject} and {}", safe(&swap.with)),
            None => format!("Swapping {subject}"),
        },
        (OperationKind::TrafficSet, _) => format!("Setting the traffic policy of {subject}"),
        (OperationKind::TrafficRamp, _) => match &operation.traffic {
            Some(report) => format!("Ramping {subject} to {}", safe(&report.new)),
            None => format!("Ramping {subject}"),
        },
        (OperationKind::Promote, _) => match &operation.traffic {
            Some(report) => format!("Promoting {subject} in place of {}", safe(&report.old)),
            None => format!("Promoting {subject}"),
        },
    }
}

/// What to say when a step reached a state; nothing for the begin of short steps.
fn transition(step: &StepRecord, paint: Paint) -> Option<String> {
    let name = safe(&step.name);
    Some(match step.state {
        StepState::Pending | StepState::Running => return None,
        StepState::Done => {
            let took = step.us.map(human::duration).unwrap_or_default();
            format!("  {} {name:<24} {}", paint.green("done"), paint.dim(&took))
                .trim_end()
                .to_owned()
        }
        StepState::Failed => format!("  {} {name}", paint.red("failed")),
        StepState::Undone => format!("  {} {name}", paint.yellow("undone")),
    })
}

fn amounts(progress: &Progress) -> String {
    let note = safe(&progress.note);
    let done = human::amount(progress.done, &progress.unit);
    let text = if progress.total == 0 {
        done
    } else {
        format!(
            "{done} of {}",
            human::amount(progress.total, &progress.unit)
        )
    };
    if note.is_empty() {
        text
    } else {
        format!("{text} ({note})")
    }
}

fn show_progress(bar: &ProgressBar, step: &StepRecord) {
    let name = safe(&step.name).into_owned();
    let (template, length, done, message) = match &step.progress {
        Some(progress) if progress.total > 0 => {
            let counted = if progress.unit == "bytes" {
                "{binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}"
            } else {
                "{pos}/{len}"
            };
            (
                format!("  {{spinner}} {{prefix:<24}} [{{bar:28}}] {counted} {{wide_msg}}"),
                progress.total,
                progress.done,
                safe(&progress.note).into_owned(),
            )
        }
        Some(progress) => (
            "  {spinner} {prefix:<24} {elapsed} {wide_msg}".to_owned(),
            0,
            0,
            amounts(progress),
        ),
        None => (
            "  {spinner} {prefix:<24} {elapsed}".to_owned(),
            0,
            0,
            String::new(),
        ),
    };
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(name);
    bar.set_message(message);
    if length > 0 {
        bar.set_length(length);
        bar.set_position(done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_as_lines() {
        let step = |state, us| StepRecord {
            name: "network".to_owned(),
            state,
            us,
            progress: None,
        };
        assert_eq!(
            transition(&step(StepState::Running, None), Paint::Plain),
            None
        );
        assert_eq!(
            transition(&step(StepState::Done, Some(12_300)), Paint::Plain).unwrap(),
            "  done network                  12.3 ms"
        );
        assert_eq!(
            transition(&step(StepState::Undone, None), Paint::Plain).unwrap(),
            "  undone network"
        );
    }

    #[test]
    fn amounts_in_their_unit() {
        let progress = |done, total, unit: &str, note: &str| Progress {
            done,
            total,
            unit: unit.to_owned(),
            note: note.to_owned(),
        };
        assert_eq!(
            amounts(&progress(3 << 20, 12 << 20, "bytes", "layer 1")),
            "3.0 MiB of 12.0 MiB (layer 1)"
        );
        assert_eq!(amounts(&progress(2, 0, "packages", "")), "2 packages");
    }
}
