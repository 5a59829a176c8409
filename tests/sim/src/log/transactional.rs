//! Transactions, and what can become of a commit.
//!
//! A commit is a request to end *the open transaction of this session*. That is all it says: a request that is repeated on the way, or that arrives late, ends whatever
//! transaction of the session is open then, half of the next one too. The session's fencing is what stops it. So a client that saw any trouble
//! reports that the outcome is unknown, also when it was told of a success (rule 6), and is of no use any more.

use super::client::{Shared, SimLog, landed};
use crate::counts::{Fault, Protocol};
use crate::world::World;
use millstream_shard::log::{LogError, Outgoing, Transactional};
use std::sync::Arc;

/// The producer of a transactional id.
pub(super) struct SimTransactional {
    log: SimLog,
    session: usize,
    begun: bool,
    spent: bool,
    /// A connection was lost since a commit.
    doubt: bool,
    /// What the open transaction says in `control`: partition, key, payload.
    plans: Vec<(usize, Vec<u8>, Vec<u8>)>,
}

fn unknown(why: &str) -> LogError {
    LogError::Unknown(why.to_owned())
}

impl SimTransactional {
    pub(super) fn new(log: SimLog, session: usize) -> SimTransactional {
        SimTransactional { log, session, begun: false, spent: false, doubt: false, plans: Vec::new() }
    }

    fn guarded<T>(&mut self, work: impl FnOnce(&mut SimTransactional) -> Result<T, LogError>) -> Result<T, LogError> {
        if self.log.is_dead() {
            return Err(unknown("this process is no more"));
        }
        if self.spent {
            return Err(unknown("this client has failed before; make a new one"));
        }
        let result = work(self);
        self.spent = result.is_err() && !self.log.shared.slips.client_kept;
        if result.is_err() {
            self.begun = false;
        }
        result
    }

    fn fenced(&self) -> LogError {
        if let Some(world) = &self.log.shared.world {
            world.count(Protocol::ClientFenced);
        }
        unknown("fenced: a newer client of the id exists, or the transaction took too long")
    }

    fn add(&mut self, message: &Outgoing<'_>) -> Result<(), LogError> {
        let shared = self.log.shared.clone();
        let index = shared.lock().admit(message)?;
        if is_control(message.topic) {
            self.plans.push((index, message.key.to_vec(), message.payload.to_vec()));
        }
        if let Some(world) = &shared.world {
            world.step("send");
            while shared.lock().is_landing(self.session) {
                world.sleep_ms(2);
            }
            if self.log.happens(Fault::SendFailed) {
                return Err(unknown("a message was not delivered"));
            }
        }
        let now_ms = shared.now_ms();
        let Ok(began) = shared.with(|broker| broker.add(self.session, index, message, now_ms)) else {
            return Err(self.fenced());
        };
        if let (Some(world), Some(number)) = (&shared.world, began) {
            time_out_later(world, &shared, number);
        }
        Ok(())
    }

    fn end(&mut self, commit: bool) -> Result<(), LogError> {
        let shared = self.log.shared.clone();
        let Some(world) = shared.world.clone() else { return self.end_outside(commit) };
        world.step(if commit { "commit" } else { "abort" });
        let session = self.session;
        let unknown = |why| {
            shared.with(|broker| broker.leave_open(session));
            unknown(why)
        };
        if commit && self.log.happens(Fault::CommitUnknownLost) {
            world.step_of("commit times out", 30);
            return Err(unknown("the commit was not answered"));
        }
        if commit && self.log.happens(Fault::CommitUnknownLater) {
            commit_later(&world, &shared, self.session);
            world.step_of("commit times out", 30);
            return Err(unknown("the commit was not answered"));
        }
        if commit && self.log.happens(Fault::TransactionForgotten) {
            shared.with(|broker| broker.leave_open(session));
            let (landed, now_ms) = (landed(&world), shared.now_ms());
            let hung = shared.with(|broker| broker.hang(session, true, landed, now_ms));
            let Ok(number) = hung else { return Err(self.fenced()) };
            world.step_of("the brokers are back", 30);
            if world.draw(|rng| rng.one_in(2)) {
                // It was told before.
                number.into_iter().for_each(|number| shared.with(|broker| broker.tell(number)));
                self.doubt = true;
                return Ok(());
            }
            return Err(self::unknown("the commit was not answered"));
        }
        let happened = commit && self.log.happens(Fault::CommitUnknownHappened);
        let repeated = commit && self.log.happens(Fault::CommitRepeatedLater);
        let told = shared.slips.success_trusted || !repeated;
        if happened || !told {
            shared.with(|broker| broker.leave_open(session));
        }
        let ended = shared.with(|broker| broker.finish(self.session, commit));
        let Ok(number) = ended else { return Err(self.fenced()) };
        world.trace(|| format!("session {} ends transaction {number:?}, commit {commit}", self.session));
        if let Some(number) = number {
            land(&world, &shared, number);
        }
        if repeated {
            commit_later(&world, &shared, self.session);
        }
        world.step_after("the end of the transaction is known", 1);
        if happened || !told {
            return Err(self::unknown("trouble while committing"));
        }
        Ok(())
    }

    /// What was published may come once more, when newer plans are there.
    fn repeat_plans(&mut self) {
        let shared = &self.log.shared;
        let Some(world) = &shared.world else { return };
        for (index, key, payload) in self.plans.drain(..) {
            if world.happens(Fault::PlanRepeated) {
                let (shared, again_us) = (shared.clone(), world.draw(|rng| rng.below(8_000_000)));
                world.after(again_us, move |world| {
                    let now_ms = world.true_ms();
                    shared.with(|broker| broker.append_plain(index, &key.into(), &payload.into(), now_ms));
                });
            }
        }
    }

    fn end_outside(&mut self, commit: bool) -> Result<(), LogError> {
        let shared = self.log.shared.clone();
        let now_ms = shared.now_ms();
        let ended = shared.with(|broker| {
            let ended = broker.finish(self.session, commit);
            if let Ok(Some(number)) = &ended {
                broker.land_all(*number, now_ms);
            }
            ended
        });
        ended.map(drop).map_err(|_| self.fenced())
    }
}

/// Is this where plans are?
pub(super) fn is_control(topic: &str) -> bool {
    topic.ends_with(".control")
}

/// The markers land, one here, one there.
fn land(world: &World, shared: &Arc<Shared>, number: usize) {
    let late = world.happens(Fault::MarkerLate);
    let now_ms = shared.now_ms();
    if !late && world.draw(|rng| rng.one_in(2)) {
        return shared.with(|broker| broker.land_all(number, now_ms));
    }
    let pending = shared.lock().pending(number);
    if pending.is_empty() {
        return shared.with(|broker| broker.land_all(number, now_ms));
    }
    let most_us = if late { 3_000_000 } else { 5_000 };
    for index in pending {
        let (shared, delay_us) = (shared.clone(), world.draw(|rng| rng.below(most_us)));
        world.after(delay_us, move |world| {
            let now_ms = world.true_ms();
            shared.with(|broker| broker.land(number, index, now_ms));
        });
    }
}

/// The request arrives some time.
fn commit_later(world: &World, shared: &Arc<Shared>, session: usize) {
    let shared = shared.clone();
    let delay_us = world.draw(|rng| if rng.one_in(2) { rng.below(50_000) } else { rng.below(4_000_000) });
    world.after(delay_us, move |world| match shared.with(|broker| broker.finish(session, true)) {
        Ok(Some(number)) => {
            world.count_fault(Fault::LateCommitHit);
            world.trace(|| format!("a late commit of session {session} ends transaction {number}"));
            land(world, &shared, number);
        }
        Ok(None) => {}
        Err(_) => world.count_fault(Fault::LateCommitFenced),
    });
}

fn time_out_later(world: &World, shared: &Arc<Shared>, number: usize) {
    let shared = shared.clone();
    world.after(shared.transaction_timeout_us, move |world| {
        let now_ms = world.true_ms();
        if shared.with(|broker| broker.time_out(number, now_ms)) {
            world.count_fault(Fault::TransactionTimedOut);
        }
    });
}

impl Transactional for SimTransactional {
    fn begin(&mut self) -> Result<(), LogError> {
        self.guarded(|client| {
            if client.doubt {
                return Err(unknown("in doubt since the last commit"));
            }
            if client.begun {
                return Err(unknown("the former transaction is still open: commit or abort it first"));
            }
            // Real clients begin without asking anybody; outside of a simulation the contract's strictest reading holds.
            let fenced = client.log.shared.world.is_none() && !client.log.shared.lock().is_current(client.session);
            if fenced {
                return Err(client.fenced());
            }
            client.begun = true;
            client.plans.clear();
            Ok(())
        })
    }

    fn send(&mut self, message: Outgoing<'_>) -> Result<(), LogError> {
        self.guarded(|client| {
            if !client.begun {
                return Err(unknown("no transaction was begun"));
            }
            client.add(&message)
        })
    }

    fn commit(&mut self) -> Result<(), LogError> {
        self.guarded(|client| {
            if !std::mem::take(&mut client.begun) {
                return Err(unknown("no transaction was begun"));
            }
            client.end(true)?;
            client.repeat_plans();
            Ok(())
        })
    }

    fn abort(&mut self) -> Result<(), LogError> {
        self.guarded(|client| {
            if !std::mem::take(&mut client.begun) {
                return Err(unknown("no transaction was begun"));
            }
            client.end(false)
        })
    }

    fn take_doubt(&mut self) -> Option<String> {
        std::mem::take(&mut self.doubt).then(|| "a connection was lost".to_owned())
    }
}

impl Drop for SimTransactional {
    /// A client that is ended in good order gives its transaction up, in some versions; one that dies leaves it open.
    fn drop(&mut self) {
        if self.log.is_dead() || !self.begun {
            return;
        }
        let shared = self.log.shared.clone();
        let gives_up = shared.world.as_ref().is_none_or(|world| world.draw(|rng| rng.one_in(2)));
        if gives_up {
            let now_ms = shared.now_ms();
            shared.with(|broker| {
                if let Ok(Some(number)) = broker.finish(self.session, false) {
                    broker.land_all(number, now_ms);
                }
            });
        }
    }
}
