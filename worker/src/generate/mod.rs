//! Deterministic, realistic load: `millstream generate`.
//!
//! The same options give the same bytes. [`life`] says what people do, [`shape`] writes it as the sources do, [`bad`] adds what must be
//! refused, and [`model`] works out by itself what must come of it ([`truth`]); nothing here uses the code of the stages, because
//! the truth is what they are checked against (I1, I2, I9). [`life`] explains why the truth does not depend on interleaving.

mod bad;
mod expect;
mod life;
mod model;
mod record;
mod rng;
mod shape;
pub mod truth;
pub mod write;

pub use model::Ambiguous;

use bad::By;
use life::Person;
use millstream_model::proto::Source;
use model::Model;
use record::{Intent, Record};
use rng::Rng;
use std::collections::BTreeMap;
use truth::{TenantTruth, Truth};

const DAY: i64 = 24 * 3_600_000;

/// Tenants' names; further ones are numbered.
const TENANTS: [&str; 6] = ["acme", "globex", "initech", "umbrella", "hooli", "stark"];
/// What they use, in turn.
const SOURCES: [&[Source]; 5] = [
    &[Source::Segment, Source::DataApi],
    &[Source::Native],
    &[Source::Native, Source::Segment, Source::DataApi],
    &[Source::DataApi],
    &[Source::Segment],
];

/// What to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Number of tenants.
    pub tenants: u32,
    /// People per tenant.
    pub users: u32,
    /// The same seed gives the same bytes.
    pub seed: u64,
    /// The moment that record times lead up to, milliseconds since 1970. Send the records within a few days of it: older
    /// ones are refused as too old.
    pub now_ms: i64,
    /// How many days before `now_ms` people begin, 1..=25 (tenants accept records of the last 30).
    pub days: u32,
    /// Bad records per good one, 0..=1.
    pub bad_share: f64,
    /// Repeated deliveries per good record, 0..=1.
    pub duplicates: f64,
}

/// What was generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// What each tenant sends by each source, in order.
    pub streams: Vec<Stream>,
    /// What must come of it.
    pub truth: Truth,
}

/// What one tenant sends by one source.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// The tenant.
    pub tenant: String,
    /// Its API key.
    pub key: String,
    /// The source.
    pub source: Source,
    /// One record each, in the order of sending.
    pub lines: Vec<String>,
}

/// The API key of a generated tenant. Not a secret: it is for local use and tests.
pub fn api_key(tenant: &str) -> String {
    format!("key-of-{tenant}")
}

/// Generates a load.
///
/// # Errors
/// [`Ambiguous`], when the generator is wrong.
pub fn generate(options: &Options) -> Result<Load, Ambiguous> {
    let mut load = Load {
        streams: Vec::new(),
        truth: Truth {
            seed: options.seed,
            now: millstream_model::value::format_time(options.now_ms),
            ..Truth::default()
        },
    };
    for number in 0..options.tenants {
        let tenant = TENANTS.get(number as usize).map_or_else(|| format!("tenant-{number}"), |name| (*name).to_owned());
        let (streams, truth) = tenant_load(options, number, &tenant)?;
        load.streams.extend(streams);
        load.truth.tenants.insert(tenant, truth);
    }
    Ok(load)
}

fn tenant_load(options: &Options, number: u32, tenant: &str) -> Result<(Vec<Stream>, TenantTruth), Ambiguous> {
    let rng = Rng::new(options.seed).fork(&[u64::from(number)]);
    let sources = SOURCES.get(number as usize % SOURCES.len()).copied().unwrap_or(&[Source::Native]);
    let mut records = people(options, &rng, tenant, sources);
    records.sort_by_key(|record| record.order);
    let (model, mut truth) = judge(&records, options.now_ms)?;
    let people = model.finish()?;
    (truth.users, truth.deleted) = (people.users, people.deleted);
    (truth.details, truth.devices) = (people.details, people.devices);

    let mut outgoing = Outgoing { rng: rng.fork(&[u64::MAX]), lines: BTreeMap::new(), truth };
    for record in &records {
        outgoing.send(record, options);
    }
    let (lines, mut truth) = (outgoing.lines, outgoing.truth);
    truth.accepted = truth.effects + truth.duplicates + truth.rejects.values().sum::<u64>();
    truth.sent = truth.accepted + truth.refused.values().sum::<u64>();
    Ok((streams(tenant, sources, lines), truth))
}

fn people(options: &Options, rng: &Rng, tenant: &str, sources: &[Source]) -> Vec<Record> {
    let span = i64::from(options.days) * DAY;
    let live = |number: u64| {
        let mut own = rng.fork(&[number, 0]);
        let clock = options.now_ms - span + own.between(0, span / 2);
        // Two neighbours share a device: a device never makes two people one.
        let mut household = rng.fork(&[number / 2, 1]);
        let shared_device = household.chance(0.15).then(|| household.uuid());
        let person = Person {
            rng: own,
            tenant,
            number,
            sources,
            shared_device,
            clock,
            now: options.now_ms,
            records: Vec::new(),
        };
        person.live()
    };
    (0..u64::from(options.users)).flat_map(live).collect()
}

/// What must come of good records.
fn judge(records: &[Record], now_ms: i64) -> Result<(Model, TenantTruth), Ambiguous> {
    let (mut model, mut truth) = (Model::new(now_ms), TenantTruth::default());
    for record in records {
        model.apply(record)?;
        truth.effects += 1;
        truth.events += u64::from(matches!(record.intent, Intent::Event { .. }));
    }
    Ok((model, truth))
}

/// Lines by source, with what is repeated and what is bad among them.
struct Outgoing {
    rng: Rng,
    lines: BTreeMap<i32, Lines>,
    truth: TenantTruth,
}

#[derive(Default)]
struct Lines {
    sent: Vec<String>,
    /// To be sent again when so many lines were sent.
    again: BTreeMap<usize, Vec<String>>,
}

impl Lines {
    fn push(&mut self, line: String) {
        self.sent.push(line);
        self.sent.extend(self.again.remove(&self.sent.len()).unwrap_or_default());
    }
}

impl Outgoing {
    fn send(&mut self, record: &Record, options: &Options) {
        let lines = self.lines.entry(record.source as i32).or_default();
        let line = shape::render(record);
        if self.rng.chance(options.duplicates) {
            self.truth.duplicates += 1;
            // Right away, or requests later.
            let wait = if self.rng.chance(0.5) { 1 } else { self.rng.between(500, 3_000) as usize };
            lines.again.entry(lines.sent.len() + wait).or_default().push(line.clone());
        }
        lines.push(line);
        if self.rng.chance(options.bad_share) {
            let bad = bad::bad(&mut self.rng, record.source, options.now_ms);
            let reasons = match bad.by {
                By::Gateway => &mut self.truth.refused,
                By::Stage => &mut self.truth.rejects,
            };
            *reasons.entry(bad.reason.code().to_owned()).or_default() += 1;
            lines.push(bad.line);
        }
    }
}

fn streams(tenant: &str, sources: &[Source], mut lines: BTreeMap<i32, Lines>) -> Vec<Stream> {
    let of = |source: Source| {
        let lines = lines.remove(&(source as i32)).unwrap_or_default();
        // What was to be repeated after the end comes at the end.
        let lines = lines.sent.into_iter().chain(lines.again.into_values().flatten()).collect();
        Stream { tenant: tenant.to_owned(), key: api_key(tenant), source, lines }
    };
    sources.iter().copied().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn options(seed: u64) -> Options {
        Options { tenants: 5, users: 120, seed, now_ms: 1_800_000_000_000, days: 20, bad_share: 0.03, duplicates: 0.03 }
    }

    #[test]
    fn a_seed_gives_the_same_bytes_and_another_gives_others() {
        assert_eq!(generate(&options(7)).unwrap(), generate(&options(7)).unwrap());
        assert_ne!(generate(&options(7)).unwrap().streams, generate(&options(8)).unwrap().streams);
    }

    #[test]
    fn no_seed_contradicts_itself() {
        for seed in 0..12 {
            generate(&Options { users: 60, ..options(seed) }).unwrap();
        }
    }

    #[test]
    fn sums_add_up() {
        let load = generate(&options(7)).unwrap();
        for (tenant, truth) in &load.truth.tenants {
            let lines: usize = load.streams.iter().filter(|s| s.tenant == *tenant).map(|s| s.lines.len()).sum();
            assert_eq!(truth.sent, lines as u64, "{tenant}");
            let people = truth.users.iter().chain(&truth.deleted);
            assert_eq!(truth.events, people.map(|user| user.events.len() as u64).sum::<u64>(), "{tenant}");
            assert!(truth.duplicates > 0 && !truth.rejects.is_empty() && !truth.refused.is_empty(), "{tenant}");
        }
    }

    #[test]
    fn a_repeated_delivery_is_the_same_line_again() {
        let load = generate(&Options { bad_share: 0.0, ..options(7) }).unwrap();
        let mut repeated = BTreeMap::new();
        for stream in &load.streams {
            let mut seen = std::collections::HashSet::new();
            *repeated.entry(stream.tenant.clone()).or_insert(0) +=
                stream.lines.iter().filter(|line| !seen.insert(line.as_str())).count() as u64;
        }
        for (tenant, truth) in &load.truth.tenants {
            assert_eq!(truth.duplicates, repeated[tenant], "{tenant}");
        }
    }

    #[test]
    fn people_do_what_people_do() {
        let load = generate(&Options { users: 400, ..options(7) }).unwrap();
        let truth = &load.truth.tenants["initech"];
        let values = |user: &truth::UserTruth, kind: &str| user.identifiers.get(kind).map_or(0, |values| values.len());
        assert!(truth.users.iter().any(|user| values(user, "anonymous_id") > 1 && values(user, "user_id") == 1));
        assert!(truth.users.iter().any(|user| values(user, "user_id") == 0));
        assert!(truth.users.iter().any(|user| values(user, "user_id") == 2));
        assert!(truth.users.iter().any(|user| user.attributes.contains_key("tags")));
        assert!(!truth.deleted.is_empty());
        let mut owners = BTreeMap::new();
        for device in truth.users.iter().flat_map(|user| &user.devices) {
            *owners.entry(device).or_insert(0) += 1;
        }
        assert!(owners.values().any(|count| *count == 2), "nobody shares a device");
    }
}
