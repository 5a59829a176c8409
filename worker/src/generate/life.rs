//! The life of one person: which records they cause, in which order and by which devices.
//!
//! What makes the truth independent of interleaving (I9) is decided here: each attribute of a person is written by one
//! [`Channel`] only, so that its records share a routing key and the last one sent counts; a person who is deleted uses
//! one channel only, and the deletion is the last record on it; nobody shares a user identifier with anybody else.

use super::record::{Intent, Record, Update};
use super::rng::Rng;
use millstream_model::proto::{Identifier, Source};
use millstream_model::value::format_time;
use serde_json::{Map, Value, json};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// A late delivery comes this much later at most; with the longest `--days` it stays within the 30 days that tenants accept.
const LATEST: i64 = 3 * DAY;

const PRODUCTS: [&str; 8] = ["kettle", "lamp", "desk", "chair", "mug", "rug", "clock", "shelf"];
const CATEGORIES: [&str; 5] = ["kitchen", "office", "garden", "bedroom", "sale"];
const CITIES: [&str; 7] = ["Berlin", "Lisbon", "Kraków", "Pune", "Osaka", "São Paulo", "Nairobi"];
const PLANS: [&str; 3] = ["free", "plus", "pro"];
const TAGS: [&str; 6] = ["vip", "beta", "newsletter", "returning", "student", "b2b"];
const EVENTS: [&str; 5] =
    ["Product Viewed", "Product Added", "Checkout Started", "Order Completed", "Search Performed"];

/// One way in which a person reaches the tenant: an app, a browser, or the tenant's own server. All its records carry the
/// same stickiest identifier.
#[derive(Debug, Clone)]
struct Channel {
    source: Source,
    anonymous: Option<String>,
    device: Option<String>,
    skew: Option<i64>,
}

/// A person about to live.
#[derive(Debug)]
pub(super) struct Person<'a> {
    /// Their own randomness.
    pub(super) rng: Rng,
    /// Whose customer.
    pub(super) tenant: &'a str,
    /// Counts persons of the tenant from 0.
    pub(super) number: u64,
    /// The sources that the tenant uses; never empty.
    pub(super) sources: &'a [Source],
    /// Device that this person shares with a neighbour, if they do.
    pub(super) shared_device: Option<String>,
    /// Where in time they are, milliseconds since 1970.
    pub(super) clock: i64,
    /// No record is sent after this.
    pub(super) now: i64,
    /// What they did so far.
    pub(super) records: Vec<Record>,
}

impl Person<'_> {
    /// Their records, in the order in which they are sent but for late deliveries.
    pub(super) fn live(mut self) -> Vec<Record> {
        match self.rng.below(100) {
            0..20 => self.visitor(),
            20..80 => self.member(),
            80..90 => self.imported(),
            90..94 => self.leaver(),
            _ => self.subscriber(),
        }
        self.records
    }

    /// Looks around without ever saying who they are.
    fn visitor(&mut self) {
        let Some(web) = self.browser() else { return self.imported() };
        self.visit(&web, &[], 1, 6);
    }

    /// Visits, signs up, comes back, perhaps by other devices; the tenant's server knows them too.
    fn member(&mut self) {
        let (user, email) = (self.user_id(), self.email());
        let Some(web) = self.browser() else { return self.app_member(&user, &email) };
        self.visit(&web, &[], 1, 5);
        self.sign_up(&web, &[user.clone(), email]);
        self.visit(&web, std::slice::from_ref(&user), 2, 8);
        self.preferences(&web, &user);
        self.profile(&user);
        if self.rng.chance(0.4) {
            self.elsewhere(&user);
        }
        if self.rng.chance(0.12) {
            self.old_account(&user);
        }
        if self.rng.chance(0.5) {
            self.visit(&web, std::slice::from_ref(&user), 1, 6);
        }
        if self.rng.chance(0.3) {
            self.preferences(&web, &user);
        }
    }

    /// A member of a tenant whose only source knows no anonymous visitors.
    fn app_member(&mut self, user: &Identifier, email: &Identifier) {
        let server = self.server();
        self.sign_up(&server, &[user.clone(), email.clone()]);
        self.profile(user);
        for _ in 0..self.rng.between(1, 3) {
            let app = Channel { device: Some(self.device()), skew: self.wrong_clock(), ..self.server() };
            self.describe_device(&app, user);
            self.visit(&app, std::slice::from_ref(user), 2, 6);
        }
        if self.rng.chance(0.12) {
            self.old_account(user);
        }
    }

    /// Known from the tenant's own systems only.
    fn imported(&mut self) {
        let (user, email) = (self.user_id(), self.email());
        let server = self.server();
        self.sign_up(&server, &[user.clone(), email]);
        self.profile(&user);
        self.visit(&server, &[user.clone(), self.email()], 1, 4);
    }

    /// Is imported, and asks to be forgotten; nothing comes after that.
    fn leaver(&mut self) {
        let Some(source) = self.source_of(&[Source::Native, Source::DataApi]) else { return self.imported() };
        let user = self.user_id();
        let server = Channel { source, anonymous: None, device: None, skew: None };
        self.sign_up(&server, std::slice::from_ref(&user));
        self.visit_in_order(&server, std::slice::from_ref(&user), 1, 4);
        self.emit(&server, vec![user], Intent::Delete);
    }

    /// Leaves an email address in one place and signs up with it in another: the address makes them one.
    fn subscriber(&mut self) {
        let (user, email) = (self.user_id(), self.email());
        let (Some(web), Some(app)) = (self.browser(), self.browser()) else { return self.imported() };
        self.visit(&web, &[], 1, 4);
        self.emit(&web, vec![email.clone()], Intent::Update(Update::default()));
        self.visit(&app, &[], 1, 3);
        self.sign_up(&app, &[user.clone(), email]);
        self.profile(&user);
        self.visit(&app, &[user], 1, 4);
    }

    /// Uses another device, and logs in there: two users turn out to be one.
    fn elsewhere(&mut self, user: &Identifier) {
        let Some(other) = self.browser() else { return };
        self.visit(&other, &[], 1, 4);
        if self.rng.chance(0.3)
            && let Some(anonymous) = &other.anonymous
        {
            let merged = Identifier::new("anonymous_id", anonymous.clone());
            self.emit(&other, vec![], Intent::Merge { retained: user.clone(), merged });
        } else {
            self.emit(&other, vec![user.clone()], Intent::Update(Update::default()));
        }
        if other.source == Source::Native && other.device.is_some() {
            self.describe_device(&other, user);
        }
        self.visit(&other, std::slice::from_ref(user), 1, 5);
    }

    /// The tenant finds out that an old account is the same person's.
    fn old_account(&mut self, user: &Identifier) {
        let Some(source) = self.source_of(&[Source::DataApi, Source::Native]) else { return };
        let server = Channel { source, anonymous: None, device: None, skew: None };
        let old = Identifier::new("user_id", format!("old-{}", self.number));
        let set = members([("legacy_number", json!(self.rng.between(1_000, 9_999)))]);
        self.emit(&server, vec![old.clone()], Intent::Update(Update { set, ..Update::default() }));
        self.visit(&server, std::slice::from_ref(&old), 0, 3);
        self.emit(&server, vec![], Intent::Merge { retained: user.clone(), merged: old });
    }

    fn sign_up(&mut self, channel: &Channel, who: &[Identifier]) {
        let set = members([
            ("signup_method", json!(self.rng.pick(&["email", "google", "apple"]))),
            ("signed_up_at", json!(format_time(self.clock.div_euclid(1000) * 1000))),
        ]);
        self.emit(channel, who.to_vec(), Intent::Update(Update { set, ..Update::default() }));
    }

    /// What the person sets in the app: written by their first browser only.
    fn preferences(&mut self, web: &Channel, user: &Identifier) {
        for _ in 0..self.rng.between(1, 4) {
            let mut set = Map::new();
            match self.rng.below(4) {
                0 => set.insert("theme".into(), json!(self.rng.pick(&["dark", "light", "system"]))),
                1 => set.insert("newsletter".into(), json!(self.rng.chance(0.5))),
                2 => set.insert("favourite_category".into(), json!(self.rng.pick(&CATEGORIES))),
                _ => set.insert("font_size".into(), json!(self.rng.between(9, 24))),
            };
            self.emit(web, vec![user.clone()], Intent::Update(Update { set, ..Update::default() }));
        }
    }

    /// What the tenant's server knows: written by one server channel only, which carries the user id and nothing else.
    fn profile(&mut self, user: &Identifier) {
        let server = self.server();
        for _ in 0..self.rng.between(1, 6) {
            let update = self.profile_update(server.source);
            self.emit(&server, vec![user.clone()], Intent::Update(update));
        }
    }

    fn profile_update(&mut self, source: Source) -> Update {
        let mut update = Update::default();
        // Segment's protocol has no way to change a list in place.
        match self.rng.below(if source == Source::Segment { 4 } else { 8 }) {
            0 => drop(update.set.insert("plan".into(), json!(self.rng.pick(&PLANS)))),
            1 => drop(update.set.insert("city".into(), json!(self.rng.pick(&CITIES)))),
            2 => drop(update.set.insert("credit".into(), json!(self.rng.between(0, 400) as f64 + 0.25))),
            3 => drop(update.set.insert("loyalty_points".into(), json!(self.rng.between(0, 5_000)))),
            4 | 5 => {
                let mut tags = vec![json!(self.rng.pick(&TAGS)), json!(self.rng.pick(&TAGS))];
                tags.dedup();
                update.add.insert("tags".into(), tags);
            }
            6 => drop(update.remove.insert("tags".into(), vec![json!(self.rng.pick(&TAGS))])),
            _ => update.unset.push(self.rng.pick(&["plan", "city", "loyalty_points"]).to_owned()),
        }
        update
    }

    fn describe_device(&mut self, app: &Channel, user: &Identifier) {
        let set = members([
            ("platform", json!(self.rng.pick(&["ANDROID", "iOS"]))),
            ("push_id", json!(self.rng.uuid())),
            ("model", json!(self.rng.pick(&["Pixel 8", "iPhone 15", "Galaxy S24"]))),
            ("os_version", json!(format!("{}.{}", self.rng.between(12, 18), self.rng.below(5)))),
        ]);
        self.emit(app, vec![user.clone()], Intent::Device { set });
    }

    /// Some events by a channel; a few of them are delivered late.
    fn visit(&mut self, channel: &Channel, who: &[Identifier], low: i64, high: i64) {
        let first = self.records.len();
        self.visit_in_order(channel, who, low, high);
        for record in self.records.iter_mut().skip(first) {
            if self.rng.chance(0.05) {
                record.order = (record.order + self.rng.between(HOUR, LATEST)).min(self.now);
            }
        }
    }

    fn visit_in_order(&mut self, channel: &Channel, who: &[Identifier], low: i64, high: i64) {
        for _ in 0..self.rng.between(low, high) {
            let event = self.event(channel);
            self.emit(channel, who.to_vec(), event);
        }
        self.clock += self.rng.between(10 * MINUTE, 8 * HOUR);
    }

    fn event(&mut self, channel: &Channel) -> Intent {
        if channel.anonymous.is_some() && self.rng.chance(0.45) {
            let page = self.rng.pick(&["home", "product", "cart", "account"]);
            let view = if channel.device.is_some() { "screen" } else { "page" };
            let properties = members([("path", json!(format!("/{page}")))]);
            return Intent::Event { name: page.to_owned(), properties, view: Some(view) };
        }
        let name = self.rng.pick(&EVENTS);
        let properties = members([
            ("product", json!(self.rng.pick(&PRODUCTS))),
            ("category", json!(self.rng.pick(&CATEGORIES))),
            ("price", json!(self.rng.between(1, 900) as f64 + 0.99)),
            ("quantity", json!(self.rng.between(1, 5))),
        ]);
        Intent::Event { name: name.to_owned(), properties, view: None }
    }

    fn emit(&mut self, channel: &Channel, who: Vec<Identifier>, intent: Intent) {
        self.clock = (self.clock + self.rng.between(2_000, 20 * MINUTE)).min(self.now);
        let anonymous = match intent {
            Intent::Merge { .. } => None,
            _ => channel.anonymous.as_ref().map(|value| Identifier::new("anonymous_id", value.clone())),
        };
        // A customer record of the data API names its customer by the customer id alone.
        let one_id = channel.source == Source::DataApi && !matches!(intent, Intent::Event { .. });
        let who = who.into_iter().filter(|identifier| !one_id || identifier.r#type == "user_id");
        self.records.push(Record {
            order: self.clock,
            time: self.clock,
            skew: channel.skew,
            source: channel.source,
            message_id: self.rng.uuid(),
            user: anonymous.into_iter().chain(who).collect(),
            device: channel.device.clone(),
            intent,
        });
    }

    /// A new browser or app with an anonymous id of its own; `None` when no source of the tenant knows anonymous visitors.
    fn browser(&mut self) -> Option<Channel> {
        let source = self.source_of(&[Source::Segment, Source::Native])?;
        let device = if self.rng.chance(0.5) { Some(self.device()) } else { None };
        let skew = if source == Source::Segment { self.wrong_clock() } else { None };
        Some(Channel { source, anonymous: Some(self.rng.uuid()), device, skew })
    }

    /// How far ahead a device's clock is, if it is wrong; only sources whose records say when they were sent can correct that.
    fn wrong_clock(&mut self) -> Option<i64> {
        if self.rng.chance(0.1) { Some(self.rng.between(-5 * HOUR, 5 * HOUR)) } else { None }
    }

    /// The tenant's server, which knows this person by user id: always the same source for one person.
    fn server(&self) -> Channel {
        let index = self.number as usize % self.sources.len().max(1);
        let source = self.sources.get(index).copied().unwrap_or(Source::Native);
        Channel { source, anonymous: None, device: None, skew: None }
    }

    fn source_of(&mut self, wanted: &[Source]) -> Option<Source> {
        let fitting: Vec<Source> = self.sources.iter().copied().filter(|source| wanted.contains(source)).collect();
        let index = self.rng.below(fitting.len() as u64) as usize;
        fitting.get(index).copied()
    }

    fn device(&mut self) -> String {
        let own = self.rng.uuid();
        self.shared_device.take().unwrap_or(own)
    }

    fn user_id(&self) -> Identifier {
        Identifier::new("user_id", format!("u-{}", self.number))
    }

    fn email(&self) -> Identifier {
        Identifier::new("email", format!("person{}@{}.example", self.number, self.tenant))
    }
}

fn members<const N: usize>(pairs: [(&str, Value); N]) -> Map<String, Value> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
