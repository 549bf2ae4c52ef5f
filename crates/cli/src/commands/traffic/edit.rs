//! Policies as people type them: what each option changes, and leaves.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use offshoot_model::quantity::{parse_bytes, parse_duration_ms};
use offshoot_model::traffic::{
    Back, Check, Failover, Goal, Mirror, Passive, Policy, ProxyVersion, Rule, Side, Sticky,
};
use offshoot_model::{Code, Fault, Problem};

use super::Apply;
use super::words::{goal, per_second, rule, statuses, sticky, weight};

/// Change a policy: each option changes its part and leaves the rest
///
/// `--file` replaces the whole policy; `offshoot traffic set ENV --dry-run` prints the one there is in that form.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot traffic set shop --side shop=90 --side next=10 --sticky cookie:session\n  \
    offshoot traffic set shop --rule 'header:x-country=AT,CH & path:/new -> next'\n  \
    offshoot traffic set shop --goal paid=/thanks --goal ordered=/order:POST:200-299\n  \
    offshoot traffic set shop --limit-client 20 --limit-body 10m\n  \
    offshoot traffic set shop --dry-run > policy.json\n  \
    offshoot traffic set shop -f policy.json")]
pub(super) struct SetArgs {
    /// Environment, by name or id
    #[arg(value_name = "ENV")]
    pub(super) environment: String,
    /// The whole policy as JSON; - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Who answers, and its weight among all; the best first
    #[arg(long, value_name = "NAME=WEIGHT", value_parser = weight, conflicts_with = "file")]
    side: Vec<(String, u32)>,
    /// What keeps a visitor on a side: visitor (a cookie of the edge's), client (its address), cookie:NAME, header:NAME,
    /// query:NAME, nothing
    #[arg(long, value_name = "WHAT", value_parser = sticky, conflicts_with = "file")]
    sticky: Option<Sticky>,
    /// Requests that go to one side: 'CONDITION & CONDITION -> NAME', where a condition is path:/P, method:M,M,
    /// client:NETWORK,NETWORK, or header:, cookie: or query:NAME=VALUE,VALUE; '' for no rules
    #[arg(long, value_name = "RULE", value_parser = rule, conflicts_with = "file")]
    rule: Vec<Option<Rule>>,
    #[arg(
        long,
        value_name = "GOAL",
        value_parser = goal,
        conflicts_with = "file",
        // not as a comment, where rustdoc takes [...] for links
        help = "What counts as a success of a side: NAME=PATH[:METHOD][:STATUS]; '' for no goals"
    )]
    goal: Vec<Option<Goal>>,
    /// Requests a second of one client, also 50/s; 0 for no bound, as in all of these
    #[arg(long, value_name = "N", value_parser = per_second, conflicts_with = "file")]
    limit_client: Option<u32>,
    /// Requests that one client may make at once above that
    #[arg(long, value_name = "N", conflicts_with = "file")]
    limit_burst: Option<u32>,
    /// Requests that one client may have under way
    #[arg(long, value_name = "N", conflicts_with = "file")]
    limit_under_way: Option<u32>,
    /// Requests a second of all clients together
    #[arg(long, value_name = "N", value_parser = per_second, conflicts_with = "file")]
    limit_all: Option<u32>,
    /// Largest body of a request
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, conflicts_with = "file")]
    limit_body: Option<u64>,
    /// Begin connections to nodes with the PROXY protocol
    #[arg(
        long,
        value_name = "v1|v2|off",
        hide_possible_values = true,
        conflicts_with = "file"
    )]
    send_proxy: Option<SendProxy>,
    /// Let nobody in: every request is answered 503
    #[arg(
        long,
        value_name = "on|off",
        hide_possible_values = true,
        conflicts_with = "file"
    )]
    fence: Option<Switch>,
    #[command(flatten)]
    pub(super) apply: Apply,
}

/// Check the sides, and have others take over from one that is down
///
/// The environment stays the first; the others take over in their order and get no requests before, unless they have a
/// weight.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    offshoot traffic failover shop spare --check /health\n  \
    offshoot traffic failover shop spare --interval 500ms --fall 2 --passive 5 --back by-hand\n  \
    offshoot traffic failover shop --off                  nobody is checked any more")]
pub(super) struct FailoverArgs {
    /// Environment, by name or id
    #[arg(value_name = "ENV")]
    pub(super) environment: String,
    /// Who takes over, the first that is up
    #[arg(value_name = "STANDBY")]
    standby: Vec<String>,
    /// What every entry node of every side is asked for [default: /]
    #[arg(long, value_name = "PATH")]
    check: Option<String>,
    /// Host of that request [default: a domain of the environment]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// From one check to the next [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    interval: Option<u64>,
    /// How long an answer may take [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration_ms)]
    timeout: Option<u64>,
    /// Good answers in a row until it is up [default: 2]
    #[arg(long, value_name = "N")]
    rise: Option<u32>,
    /// Bad answers in a row until it is down [default: 3]
    #[arg(long, value_name = "N")]
    fall: Option<u32>,
    /// Good statuses [default: 200-399]
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = statuses)]
    status: Vec<(u16, u16)>,
    /// What must be in the body
    #[arg(long, value_name = "TEXT")]
    body: Option<String>,
    /// Failures of visitors' requests in a row that make a node down as well; 0 for none
    #[arg(long, value_name = "N")]
    passive: Option<u32>,
    /// How one that was down gets its requests back: auto, or by-hand (`offshoot traffic back`)
    #[arg(long, value_name = "auto|by-hand", hide_possible_values = true)]
    back: Option<BackChoice>,
    /// Check nobody any more
    #[arg(long, conflicts_with = "standby")]
    off: bool,
    #[command(flatten)]
    pub(super) apply: Apply,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SendProxy {
    V1,
    V2,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BackChoice {
    Auto,
    ByHand,
}

impl SetArgs {
    /// Changes what was named.
    pub(super) fn edit(&self, policy: &mut Policy) -> Result<(), Problem> {
        if !self.side.is_empty() {
            policy.sides = self.side.iter().cloned().map(side).collect();
        }
        if let Some(sticky) = &self.sticky {
            policy.sticky = sticky.clone();
        }
        if !self.rule.is_empty() {
            policy.rules = self.rule.iter().flatten().cloned().collect();
        }
        if !self.goal.is_empty() {
            policy.goals = self.goal.iter().flatten().cloned().collect();
        }
        let bounds = &mut policy.bounds;
        for (wanted, bound) in [
            (self.limit_client, &mut bounds.client_requests_per_second),
            (self.limit_burst, &mut bounds.client_burst),
            (self.limit_under_way, &mut bounds.client_requests),
            (self.limit_all, &mut bounds.requests_per_second),
        ] {
            *bound = wanted.unwrap_or(*bound);
        }
        bounds.body_bytes = self.limit_body.unwrap_or(bounds.body_bytes);
        if let Some(version) = self.send_proxy {
            policy.send_proxy = match version {
                SendProxy::V1 => Some(ProxyVersion::V1),
                SendProxy::V2 => Some(ProxyVersion::V2),
                SendProxy::Off => None,
            };
        }
        if let Some(fence) = self.fence {
            policy.fence = fence == Switch::On;
        }
        policy.check().map_err(invalid)
    }
}

impl FailoverArgs {
    /// Changes who is checked and how; `own` is the environment's name.
    pub(super) fn edit(&self, policy: &mut Policy, own: String) -> Result<(), Problem> {
        if self.off {
            policy.failover = None;
            return Ok(());
        }
        if policy.sides.is_empty() && !self.standby.is_empty() {
            policy.sides.push(side((own, 1)));
        }
        for name in &self.standby {
            if !policy.sides.iter().any(|side| side.environment == *name) {
                policy.sides.push(side((name.clone(), 0)));
            }
        }
        let failover = policy.failover.get_or_insert_with(Failover::default);
        self.edit_check(&mut failover.check);
        match self.passive {
            Some(0) => failover.passive = None,
            Some(failures) => failover.passive = Some(Passive { failures }),
            None => {}
        }
        if let Some(back) = self.back {
            failover.back = match back {
                BackChoice::Auto => Back::Auto,
                BackChoice::ByHand => Back::ByHand,
            };
        }
        policy.check().map_err(invalid)
    }

    fn edit_check(&self, check: &mut Check) {
        check.path = self.check.clone().unwrap_or_else(|| check.path.clone());
        check.host = self.host.clone().or_else(|| check.host.take());
        check.interval_ms = self.interval.unwrap_or(check.interval_ms);
        check.timeout_ms = self.timeout.unwrap_or(check.timeout_ms);
        check.rise = self.rise.unwrap_or(check.rise);
        check.fall = self.fall.unwrap_or(check.fall);
        check.body = self.body.clone().or_else(|| check.body.take());
        if !self.status.is_empty() {
            check.statuses.clone_from(&self.status);
        }
    }
}

/// Gives others their shares, in ten thousandths, and `own` the rest.
pub(super) fn split(
    policy: &mut Policy,
    own: String,
    shares: Vec<(String, u32)>,
) -> Result<(), Problem> {
    let given: u32 = shares.iter().map(|(_, share)| share).sum();
    let Some(rest) = 10_000_u32.checked_sub(given) else {
        return Err(invalid(
            "the shares are more than 100 % together".to_owned(),
        ));
    };
    let mut sides = shares;
    if !sides.iter().any(|(name, _)| *name == own) {
        sides.insert(0, (own, rest));
    }
    policy.sides = sides.into_iter().map(side).collect();
    policy.check().map_err(invalid)
}

/// Has `to` get copies of a share in a hundred; none ends them.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "within 0 and 1000"
)]
pub(super) fn mirror(policy: &mut Policy, to: Option<String>, share: f64) -> Result<(), Problem> {
    policy.mirror = to.map(|environment| {
        let (body_bytes, ignore) = match policy.mirror.take() {
            Some(mirror) => (mirror.body_bytes, mirror.ignore),
            None => (256 << 10, Vec::new()),
        };
        Mirror {
            environment,
            permille: (share * 10.0).round() as u32,
            body_bytes,
            ignore,
        }
    });
    policy.check().map_err(invalid)
}

/// A policy that cannot be carried out.
pub(super) fn invalid(what: String) -> Problem {
    Problem::new(
        Code::PolicyInvalid,
        Fault::Request,
        what,
        "see `offshoot traffic set --help`",
    )
}

/// A file that cannot be read.
pub(super) fn bad(what: String) -> Problem {
    Problem::new(Code::BadRequest, Fault::Request, what, "name another file")
}

fn side((environment, weight): (String, u32)) -> Side {
    Side {
        environment,
        weight,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::words::share;
    use super::*;

    #[derive(Parser)]
    struct SetLine {
        #[command(flatten)]
        args: SetArgs,
    }

    #[derive(Parser)]
    struct FailoverLine {
        #[command(flatten)]
        args: FailoverArgs,
    }

    fn set(policy: &mut Policy, args: &[&str]) -> Result<(), String> {
        let line = SetLine::try_parse_from(["set", "shop"].iter().chain(args));
        let args = line.map_err(|error| error.to_string())?.args;
        args.edit(policy).map_err(|problem| problem.to_string())
    }

    fn failover(policy: &mut Policy, args: &[&str]) {
        let line = FailoverLine::parse_from(["failover", "shop"].iter().chain(args));
        line.args.edit(policy, "shop".to_owned()).unwrap();
    }

    fn text(policy: &Policy) -> String {
        serde_json::to_string(policy).unwrap()
    }

    #[test]
    fn each_option_changes_its_part_and_leaves_the_rest() {
        let mut policy = Policy::default();
        let sides = ["--side", "shop=90", "--side", "next=10"];
        set(&mut policy, &sides).unwrap();
        set(
            &mut policy,
            &[
                "--rule",
                "header:x-country=AT, CH & path:/new -> next",
                "--sticky",
                "cookie:sid",
            ],
        )
        .unwrap();
        set(
            &mut policy,
            &[
                "--goal",
                "paid=/thanks",
                "--goal",
                "ordered=/order:POST:201",
                "--limit-client",
                "20/s",
            ],
        )
        .unwrap();
        set(
            &mut policy,
            &["--limit-body", "1k", "--send-proxy", "v2", "--fence", "on"],
        )
        .unwrap();
        assert_eq!(
            text(&policy),
            r#"{"sides":[{"environment":"shop","weight":90},{"environment":"next","weight":10}],"sticky":{"cookie":"sid"},"rules":[{"when":[{"header":{"name":"x-country","values":["AT","CH"]}},{"path":"/new"}],"to":"next"}],"goals":[{"name":"paid","path":"/thanks","statuses":[200,399]},{"name":"ordered","path":"/order","method":"POST","statuses":[201,201]}],"bounds":{"client_requests_per_second":20,"client_burst":0,"client_requests":0,"requests_per_second":0,"body_bytes":1024},"send_proxy":"v2","fence":true}"#
        );
        set(
            &mut policy,
            &[
                "--rule",
                "",
                "--goal",
                "",
                "--limit-client",
                "0",
                "--limit-body",
                "0",
                "--send-proxy",
                "off",
                "--fence",
                "off",
                "--sticky",
                "visitor",
            ],
        )
        .unwrap();
        assert_eq!(
            text(&policy),
            r#"{"sides":[{"environment":"shop","weight":90},{"environment":"next","weight":10}]}"#
        );
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for (args, part) in [
            (["--side", "next"], "next=10"),
            (["--side", "next=x"], "not a weight"),
            (["--side", "next=0"], "needs a weight"),
            (["--sticky", "cookie:"], "keeps nobody"),
            (["--rule", "path:/"], "leads nowhere"),
            (["--rule", "paths:/ -> next"], "no condition"),
            (["--rule", "path:/ -> other"], "no side"),
            (["--goal", "paid"], "paid=/thanks"),
            (["--goal", "paid=/:200-x"], "no status"),
            (["--limit-client", "many"], "not a rate"),
        ] {
            let why = set(&mut Policy::default(), &args).unwrap_err();
            assert!(why.contains(part), "{args:?}: {why}");
        }
    }

    #[test]
    fn shares_leave_the_rest_to_the_environment() {
        let mut policy = Policy::default();
        let shares = || vec![share("next=10%").unwrap(), share("blue=0.5%").unwrap()];
        split(&mut policy, "shop".into(), shares()).unwrap();
        let weights: Vec<_> = policy.sides.iter().map(|side| side.weight).collect();
        assert_eq!(
            (policy.sides[0].environment.as_str(), weights),
            ("shop", vec![8_950, 1_000, 50])
        );
        let all = vec![share("shop=40%").unwrap(), share("next=60%").unwrap()];
        split(&mut policy, "shop".into(), all).unwrap();
        assert_eq!(policy.sides.len(), 2);
        let much = vec![share("next=60%").unwrap(), share("blue=60%").unwrap()];
        assert!(split(&mut policy, "shop".into(), much).is_err());
    }

    #[test]
    fn a_standby_has_no_weight_and_checks_stay_as_they_were() {
        let mut policy = Policy::default();
        failover(
            &mut policy,
            &["spare", "--check", "/health", "--passive", "5"],
        );
        failover(
            &mut policy,
            &[
                "--interval",
                "500ms",
                "--status",
                "200-299,304",
                "--back",
                "by-hand",
            ],
        );
        let weights: Vec<_> = policy.sides.iter().map(|side| side.weight).collect();
        assert_eq!(weights, [1, 0]);
        let failover_now = policy.failover.as_ref().unwrap();
        assert_eq!(failover_now.check.path, "/health");
        assert_eq!(failover_now.check.interval_ms, 500);
        assert_eq!(failover_now.check.statuses, [(200, 299), (304, 304)]);
        assert_eq!(failover_now.passive, Some(Passive { failures: 5 }));
        assert_eq!(failover_now.back, Back::ByHand);
        failover(&mut policy, &["--off"]);
        assert_eq!(policy.failover, None);
    }

    #[test]
    fn copies_go_to_no_side() {
        let mut policy = Policy::default();
        mirror(&mut policy, Some("copy".into()), 12.5).unwrap();
        assert_eq!(policy.mirror.as_ref().unwrap().permille, 125);
        split(&mut policy, "shop".into(), vec![share("next=1%").unwrap()]).unwrap();
        assert!(mirror(&mut policy.clone(), Some("next".into()), 1.0).is_err());
        mirror(&mut policy, None, 0.0).unwrap();
        assert_eq!(policy.mirror, None);
    }
}
