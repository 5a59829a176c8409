//! `millstream tenant delete --erase`: a tenant goes, and all that it has sent before it.
//!
//! The steps are those that an operator takes ([`Erasing`]): its keys are revoked, and the action stage takes its users and devices out of its state; the reaction stage takes their documents out of the
//! document store; then the tenant is published as gone. Invariants:
//!
//! - **Never back.** The step that was published counts, whoever published it: a command that was interrupted, or has waited long enough, goes on there when it is run again.
//! - **A step is followed by the next one when every shard has reported it**, and everybody who lets in or judges records has heard of it.
//!
//! Protocol: take the transactional id of `control`, read to the end, publish the step that is due; listen until another one is, and begin anew. Whoever has published in between was read then.

use super::{Change, Heard, Intent, Publishing, Senders, heard, open, there, wall_ms};
use crate::cli::Outcome;
use crate::cli::session::{LISTEN, Session};
use crate::config::{Config, Millis};
use anyhow::{Context, bail};
use millstream_operator::erasure::progress;
use millstream_plan::message::{Erasing, Tenant, Terms};
use std::collections::BTreeMap;
use std::time::Instant;

/// How long workers are waited for.
const WAITS: Millis = Millis(600_000);

/// Runs it.
pub(super) fn run(config: &Config, args: &Publishing, name: &str) -> anyhow::Result<Outcome> {
    if args.no_wait {
        bail!(
            "nothing is erased: `--erase` takes one step after the other, and nobody would take the second one: leave `--no-wait` out, or say with `--timeout` how long to wait"
        );
    }
    let mut session = open(config, args)?;
    check(session.planning.view().tenants(), name)?;
    if config.tenants.iter().any(|tenant| tenant.name.as_str() == name) {
        eprintln!(
            "millstream: warning: {name} is in `tenants` of the configuration, too: its keys there stay good, and what it sends from now on is not erased; take it out"
        );
    }
    crate::cli::print(format_args!("{name}: erasing\n"))?;
    if args.dry_run {
        crate::cli::print(format_args!("a dry run: nothing was published\n"))?;
        return Ok(Outcome::Good);
    }
    let timeout = args.timeout.unwrap_or(WAITS);
    let mut erasure = Erasure { name, end: Instant::now() + timeout.duration(), told: String::new(), has_begun: false };
    session.fence()?;
    while let Some(step) = erasure.due(&session)? {
        if !erasure.take(&mut session, step)? {
            eprintln!(
                "millstream: after {timeout} {name} is not erased yet: {}. Run it again to go on",
                if erasure.told.is_empty() { "nothing is heard of it" } else { &erasure.told }
            );
            return Ok(Outcome::Bad);
        }
        session.fence()?;
    }
    let gone = with(&session, name, None);
    session.planning.publish_tenants(&gone.wanted, wall_ms()).with_context(|| unsure(name))?;
    crate::cli::print(format_args!("{name}: erased\n"))?;
    Ok(Outcome::Good)
}

/// Whoever was never published has sent nothing that could be told from others'.
fn check(known: &BTreeMap<String, Tenant>, name: &str) -> anyhow::Result<()> {
    if !known.contains_key(name) {
        bail!("nothing is erased: no tenant {name} was ever published; `millstream tenant list` prints those that are");
    }
    Ok(())
}

fn unsure(name: &str) -> String {
    format!("publishing; `millstream tenant delete {name} --erase` goes on where it is")
}

/// Everybody who is published, and this one on these terms, or not.
fn with(session: &Session, name: &str, terms: Option<Terms>) -> Intent {
    let mut wanted: Senders =
        there(session.planning.view().tenants()).map(|(name, terms)| (name.clone(), terms.clone())).collect();
    let change = if terms.is_some() { Change::Changed } else { Change::Deleted };
    match terms {
        Some(terms) => drop(wanted.insert(name.to_owned(), terms)),
        None => drop(wanted.remove(name)),
    }
    Intent { wanted, changes: [(name.to_owned(), change)].into() }
}

/// An erasure that somebody waits for.
struct Erasure<'a> {
    name: &'a str,
    end: Instant,
    /// How far it was, when that was printed last.
    told: String,
    /// This command has published a step of it.
    has_begun: bool,
}

impl Erasure<'_> {
    /// The step that is to be published; `None`: all is done.
    fn due(&self, session: &Session) -> anyhow::Result<Option<Erasing>> {
        match session.planning.erasure(self.name, session.now_ms()) {
            Some(erasure) => Ok(erasure.next()),
            None if self.has_begun => Err(self.lost()),
            None => Ok(Some(Erasing::State)),
        }
    }

    /// Publishes a step, and waits until another one is due; false: it has waited long enough.
    fn take(&mut self, session: &mut Session, step: Erasing) -> anyhow::Result<bool> {
        let before = session.planning.view().tenants().clone();
        let intent = with(session, self.name, Some(Terms::erasing(step)));
        session.planning.publish_tenants(&intent.wanted, wall_ms()).with_context(|| unsure(self.name))?;
        self.has_begun = true;
        loop {
            let known = session.planning.view().tenants();
            let is_erasing = known.get(self.name).is_some_and(|tenant| tenant.terms.erasing.is_some());
            match heard(known, &before, self.name, &intent) {
                Heard::Nothing => {}
                // Another one of these commands is further.
                Heard::Other if is_erasing => return Ok(true),
                Heard::Other => return Err(self.lost()),
                Heard::It => {
                    if self.tell(session, step)? {
                        return Ok(true);
                    }
                }
            }
            if Instant::now() >= self.end {
                return Ok(false);
            }
            session.listen(LISTEN).context("published; waiting for the workers")?;
        }
    }

    /// Prints how far it is, when that has changed; whether another step is due.
    fn tell(&mut self, session: &Session, step: Erasing) -> anyhow::Result<bool> {
        let Some(erasure) = session.planning.erasure(self.name, session.now_ms()) else { return Ok(false) };
        let now = progress(&erasure);
        if self.told != now {
            crate::cli::print(format_args!("{}: {now}\n", self.name))?;
            self.told = now;
        }
        Ok(erasure.next() != Some(step))
    }

    fn lost(&self) -> anyhow::Error {
        anyhow::anyhow!(
            "published, but somebody has published something else about {} since: an operator, or another `millstream tenant`; see `millstream tenant list`",
            self.name
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_published_once_can_be_erased() {
        let tenant = |is_deleted| {
            let terms = Terms::default();
            Tenant { name: "acme".to_owned(), version: 1, terms, is_deleted, erased_ms: 0 }
        };
        for is_deleted in [false, true] {
            check(&[("acme".to_owned(), tenant(is_deleted))].into(), "acme").unwrap();
        }
        let why = check(&BTreeMap::new(), "acme").unwrap_err().to_string();
        assert!(why.contains("no tenant acme was ever published"), "{why}");
    }
}
