//! `millstream usage`: each tenant's sums, and whether they add up (I2).

use super::visible::visible;
use super::{Admin, AdminError, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A tenant's sums in one stage of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UsageRow {
    /// The tenant.
    pub tenant: String,
    /// The stage.
    pub stage: String,
    /// Records read from `ingress`.
    pub accepted: u64,
    /// Of these, repeated deliveries.
    pub duplicates: u64,
    /// Of these, rejects.
    pub rejects: u64,
    /// Of these, applied.
    pub effects: u64,
    /// Mutations published.
    pub mutations: u64,
    /// Enriched events published.
    pub events: u64,
}

/// A tenant's sums over all stages and processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Sums {
    /// Records read from `ingress`.
    pub accepted: u64,
    /// Records applied.
    pub effects: u64,
    /// Repeated deliveries.
    pub duplicates: u64,
    /// Rejects.
    pub rejects: u64,
    /// accepted − effects − duplicates − rejects: what is under way. Negative would break I2, but for processes asked one after
    /// the other while records flow.
    pub in_progress: i64,
    /// Mutations published.
    pub mutations: u64,
    /// Enriched events published.
    pub events: u64,
}

/// Adds up rows by tenant.
pub fn sums(rows: &[UsageRow]) -> BTreeMap<String, Sums> {
    let mut tenants: BTreeMap<String, Sums> = BTreeMap::new();
    for row in rows {
        let sums = tenants.entry(row.tenant.clone()).or_default();
        sums.accepted += row.accepted;
        sums.effects += row.effects;
        sums.duplicates += row.duplicates;
        sums.rejects += row.rejects;
        sums.mutations += row.mutations;
        sums.events += row.events;
    }
    for sums in tenants.values_mut() {
        let done = sums.effects + sums.duplicates + sums.rejects;
        sums.in_progress = i64::try_from(i128::from(sums.accepted) - i128::from(done)).unwrap_or(i64::MAX);
    }
    tenants
}

/// Asks all processes. Those further down the flow are asked first, so that a running pipeline shows records as under way rather than
/// as done before they came.
///
/// # Errors
/// [`AdminError`] of the first one that fails or whose shards are not all open yet, or when none of them keeps sums.
pub fn collect(admins: &[Admin]) -> Result<Vec<UsageRow>, AdminError> {
    let (mut rows, mut without) = (Vec::new(), None);
    let mut asked = 0;
    for admin in admins.iter().rev() {
        match admin.json::<Vec<UsageRow>>("/v1/usage", &[]) {
            Ok(more) => rows.extend(more),
            // A gateway or a reaction process keeps no sums.
            Err(error) if error.is_not_found() => {
                without = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        }
        asked += 1;
    }
    match without {
        Some(error) if asked == 0 => Err(error),
        _ => Ok(rows),
    }
}

/// Arguments of `millstream usage`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct UsageArgs {
    /// Base URL of an admin port; once per process, in the order of the flow (gateway, unify, action, reaction)
    #[arg(long, default_value = "http://127.0.0.1:9090", env = "MILLSTREAM_ADMIN", value_delimiter = ',')]
    admin: Vec<String>,
    /// Only this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(super) fn run(args: &UsageArgs) -> anyhow::Result<Outcome> {
    let admins = args.admin.iter().map(|url| Admin::new(url)).collect::<Result<Vec<_>, _>>()?;
    let mut tenants = sums(&collect(&admins)?);
    if let Some(tenant) = &args.tenant {
        if let Some(why) = unknown(tenant, &tenants) {
            super::print(format_args!("{why}\n"))?;
            return Ok(Outcome::Bad);
        }
        tenants.retain(|name, _| name == tenant);
    }
    if args.json {
        super::print(format_args!("{}\n", serde_json::to_string_pretty(&tenants)?))?;
    } else {
        super::print(format_args!("{}", table(&tenants)))?;
    }
    let broken = tenants.values().any(|sums| sums.in_progress < 0);
    Ok(if broken { Outcome::Bad } else { Outcome::Good })
}

/// Says so when no record of a tenant has come.
pub(super) fn unknown(tenant: &str, tenants: &BTreeMap<String, Sums>) -> Option<String> {
    if tenants.contains_key(tenant) {
        return None;
    }
    let known: Vec<_> = tenants.keys().map(|name| visible(name)).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let tenant = visible(tenant);
    Some(format!("no record of a tenant {tenant} has come; is its name right? Tenants with records: {known}"))
}

/// The sums for people.
pub(super) fn table(tenants: &BTreeMap<String, Sums>) -> String {
    let width = tenants.keys().map(|tenant| visible(tenant).chars().count()).max().unwrap_or(0).max(6);
    let mut text = format!(
        "{:width$} {:>10} = {:>10} + {:>10} + {:>8} + {:>11}   {:>10} {:>10}\n",
        "tenant", "accepted", "effects", "duplicates", "rejects", "in progress", "mutations", "events"
    );
    for (tenant, sums) in tenants {
        let tenant = visible(tenant);
        let verdict = if sums.in_progress < 0 { "   does not add up: more outcomes than records" } else { "" };
        text.push_str(&format!(
            "{tenant:width$} {:>10} = {:>10} + {:>10} + {:>8} + {:>11}   {:>10} {:>10}{verdict}\n",
            sums.accepted, sums.effects, sums.duplicates, sums.rejects, sums.in_progress, sums.mutations, sums.events
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(stage: &str, accepted: u64, effects: u64, duplicates: u64, rejects: u64) -> UsageRow {
        UsageRow {
            tenant: "acme".into(),
            stage: stage.into(),
            accepted,
            effects,
            duplicates,
            rejects,
            ..UsageRow::default()
        }
    }

    #[test]
    fn stages_and_processes_add_up() {
        let sums = sums(&[row("unify", 6, 0, 1, 1), row("unify", 4, 0, 0, 0), row("action", 0, 6, 0, 1)]);
        let acme = &sums["acme"];
        assert_eq!((acme.accepted, acme.effects, acme.duplicates, acme.rejects, acme.in_progress), (10, 6, 1, 2, 1));
        assert!(!table(&sums).contains("does not add up"));
    }

    #[test]
    fn a_tenant_without_records_is_told_from_one_with_nothing_to_show() {
        let sums = sums(&[row("unify", 1, 0, 0, 0)]);
        assert_eq!(unknown("acme", &sums), None);
        assert!(unknown("acmee", &sums).unwrap().ends_with("Tenants with records: acme"));
        assert!(unknown("acme", &BTreeMap::new()).unwrap().ends_with("none"));
    }

    #[test]
    fn a_tenant_cannot_forge_a_line() {
        let rows = [UsageRow { tenant: "a\nacme".into(), ..row("unify", 1, 0, 0, 0) }];
        assert_eq!(table(&sums(&rows)).lines().count(), 2);
        assert!(unknown("b\u{1b}[2J", &sums(&rows)).unwrap().ends_with("a\\nacme"));
    }

    #[test]
    fn more_outcomes_than_records_are_shown() {
        let sums = sums(&[row("unify", 1, 0, 0, 0), row("action", 0, 2, 0, 0)]);
        assert_eq!(sums["acme"].in_progress, -1);
        assert!(table(&sums).contains("does not add up"));
    }
}
