//! What the demo prints at the end.

use super::load::{self, Shipment};
use super::probe;
use crate::cli::usage;
use crate::cli::verify::{Mismatch, Snapshot};
use crate::cli::visible::visible;
use crate::cli::{Admin, Outcome, inspect, print};
use crate::generate::truth::{TenantTruth, Truth, UserTruth};
use std::collections::BTreeMap;
use std::time::Duration;

/// Mismatches that are printed.
const SHOWN: usize = 20;

/// What became of the records.
pub(super) fn print_sums(
    snapshot: &Snapshot,
    shipments: &[Shipment],
    total: usize,
    took: Duration,
) -> anyhow::Result<()> {
    let answers = load::answers(shipments);
    let accepted: u64 = answers.values().map(|answers| answers.accepted).sum();
    let mut refused: BTreeMap<String, u64> = BTreeMap::new();
    answers.into_values().flat_map(|answers| answers.refused).for_each(|(reason, count)| {
        *refused.entry(reason).or_default() += count;
    });
    let rate = accepted as f64 / took.as_secs_f64().max(0.001);
    print(format_args!(
        "\n{total} records sent in {:.1} s, {accepted} accepted ({rate:.0}/s); refused by the gateway: {}\n\n",
        took.as_secs_f64(),
        by_reason(&refused)
    ))?;
    print(format_args!("{}\n", usage::table(&usage::sums(&snapshot.usage))))?;
    let mut rejects: BTreeMap<String, u64> = BTreeMap::new();
    for reject in snapshot.rejects.iter().filter(|reject| !reject.partial) {
        *rejects.entry(reject.reason.clone()).or_default() += 1;
    }
    print(format_args!("rejects: {}\n", by_reason(&rejects)))?;
    Ok(())
}

fn by_reason(counts: &BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>().join(", ")
}

/// How long it took until documents could be read.
pub(super) fn print_freshness(freshness: &probe::Freshness) -> anyhow::Result<()> {
    print(format_args!("freshness (acknowledged → document readable): {}\n", probe::describe(freshness)))?;
    Ok(())
}

/// Somebody who turned out to be one person.
pub(super) fn print_profile(admin: &Admin, truth: &Truth) -> anyhow::Result<()> {
    let Some((tenant, user_id)) = merged_user(truth) else { return Ok(()) };
    let id = format!("user_id={user_id}");
    print(format_args!("\nmillstream inspect user --tenant {tenant} --id {id}\n\n"))?;
    match inspect::fetch(std::slice::from_ref(admin), "/v1/inspect/user", tenant, &id)? {
        Some(found) => print(format_args!("{}\n", indent(&inspect::readable(&found))))?,
        None => print(format_args!("  nobody\n\n"))?,
    }
    Ok(())
}

/// The user who was most different users before, and is known best.
fn merged_user(truth: &Truth) -> Option<(&str, &str)> {
    let count = |user: &UserTruth| user.identifiers.values().map(std::collections::BTreeSet::len).sum::<usize>();
    let users = truth.tenants.iter().flat_map(|(tenant, truth)| truth.users.iter().map(move |user| (tenant, user)));
    let merged = users.filter(|(_, user)| user.identifiers.get("anonymous_id").is_some_and(|values| values.len() > 1));
    let (tenant, user) = merged.max_by_key(|(_, user)| (count(user), user.attributes.len()))?;
    Some((tenant, user.identifiers.get("user_id")?.first()?))
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// Whether everything adds up, in words.
pub(super) fn verdict(truth: &Truth, mismatches: &[Mismatch]) -> (String, Outcome) {
    if !mismatches.is_empty() {
        let mut text = format!("{} things are not as they must be:\n", mismatches.len());
        mismatches
            .iter()
            .take(SHOWN)
            .for_each(|mismatch| text.push_str(&format!("  {}\n", visible(&mismatch.to_string()))));
        if mismatches.len() > SHOWN {
            text.push_str(&format!("  … and {} more\n", mismatches.len() - SHOWN));
        }
        return (text, Outcome::Bad);
    }
    let sum = |of: fn(&TenantTruth) -> u64| truth.tenants.values().map(of).sum::<u64>();
    let text = format!(
        "everything adds up: {} effects, {} events each exactly once, {} users with the right identifiers, attributes and \
         devices, {} deleted\n",
        sum(|tenant| tenant.effects),
        sum(|tenant| tenant.events),
        sum(|tenant| tenant.users.len() as u64),
        sum(|tenant| tenant.deleted.len() as u64)
    );
    (text, Outcome::Good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_known_merged_user_is_shown() {
        let (_, truth) = load::prepare(3, 200, 7).unwrap();
        let (tenant, user_id) = merged_user(&truth).unwrap();
        let has = |user: &&UserTruth| user.identifiers.get("user_id").is_some_and(|ids| ids.contains(user_id));
        let user = truth.tenants[tenant].users.iter().find(has).unwrap();
        assert!(user.identifiers["anonymous_id"].len() > 1);
    }

    #[test]
    fn mismatches_are_bad_and_cut() {
        let mismatch = |n: usize| Mismatch {
            tenant: "acme".into(),
            subject: format!("event {n}"),
            expected: "once".into(),
            found: "not at all".into(),
        };
        let many: Vec<Mismatch> = (0..30).map(mismatch).collect();
        let (text, outcome) = verdict(&Truth::default(), &many);
        assert_eq!(outcome, Outcome::Bad);
        assert!(text.contains("event 19:") && !text.contains("event 20:") && text.contains("10 more"), "{text}");
        assert_eq!(verdict(&Truth::default(), &[]).1, Outcome::Good);
    }
}
