//! `millstream tenant`: who may send to a pipeline, where no operator publishes it.
//!
//! `apply` takes the file of `Tenant` and `Secret` resources that Kubernetes takes ([`file`]), and publishes the hashes of their keys, and the rest of their terms, in `control`, as an operator would; every process that follows
//! the plan hears it there. Invariants:
//!
//! - **A file with a mistake changes nothing**: it is read, and found good as a whole, before anybody is connected to; what else stands against it is found out before anything is published.
//! - **Nobody is fenced for nothing.** `list`, a dry run and an `apply` that changes nothing only read.
//! - **Nobody is locked out by what a file leaves out.** Only `--prune` and `delete` end a tenant's keys.
//! - **An erasure is not ended by accident** ([`erase`]). A file leaves a tenant alone that is being erased, also with `--prune`, and is refused when that tenant is in it; so is one whose tenant was erased a
//!   moment ago, because the engine takes nothing of it yet.
//! - **A key leads to one tenant**, also beside what is published and configured already.
//!
//! Protocol: read `control` and `status` to their ends; compare; take the transactional id of `control` (which fences whoever publishes), read to the end once more, and compare again, since
//! somebody may have published in between; publish what differs in one transaction (per thousand); listen to the reports of gateways and workers of unify until each, and each shard of unify, goes by what `control` says.
//!
//! **Beside others who publish.** `millstream plan auto --watch` publishes no tenants: it finds that it was fenced when it publishes next, takes its place back, and leaves tenants alone. An operator
//! takes its place back, too, but ends every tenant of which there is no `Tenant` resource. No message says who publishes, so that nobody can know for sure whether an operator does; but its Pods report
//! under the names that it gives them, `PIPELINE-gateway-0`. Where one has, `apply` and `delete` refuse, unless they are told to go on (`--force`); and whatever takes a tenant back while gateways are
//! waited for is told.

mod erase;
mod file;

use super::Outcome;
use super::session::{LISTEN, Session, Topics};
use crate::config::{self, Config, ConfigArgs, Millis, Ownership};
use crate::runtime::system::SystemClock;
use anyhow::{Context, bail};
use file::Senders;
use millstream_model::id::hex;
use millstream_operator::erasure::reaches;
use millstream_plan::message::{Limits, Tenant, Terms};
use millstream_plan::status::WorkerStatus;
use millstream_plan::view::{GATEWAY, Judge};
use millstream_shard::Clock;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

/// How long gateways and workers of unify are waited for.
const WAITS: Millis = Millis(30_000);
/// Hexadecimal digits by which a hash is told from others.
const DIGITS: usize = 8;

/// Arguments of `millstream tenant`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TenantArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Action {
    /// Publish the tenants of a file of `Tenant` and `Secret` resources, as Kubernetes takes them
    Apply {
        /// The resources (YAML)
        #[arg(long, short, value_name = "FILE")]
        file: PathBuf,
        /// Also end the keys of published tenants that are not in the file
        #[arg(long)]
        prune: bool,
        #[command(flatten)]
        publishing: Publishing,
    },
    /// Print the published tenants, and the first digits of their keys' hashes
    List(ConfigArgs),
    /// End the keys of a published tenant
    Delete {
        /// Its name
        name: String,
        /// Erase all that it has sent as well: its users and devices, and their documents. Also of one that was deleted before
        #[arg(long)]
        erase: bool,
        #[command(flatten)]
        publishing: Publishing,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct Publishing {
    /// Print what would change, and publish nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not wait until gateways and workers of unify go by it
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for them [default: 30s; with `--erase`, for all workers, 10m]
    #[arg(long, value_name = "TIME")]
    timeout: Option<Millis>,
    /// What the pipeline is called in `pipelineRef` [default: `pipeline` of the configuration, or what follows its first dot]
    #[arg(long, value_name = "NAME")]
    pipeline_ref: Option<String>,
    /// Also when Pods of an operator report, which would undo it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs it.
pub(super) fn run(args: &TenantArgs) -> anyhow::Result<Outcome> {
    match &args.action {
        Action::List(args) => list(&config::load(args)?),
        Action::Apply { file, prune, publishing } => {
            let (config, shown) = (config::load(&publishing.config)?, file.display());
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
            let names = publishing.names(&config);
            let keys = file::read(&text, |name| is_pipeline(name, &names)).map_err(|problems| refusal(&problems));
            let keys = keys.with_context(|| format!("{shown} is not published"))?;
            let compose = |known: &BTreeMap<String, Tenant>| compose(known, &keys, *prune, &config.tenants, wall_ms());
            publish(&config, publishing, &format!("{shown} is not published"), &compose)
        }
        Action::Delete { name, erase: true, publishing } => {
            erase::run(&config::load(&publishing.config)?, publishing, name)
        }
        Action::Delete { name, erase: false, publishing } => {
            let config = config::load(&publishing.config)?;
            let without = |known: &BTreeMap<String, Tenant>| without(known, name);
            publish(&config, publishing, "nothing is deleted", &without)
        }
    }
}

impl Publishing {
    /// What the pipeline may be called in Kubernetes: an operator's is `NAMESPACE.NAME`, unless it has a prefix of its own.
    fn names(&self, config: &Config) -> Vec<String> {
        let pipeline = config.pipeline.as_str();
        let all = [pipeline, pipeline.split_once('.').map_or(pipeline, |(_, name)| name)];
        self.pipeline_ref.as_ref().map_or_else(|| all.map(str::to_owned).to_vec(), |name| vec![name.clone()])
    }
}

fn is_pipeline(name: &str, names: &[String]) -> Result<(), String> {
    if names.iter().any(|known| known == name) {
        return Ok(());
    }
    let known = names.first().map(String::as_str).unwrap_or_default();
    Err(format!(
        "is of pipeline `{name}`, and the configuration's is `{known}`: take the tenant out of this file, correct spec.pipelineRef.name, or say `--pipeline-ref {name}` if that is how it is called"
    ))
}

/// An error of several lines.
fn refusal(problems: &[String]) -> anyhow::Error {
    let lines: Vec<String> = problems.iter().map(|problem| format!("\n- {problem}")).collect();
    anyhow::anyhow!("{} to correct:{}", problems.len(), lines.concat())
}

/// What becomes of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Unchanged,
    Created,
    Changed,
    Deleted,
    /// The same, of one that was being erased.
    LetGo,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Change::Unchanged => "unchanged",
            Change::Created => "created",
            Change::Changed => "changed",
            Change::Deleted => "deleted",
            Change::LetGo => "deleted, and what was not erased yet stays",
        })
    }
}

/// What is to be published, and how that differs from what is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Intent {
    /// Everybody who is to be known, whoever named them.
    wanted: Senders,
    /// Those whom it is about.
    changes: BTreeMap<String, Change>,
}

impl Intent {
    fn is_nothing(&self) -> bool {
        self.changes.values().all(|change| *change == Change::Unchanged)
    }
}

type Compose<'a> = dyn Fn(&BTreeMap<String, Tenant>) -> anyhow::Result<Intent> + 'a;

/// Those who are published now.
fn there(known: &BTreeMap<String, Tenant>) -> impl Iterator<Item = (&String, &Terms)> {
    known.iter().filter(|(_, tenant)| !tenant.is_deleted).map(|(name, tenant)| (name, &tenant.terms))
}

/// What a file comes to, `now_ms` milliseconds after 1970 began. No key may lead to two tenants.
fn compose(
    known: &BTreeMap<String, Tenant>,
    file: &Senders,
    prune: bool,
    configured: &[config::Tenant],
    now_ms: u64,
) -> anyhow::Result<Intent> {
    let (mut wanted, mut changes) = (file.clone(), BTreeMap::new());
    let (mut owners, mut problems) = (BTreeMap::new(), Vec::new());
    for tenant in configured {
        owners.extend(tenant.api_keys.iter().filter_map(config::ApiKey::hash).map(|hash| {
            let stays = "in `tenants` of the configuration";
            (hash.0, (tenant.name.as_str(), stays))
        }));
    }
    for (name, terms) in there(known).filter(|(name, _)| !file.contains_key(*name)) {
        if prune && terms.erasing.is_none() {
            changes.insert(name.clone(), Change::Deleted);
        } else {
            wanted.insert(name.clone(), terms.clone());
            let stays = "published, and not in this file";
            owners.extend(terms.api_keys.iter().map(|key| (*key, (name.as_str(), stays))));
        }
    }
    for (name, terms) in file {
        problems.extend(known.get(name).and_then(|tenant| erased(tenant, now_ms)));
        let taken = terms.api_keys.iter().filter_map(|key| owners.get(key)).find(|(other, _)| other != name);
        if let Some((other, stays)) = taken {
            problems.push(format!(
                "Tenant {name}: one of its keys is tenant {other}'s, too, who is {stays}: give it another one"
            ));
        }
        let before = there(known).find(|(known, _)| *known == name).map(|(_, terms)| terms);
        changes.insert(
            name.clone(),
            match before {
                None => Change::Created,
                Some(before) if before == terms => Change::Unchanged,
                Some(_) => Change::Changed,
            },
        );
    }
    if problems.is_empty() { Ok(Intent { wanted, changes }) } else { Err(refusal(&problems)) }
}

/// Why this tenant can get no keys now, if that is because it is or was erased.
fn erased(tenant: &Tenant, now_ms: u64) -> Option<String> {
    let name = &tenant.name;
    if tenant.terms.erasing.is_some() {
        return Some(format!(
            "Tenant {name}: is being erased: take it out of this file until that is done; `millstream tenant delete {name} --erase` goes on with it"
        ));
    }
    let what = reaches(tenant, now_ms)?;
    Some(format!("Tenant {name}: {what}, and what it would send before that as well: apply this file then"))
}

/// All that are published but one.
fn without(known: &BTreeMap<String, Tenant>, name: &str) -> anyhow::Result<Intent> {
    let mut wanted: Senders = there(known).map(|(name, terms)| (name.clone(), terms.clone())).collect();
    let change = match wanted.remove(name) {
        Some(terms) if terms.erasing.is_some() => Change::LetGo,
        Some(_) => Change::Deleted,
        None => bail!(
            "no tenant {name} is published; `millstream tenant list` prints those that are. What one that was deleted has sent is erased with `--erase`"
        ),
    };
    Ok(Intent { wanted, changes: [(name.to_owned(), change)].into() })
}

/// Milliseconds since 1970.
fn wall_ms() -> u64 {
    SystemClock.now_ms()
}

/// Reads what is published, where it may be changed from here.
fn open(config: &Config, args: &Publishing) -> anyhow::Result<Session> {
    if matches!(config.ownership, Ownership::Static) && !matches!(config.log, config::Log::Embedded) {
        bail!(
            "processes with `ownership: static` know the tenants of their configuration, and do not listen to what is published: configure `ownership: {{plan: {{}}}}`"
        );
    }
    let missing = if args.dry_run { Topics::Expect } else { Topics::Create };
    let session = Session::open(config, missing)?;
    let pods = pods(session.planning.view().reports().map(|(report, _)| report), &args.names(config));
    if let Some(pod) = pods.first().filter(|_| !args.force) {
        bail!(
            "{pod} has reported, which is what an operator calls a Pod: it would end every tenant of which there is no Tenant resource. Use `kubectl apply -f`, or, if no operator has this pipeline any more, `--force`"
        );
    }
    Ok(session)
}

/// Publishes what is to be, and waits until all go by it; `refused` is said of what cannot be.
fn publish(config: &Config, args: &Publishing, refused: &str, compose: &Compose<'_>) -> anyhow::Result<Outcome> {
    let mut session = open(config, args)?;
    let compose = |session: &Session| compose(session.planning.view().tenants()).context(refused.to_owned());
    let mut intent = compose(&session)?;
    let mut before = session.planning.view().tenants().clone();
    warn_of_configured(config, &intent);
    if !args.dry_run && !intent.is_nothing() {
        session.fence()?;
        intent = compose(&session)?;
        before = session.planning.view().tenants().clone();
        let published = session.planning.publish_tenants(&intent.wanted, wall_ms());
        published.context("publishing; look with `millstream tenant list` what is there")?;
    }
    for (name, change) in &intent.changes {
        let terms = intent.wanted.get(name).map(|terms| format!(", {}", words(terms))).unwrap_or_default();
        super::print(format_args!("{name}: {change}{terms}\n"))?;
    }
    if args.dry_run {
        super::print(format_args!("a dry run: nothing was published\n"))?;
    }
    if args.dry_run || args.no_wait {
        return Ok(Outcome::Good);
    }
    wait(&mut session, &before, &intent, args.timeout.unwrap_or(WAITS))
}

/// What a tenant's terms are, in a few words: `2 keys, 100 records/s, limits`.
fn words(terms: &Terms) -> String {
    let keys = terms.api_keys.len();
    let mut words = vec![if keys == 1 { "1 key".to_owned() } else { format!("{keys} keys") }];
    words.extend(beyond_keys(terms));
    words.join(", ")
}

fn beyond_keys(Terms { rules, rate, erasing, .. }: &Terms) -> Vec<String> {
    let records = rate.records.map(|records| format!("{records} records/s"));
    let bytes = rate.bytes.map(|bytes| format!("{bytes} bytes/s"));
    let limits = (rules.limits != Limits::default()).then(|| "limits".to_owned());
    let forbidden = rules.forbidden_values.len();
    let forbidden = (forbidden > 0).then(|| format!("{forbidden} forbidden values"));
    let erasing = erasing.map(|_| "erasing".to_owned());
    [records, bytes, limits, forbidden, erasing].into_iter().flatten().collect()
}

/// Who reports under a name that an operator gives to gateways of a pipeline: a StatefulSet's Pods.
fn pods<'a>(reports: impl Iterator<Item = &'a WorkerStatus>, names: &[String]) -> Vec<&'a str> {
    let is_pod = |worker: &str| {
        names.iter().any(|name| {
            let rest = worker.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix("-gateway-"));
            rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
        })
    };
    let gateways = reports.filter(|report| report.stages.contains(GATEWAY));
    gateways.map(|report| report.worker.as_str()).filter(|worker| is_pod(worker)).collect()
}

/// What a gateway accepts, unify must take.
fn warn_of_configured(config: &Config, intent: &Intent) {
    let is_configured = |name: &str| config.tenants.iter().any(|tenant| tenant.name.as_str() == name);
    let strangers: Vec<&str> = intent.wanted.keys().map(String::as_str).filter(|name| !is_configured(name)).collect();
    if !config.tenants.is_empty() && !strangers.is_empty() {
        eprintln!(
            "millstream: warning: the configuration has `tenants`, and {} is not among them: workers of the role unify with such a configuration reject their records as `misrouted`; take `tenants` out of theirs",
            strangers.join(", ")
        );
    }
}

/// Until all who let in or judge records go by what was said about these tenants; the outcome is bad when that takes too long.
fn wait(
    session: &mut Session,
    before: &BTreeMap<String, Tenant>,
    intent: &Intent,
    timeout: Millis,
) -> anyhow::Result<Outcome> {
    let end = Instant::now() + timeout.duration();
    loop {
        let (planning, now_ms) = (&session.planning, session.now_ms());
        let heard = intent.changes.keys().map(|name| (name, heard(planning.view().tenants(), before, name, intent)));
        let heard: BTreeMap<&String, Heard> = heard.collect();
        if let Some((name, _)) = heard.iter().find(|(_, heard)| **heard == Heard::Other) {
            bail!(
                "published, but somebody has published something else about {name} since: an operator, or another `millstream tenant`; see `millstream tenant list`"
            );
        }
        let is_heard = heard.values().all(|heard| *heard == Heard::It);
        let goes_by_all =
            |judge: &Judge<'_>| is_heard && intent.changes.keys().all(|name| planning.goes_by(judge, name));
        let judges = planning.view().judges(now_ms);
        let waiting: Vec<&Judge<'_>> = judges.iter().filter(|judge| !goes_by_all(judge)).collect();
        if waiting.is_empty() && is_heard {
            super::print(format_args!("{}\n", in_force(&judges)))?;
            return Ok(Outcome::Good);
        }
        if Instant::now() >= end {
            eprintln!(
                "millstream: published, but after {timeout} not heard by {}: what was before may still be in force there. Run it again to wait on, or see its log",
                names(waiting)
            );
            return Ok(Outcome::Bad);
        }
        session.listen(LISTEN).context("published; waiting for the gateways")?;
    }
}

/// Workers, each once.
fn names<'a>(judges: impl IntoIterator<Item = &'a Judge<'a>>) -> String {
    let names: BTreeSet<&str> = judges.into_iter().map(|judge| judge.worker).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// Where it is in force, when it is everywhere.
fn in_force(judges: &[Judge<'_>]) -> String {
    let (unify, gateways): (Vec<&Judge<'_>>, Vec<_>) = judges.iter().partition(|judge| judge.is_unify);
    let gateways = match gateways.is_empty() {
        true => "no gateway reports; those that start hear it before they take requests".to_owned(),
        false => format!("in force at every gateway: {}", names(gateways)),
    };
    let unify = if unify.is_empty() { String::new() } else { format!("; at every worker of unify: {}", names(unify)) };
    gateways + &unify
}

/// What was heard in `control` of what was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// What is wanted is what counts.
    It,
    /// Nothing since.
    Nothing,
    /// Something else, which came later.
    Other,
}

fn heard(known: &BTreeMap<String, Tenant>, before: &BTreeMap<String, Tenant>, name: &str, intent: &Intent) -> Heard {
    let version = |of: &BTreeMap<String, Tenant>| of.get(name).map(|tenant| tenant.version);
    let terms = known.get(name).filter(|tenant| !tenant.is_deleted).map(|tenant| &tenant.terms);
    match terms == intent.wanted.get(name) {
        true => Heard::It,
        false if version(known) == version(before) => Heard::Nothing,
        false => Heard::Other,
    }
}

fn list(config: &Config) -> anyhow::Result<Outcome> {
    let session = Session::open(config, Topics::Expect)?;
    super::print(format_args!("{}", table(session.planning.view().tenants())))?;
    Ok(Outcome::Good)
}

fn table(known: &BTreeMap<String, Tenant>) -> String {
    let width = there(known).map(|(name, _)| name.len()).max().unwrap_or_default().max("tenant".len());
    let mut text = format!("{:width$}  keys  hashes\n", "tenant");
    for (name, terms) in there(known) {
        let keys = &terms.api_keys;
        let hashes: Vec<String> = keys.iter().map(|key| hex(key).chars().take(DIGITS).collect()).collect();
        let rest = beyond_keys(terms).join(", ");
        let rest = if rest.is_empty() { rest } else { format!("  {rest}") };
        text.push_str(&format!("{name:width$}  {:>4}  {}{rest}\n", keys.len(), hashes.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ApiKey;
    use millstream_plan::message::Erasing;

    fn keys(of: &[u8]) -> Terms {
        Terms { api_keys: of.iter().map(|key| [*key; 32]).collect(), ..Terms::default() }
    }

    fn known(of: &[(&str, &[u8])]) -> BTreeMap<String, Tenant> {
        let tenant = |name: &str, of: &[u8]| Tenant {
            name: name.to_owned(),
            version: 1,
            terms: keys(of),
            is_deleted: of.is_empty(),
            erased_ms: 0,
        };
        of.iter().map(|(name, of)| ((*name).to_owned(), tenant(name, of))).collect()
    }

    fn file(of: &[(&str, &[u8])]) -> Senders {
        of.iter().map(|(name, of)| ((*name).to_owned(), keys(of))).collect()
    }

    #[test]
    fn what_is_left_out_stays_unless_it_is_pruned() {
        let known = known(&[("same", &[1]), ("more", &[2]), ("else", &[3]), ("gone", &[])]);
        let named = file(&[("same", &[1]), ("more", &[2, 4]), ("gone", &[5]), ("new", &[6])]);
        let stays = compose(&known, &named, false, &[], 0).unwrap();
        let of = |name: &str| stays.changes.get(name).copied();
        assert_eq!((of("same"), of("more")), (Some(Change::Unchanged), Some(Change::Changed)));
        assert_eq!((of("gone"), of("new"), of("else")), (Some(Change::Created), Some(Change::Created), None));
        assert_eq!((stays.wanted.len(), &stays.wanted["else"]), (5, &keys(&[3])));
        let pruned = compose(&known, &named, true, &[], 0).unwrap();
        assert_eq!((pruned.changes["else"], pruned.wanted.get("else")), (Change::Deleted, None));
        assert!(compose(&known, &file(&[("same", &[1])]), false, &[], 0).unwrap().is_nothing());
    }

    #[test]
    fn a_key_of_somebody_else_is_refused_unless_they_give_it_up() {
        let known = known(&[("acme", &[1]), ("globex", &[2])]);
        let refused = compose(&known, &file(&[("new", &[1]), ("other", &[2])]), false, &[], 0).unwrap_err().to_string();
        for name in ["Tenant new: one of its keys is tenant acme's, too, who is published", "Tenant other: one of"] {
            assert!(refused.contains(name), "{refused}");
        }
        assert!(compose(&known, &file(&[("new", &[1])]), true, &[], 0).is_ok(), "acme goes");
        assert!(
            compose(&known, &file(&[("acme", &[3]), ("new", &[1])]), false, &[], 0).is_ok(),
            "acme has another one"
        );
        let configured = [config::Tenant { name: "initech".parse().unwrap(), api_keys: vec![ApiKey::plain("k")] }];
        let hash = config::KeyHash::of("k").0;
        let refused = |name: &str| {
            let terms = Terms { api_keys: [hash].into(), ..Terms::default() };
            compose(&known, &[(name.to_owned(), terms)].into(), true, &configured, 0)
        };
        assert!(refused("new").unwrap_err().to_string().contains("initech's, too, who is in `tenants` of"));
        assert!(refused("initech").is_ok());
    }

    fn erasing(name: &str) -> BTreeMap<String, Tenant> {
        let mut known = known(&[(name, &[1])]);
        known.get_mut(name).unwrap().terms = Terms::erasing(Erasing::State);
        known
    }

    #[test]
    fn a_tenant_that_is_being_erased_or_was_a_moment_ago_is_no_files_business() {
        let going = erasing("acme");
        let pruned = compose(&going, &file(&[("new", &[2])]), true, &[], 0).unwrap();
        assert_eq!((pruned.changes.get("acme"), &pruned.wanted["acme"]), (None, &Terms::erasing(Erasing::State)));
        let why = compose(&going, &file(&[("acme", &[2])]), false, &[], 0).unwrap_err().to_string();
        assert!(why.contains("Tenant acme: is being erased: ") && why.contains("delete acme --erase"), "{why}");
        let mut gone = known(&[("acme", &[])]);
        gone.get_mut("acme").unwrap().erased_ms = 60_000;
        let apply = |now_ms| compose(&gone, &file(&[("acme", &[2])]), false, &[], now_ms);
        let why = apply(59_999).unwrap_err().to_string();
        assert!(why.contains("Tenant acme: what was received before 00:01:00 UTC is erased"), "{why}");
        assert_eq!(apply(60_000).unwrap().changes["acme"], Change::Created);
        assert_eq!(table(&going), "tenant  keys  hashes\nacme       0    erasing\n");
    }

    #[test]
    fn only_who_is_published_can_be_deleted() {
        let known = known(&[("acme", &[1]), ("gone", &[])]);
        let (all, going) = (without(&known, "acme").unwrap(), erasing("acme"));
        assert!(all.wanted.is_empty() && all.changes["acme"] == Change::Deleted);
        let let_go = without(&going, "acme").unwrap();
        assert!(let_go.wanted.is_empty() && let_go.changes["acme"] == Change::LetGo);
        for name in ["gone", "nobody"] {
            let why = without(&known, name).unwrap_err().to_string();
            assert!(why.contains(&format!("no tenant {name} is published")), "{why}");
        }
    }

    #[test]
    fn what_somebody_else_publishes_later_is_told_from_what_was_not_heard_yet() {
        let before = known(&[("acme", &[1])]);
        let intent = compose(&before, &file(&[("acme", &[2])]), false, &[], 0).unwrap();
        let with = |version, of: &[u8]| {
            let mut known = known(&[("acme", of)]);
            known.get_mut("acme").unwrap().version = version;
            heard(&known, &before, "acme", &intent)
        };
        assert_eq!((with(1, &[1]), with(2, &[2])), (Heard::Nothing, Heard::It));
        assert_eq!((with(3, &[1]), with(3, &[])), (Heard::Other, Heard::Other));
    }

    #[test]
    fn pods_of_an_operator_are_known_by_their_names() {
        let report = |worker: &str, stage: &str| WorkerStatus {
            worker: worker.to_owned(),
            incarnation: millstream_plan::incarnation::Incarnation::new(1, 2),
            sequence: 1,
            generation: 1,
            zone: String::new(),
            node: String::new(),
            started_ms: 1,
            capacity: 1,
            leaving: false,
            stages: [stage.to_owned()].into(),
            shards: BTreeMap::new(),
            control_offset: 0,
            version: String::new(),
            known: BTreeMap::new(),
            unable: BTreeSet::new(),
            knows_markers: true,
        };
        let all = ["orders-gateway-0", "orders-gateway-x", "orders-gateway-", "gateway-0", "a-gateway-1"];
        let reports: Vec<WorkerStatus> = all.iter().map(|name| report(name, GATEWAY)).collect();
        let reports = [reports, vec![report("orders-gateway-1", "unify")]].concat();
        let names = ["shop.orders".to_owned(), "orders".to_owned()];
        assert_eq!(pods(reports.iter(), &names), ["orders-gateway-0"]);
    }

    #[test]
    fn a_table_tells_the_beginning_of_each_hash() {
        let text = table(&known(&[("acme", &[1, 255]), ("gone", &[]), ("initech-eu", &[16])]));
        assert_eq!(text, "tenant      keys  hashes\nacme           2  01010101 ffffffff\ninitech-eu     1  10101010\n");
    }
}
