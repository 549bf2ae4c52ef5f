//! Swap: two environments exchange their custom domains in one step, after what gets them was seen to answer.

use std::time::Duration;

use async_trait::async_trait;
use offshoot_edge_api::{covers, normal_path};
use offshoot_engine::Exposed;
use offshoot_model::domain::{MovedDomain, SwapReport, Warm};
use offshoot_model::view::SwapRequest;
use offshoot_model::{
    Code, Domain, EnvId, Environment, EnvironmentState, Fault, Node, Problem, ProgressSink,
};
use offshoot_store::LastSwap;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout_at};

use crate::domains::no_entry;
use crate::hold::warn_held;
use crate::runner::cancelled;
use crate::saga::{Cx, Plan, Saga, Settle};
use crate::shared::{Change, Shared, store_problem};
use crate::submit::Draft;

/// Pause before a side that did not answer well is asked again.
const AGAIN: Duration = Duration::from_millis(100);
/// Bounds on what may be asked before a switch.
const PATHS: std::ops::RangeInclusive<usize> = 1..=32;
const PATH_MAX: usize = 2_048;
const ANSWERS: std::ops::RangeInclusive<u32> = 1..=100;
const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 100..=600_000;

/// Exchanges the custom domains of two environments.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Swap {
    pub(crate) one: EnvId,
    pub(crate) other: EnvId,
    pub(crate) back: bool,
    pub(crate) warm: Warm,
    /// What each has before; decided by the pre-flight, true as long as both are held.
    pub(crate) of_one: Vec<Domain>,
    pub(crate) of_other: Vec<Domain>,
    /// Whether the switch may have begun.
    pub(crate) switching: bool,
}

#[async_trait]
impl Saga for Swap {
    fn steps(&self) -> &'static [&'static str] {
        &["preflight", "warm", "switch"]
    }

    fn environments(&self) -> Vec<EnvId> {
        vec![self.one.clone(), self.other.clone()]
    }

    async fn run(&mut self, step: &'static str, cx: &Cx) -> Result<(), Problem> {
        match step {
            "preflight" => {
                self.preflight(cx)?;
                self.refuse_policies(cx)
            }
            "warm" => {
                self.warm_up(cx).await?;
                // Journalled with the end of this step, before the switch can begin.
                self.switching = true;
                Ok(())
            }
            _ => self.switch(cx).await,
        }
    }

    async fn undo(&mut self, cx: &Cx) -> Result<(), Problem> {
        if !self.switching {
            return Ok(());
        }
        let places = self.places_before();
        let record = || {
            cx.shared
                .store
                .place_domains(&places)
                .map_err(store_problem)
        };
        cx.shared
            .expose_after(Some(cx.live.id()), Change::None, record)
            .await?;
        self.tell_unswitched(cx);
        Ok(())
    }

    fn on_success(&self) -> Settle {
        Settle::Swapped(LastSwap {
            one: (self.one.clone(), self.of_other.clone()),
            other: (self.other.clone(), self.of_one.clone()),
        })
    }
}

impl Swap {
    /// An exchange of what `one` and `other` have, after it was asked for as `warm` says.
    pub(crate) fn new(one: &Environment, other: &Environment, warm: Warm) -> Self {
        Self {
            one: one.id.clone(),
            other: other.id.clone(),
            back: false,
            warm,
            of_one: Vec::new(),
            of_other: Vec::new(),
            switching: false,
        }
    }

    /// What is told of a swap with `other` before anything is known.
    pub(crate) fn report(other: &Environment) -> SwapReport {
        SwapReport {
            with: other.name.to_string(),
            moved: Vec::new(),
            switched: None,
            us: None,
            version: None,
        }
    }

    /// Who has which domain before.
    pub(crate) fn places_before(&self) -> Vec<(Domain, EnvId)> {
        places(&self.of_one, &self.one, &self.of_other, &self.other)
    }

    /// Who has which domain after it.
    pub(crate) fn places_after(&self) -> Vec<(Domain, EnvId)> {
        places(&self.of_one, &self.other, &self.of_other, &self.one)
    }

    /// Tells when the other side began to answer.
    pub(crate) fn tell_switched(&self, cx: &Cx, exposed: &Exposed) {
        report(cx, |report| {
            report.switched = Some(exposed.at);
            report.us = Some(exposed.us);
            report.version = Some(exposed.version);
        });
    }

    /// Tells that everything is as it was.
    pub(crate) fn tell_unswitched(&self, cx: &Cx) {
        report(cx, |report| {
            (report.switched, report.us, report.version) = (None, None, None);
        });
    }

    /// A policy with sides is about the domains that it was made for: only a promotion knows what becomes of it.
    fn refuse_policies(&self, cx: &Cx) -> Result<(), Problem> {
        for id in [&self.one, &self.other] {
            let Some(policy) = cx.shared.store.policy(id).map_err(store_problem)? else {
                continue;
            };
            let environment = cx.shared.by_id(id)?;
            if policy.leads() {
                return Err(leads_elsewhere(&environment));
            }
            if policy.fence {
                let name = &environment.name;
                return Err(wrong(
                    format!("nobody is let in to {name}: its traffic policy fences it"),
                    format!("let people in first: `offshoot traffic set {name} --fence off`"),
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn preflight(&mut self, cx: &Cx) -> Result<(), Problem> {
        let one = cx.shared.by_id(&self.one)?;
        let other = cx.shared.by_id(&self.other)?;
        for environment in [&one, &other] {
            must_answer(environment)?;
        }
        let had = |id: &EnvId| -> Result<Vec<Domain>, Problem> {
            let domains = cx.shared.store.domains(id).map_err(store_problem)?;
            Ok(domains.iter().map(|domain| domain.domain()).collect())
        };
        (self.of_one, self.of_other) = (had(&self.one)?, had(&self.other)?);
        if self.back {
            self.must_be_as_swapped(cx, &one, &other)?;
        }
        if self.of_one.is_empty() && self.of_other.is_empty() {
            return Err(wrong(
                format!(
                    "neither {} nor {} has a custom domain: there is nothing to exchange",
                    one.name, other.name
                ),
                format!(
                    "give one of them a domain: `offshoot domain add {} DOMAIN`",
                    one.name
                ),
            ));
        }
        let moves = |domains: &[Domain], from: &Environment, to: &Environment| {
            let moved = |domain: &Domain| MovedDomain {
                host: domain.host.clone(),
                path: domain.path.clone(),
                from: from.name.to_string(),
                to: to.name.to_string(),
            };
            domains.iter().map(moved).collect::<Vec<_>>()
        };
        let mut moved = moves(&self.of_one, &one, &other);
        moved.extend(moves(&self.of_other, &other, &one));
        report(cx, |report| report.moved = moved);
        Ok(())
    }

    /// The way back is open only while each has what the last swap gave it.
    fn must_be_as_swapped(
        &self,
        cx: &Cx,
        one: &Environment,
        other: &Environment,
    ) -> Result<(), Problem> {
        let last = cx
            .shared
            .store
            .last_swap(&self.one, &self.other)
            .map_err(store_problem)?
            .ok_or_else(|| {
                wrong(
                    format!("{} and {} were never swapped", one.name, other.name),
                    format!("swap them: `offshoot swap {} {}`", one.name, other.name),
                )
            })?;
        for (environment, then, now) in [
            (one, &last.one.1, &self.of_one),
            (other, &last.other.1, &self.of_other),
        ] {
            if then != now {
                let list = |domains: &[Domain]| match domains {
                    [] => "none".to_owned(),
                    some => some
                        .iter()
                        .map(Domain::to_string)
                        .collect::<Vec<_>>()
                        .join(", "),
                };
                return Err(wrong(
                    format!(
                        "the domains of {} changed since the last swap of {} and {}",
                        environment.name, one.name, other.name
                    ),
                    format!(
                        "exchange what they have now without --back: `offshoot swap {} {}`",
                        one.name, other.name
                    ),
                )
                .detail(format!("after the swap: {}", list(then)))
                .detail(format!("now: {}", list(now))));
            }
        }
        Ok(())
    }

    /// Asks for every domain at every entry node that will get it.
    pub(crate) async fn warm_up(&self, cx: &Cx) -> Result<(), Problem> {
        let deadline = Instant::now() + Duration::from_millis(self.warm.timeout_ms);
        let one = cx.shared.by_id(&self.one)?;
        let other = cx.shared.by_id(&self.other)?;
        let mut targets = Vec::new();
        for (domains, environment) in [(&self.of_one, &other), (&self.of_other, &one)] {
            for domain in domains {
                for node in entry_nodes(environment) {
                    let paths = self.warm.paths.iter();
                    targets.extend(paths.map(|path| Target {
                        environment,
                        node,
                        host: some_host(&domain.host),
                        path: below(&domain.path, path),
                    }));
                }
            }
        }
        for (done, target) in targets.iter().enumerate() {
            let note = format!(
                "{}{} at {}",
                target.host, target.path, target.environment.name
            );
            let (done, total) = (done as u64, targets.len() as u64);
            cx.progress().report(done, total, "requests", &note);
            tokio::select! {
                biased;
                () = cx.live.until_cancelled() => return Err(cancelled()),
                answered = self.answers_well(cx, target, deadline) => answered?,
            }
        }
        Ok(())
    }

    async fn answers_well(
        &self,
        cx: &Cx,
        target: &Target<'_>,
        deadline: Instant,
    ) -> Result<(), Problem> {
        let mut good = 0;
        let mut last = "it was not asked: others took all the time".to_owned();
        loop {
            let asked =
                cx.engine()
                    .ask_entry(target.environment, target.node, &target.host, target.path);
            let Ok(answer) = timeout_at(deadline, asked).await else {
                return Err(self.cold(target, &last));
            };
            match answer {
                Ok(status) if status < 500 => {
                    good += 1;
                    last = format!("status {status}, {good} good answers in a row");
                    if good >= self.warm.answers {
                        return Ok(());
                    }
                }
                Ok(status) => (good, last) = (0, format!("status {status}")),
                Err(why) => (good, last) = (0, why),
            }
            if Instant::now() >= deadline {
                return Err(self.cold(target, &last));
            }
            if good == 0 {
                sleep(AGAIN).await;
            }
        }
    }

    fn cold(&self, target: &Target<'_>, last: &str) -> Problem {
        let name = &target.environment.name;
        Problem::new(
            Code::WarmFailed,
            Fault::Environment,
            format!(
                "environment {name} did not give {} good answers in a row within {} ms; nothing was switched",
                self.warm.answers, self.warm.timeout_ms
            ),
            format!(
                "look at `offshoot logs {name}`; ask for other paths with --warm, or allow more with --warm-timeout"
            ),
        )
        .detail(format!(
            "GET {} with Host {} at node {}: {last}",
            target.path,
            target.host,
            target.node.name()
        ))
    }

    async fn switch(&mut self, cx: &Cx) -> Result<(), Problem> {
        let places = self.places_after();
        let record = || {
            cx.shared
                .store
                .place_domains(&places)
                .map_err(store_problem)
        };
        let exposed = cx
            .shared
            .expose_after(Some(cx.live.id()), Change::None, record)
            .await?;
        cx.note_refused(&exposed);
        self.tell_switched(cx, &exposed);
        for (domains, id) in [(&self.of_one, &self.other), (&self.of_other, &self.one)] {
            if !domains.is_empty() {
                warn_held(cx, id)?;
            }
        }
        Ok(())
    }
}

/// One thing to ask for before the switch.
struct Target<'a> {
    environment: &'a Environment,
    node: &'a Node,
    host: String,
    path: &'a str,
}

/// Nodes of the layer that domains lead to.
pub(crate) fn entry_nodes(environment: &Environment) -> impl Iterator<Item = &Node> {
    let layer = environment.manifest.entry().map(|(layer, _)| &layer.name);
    environment
        .nodes
        .iter()
        .filter(move |node| Some(&node.layer) == layer)
}

/// Who gets which.
fn places(ones: &[Domain], id: &EnvId, others: &[Domain], id2: &EnvId) -> Vec<(Domain, EnvId)> {
    let to = |domains: &[Domain], id: &EnvId| {
        let to = |domain: &Domain| (domain.clone(), id.clone());
        domains.iter().map(to).collect::<Vec<_>>()
    };
    let mut places = to(ones, id);
    places.extend(to(others, id2));
    places
}

/// A host name that a domain stands for: of a wildcard, the one that most people ask for.
fn some_host(host: &str) -> String {
    host.strip_prefix("*.")
        .map_or_else(|| host.to_owned(), |parent| format!("www.{parent}"))
}

/// The path to ask for where a domain leads from `prefix` on: `path`, if it is there, or else the first that is.
fn below<'a>(prefix: &'a str, path: &'a str) -> &'a str {
    let bare = path.split('?').next().unwrap_or_default();
    if covers(prefix, &normal_path(bare)) {
        path
    } else {
        prefix
    }
}

fn report(cx: &Cx, change: impl FnOnce(&mut SwapReport)) {
    cx.live.change(|operation| {
        if let Some(report) = &mut operation.swap {
            change(report);
        }
    });
}

fn wrong(what: String, next: String) -> Problem {
    Problem::new(Code::WrongState, Fault::Request, what, next)
}

/// An environment whose policy has others answer, or checks who does.
pub(crate) fn leads_elsewhere(environment: &Environment) -> Problem {
    let name = &environment.name;
    wrong(
        format!("the traffic policy of {name} has sides, checks or a mirror of its own"),
        format!(
            "clear it first: `offshoot traffic clear {name}`; `offshoot traffic show {name}` tells what it is"
        ),
    )
}

/// Whether an environment runs and has an entry.
pub(crate) fn must_answer(environment: &Environment) -> Result<(), Problem> {
    if environment.manifest.entry().is_none() {
        return Err(no_entry(environment));
    }
    if environment.state != EnvironmentState::Running {
        let name = &environment.name;
        return Err(wrong(
            format!("environment {name} does not run: whoever gets its side would be turned away"),
            format!("start it: `offshoot start {name}`"),
        ));
    }
    Ok(())
}

impl Shared {
    pub(crate) fn draft_swap(
        &self,
        environment: &str,
        request: SwapRequest,
    ) -> Result<Draft, Problem> {
        let one = self.settled(environment, "swapped")?;
        let other = self.settled(&request.with, "swapped")?;
        if one.id == other.id {
            return Err(bad(
                format!("environment {} cannot be swapped with itself", one.name),
                "name two environments",
            ));
        }
        judge(&request.warm)?;
        let plan = Plan::Swap(Swap {
            back: request.back,
            ..Swap::new(&one, &other, request.warm)
        });
        let mut draft = Draft::on(&one, plan);
        draft.swap = Some(Swap::report(&other));
        Ok(draft)
    }
}

/// Whether what is to be asked before a switch is within bounds and can be asked.
pub(crate) fn judge(warm: &Warm) -> Result<(), Problem> {
    if !PATHS.contains(&warm.paths.len()) {
        return Err(bad(
            format!("{} paths to ask for are out of bounds", warm.paths.len()),
            format!("name {} to {}", PATHS.start(), PATHS.end()),
        ));
    }
    let plain = |path: &str| {
        let fits = path.starts_with('/') && path.len() <= PATH_MAX;
        fits && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
    };
    if let Some(path) = warm.paths.iter().find(|path| !plain(path)) {
        let begin: String = path.chars().take(100).collect();
        return Err(bad(
            format!("{begin:?} cannot be asked for"),
            "write a path that begins with / and has no spaces, percent-encoded where needed",
        ));
    }
    if !ANSWERS.contains(&warm.answers) {
        return Err(bad(
            format!("{} good answers in a row cannot be asked for", warm.answers),
            format!("name {} to {}", ANSWERS.start(), ANSWERS.end()),
        ));
    }
    if !TIMEOUT_MS.contains(&warm.timeout_ms) {
        return Err(bad(
            format!("{} ms are no time to wait for answers", warm.timeout_ms),
            "allow 100ms to 600s",
        ));
    }
    Ok(())
}

/// A request that asks for too much or for nothing.
pub(crate) fn bad(what: String, next: impl Into<String>) -> Problem {
    Problem::new(Code::BadRequest, Fault::Request, what, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_what_the_domain_leads_to() {
        assert_eq!(some_host("*.a.test"), "www.a.test");
        assert_eq!(some_host("a.test"), "a.test");
        for (prefix, path, asked) in [
            ("/", "/login?a=/b", "/login?a=/b"),
            ("/shop", "/", "/shop"),
            ("/shop", "/shop/cart?x", "/shop/cart?x"),
            ("/shop", "/shopping", "/shop"),
            ("/shop", "/shop/../admin", "/shop"),
        ] {
            assert_eq!(below(prefix, path), asked);
        }
    }

    #[test]
    fn what_may_be_asked_before_a_switch_is_bounded() {
        judge(&Warm::default()).unwrap();
        let with = |change: fn(&mut Warm)| {
            let mut warm = Warm::default();
            change(&mut warm);
            judge(&warm)
        };
        with(|warm| warm.paths = vec!["/a?b=%20".into()]).unwrap();
        for change in [
            (|warm| warm.paths.clear()) as fn(&mut Warm),
            |warm| warm.paths = vec!["/".into(); 33],
            |warm| warm.paths = vec!["login".into()],
            |warm| warm.paths = vec!["/a b".into()],
            |warm| warm.paths = vec!["/a\r\nHost: b".into()],
            |warm| warm.paths = vec![format!("/{}", "a".repeat(PATH_MAX))],
            |warm| warm.answers = 0,
            |warm| warm.answers = 101,
            |warm| warm.timeout_ms = 1,
        ] {
            assert_eq!(with(change).unwrap_err().code, Code::BadRequest);
        }
    }
}
