//! A worker: standby, takeover, handoff, owner, by the rules of the design's section 4. The driver's commands stand for the plan.
//!
//! Commands: `takeover E` (acquire unless the log shows an epoch above E), `prepare`, `release WORKER INCARNATION CLIENT`, `quit`.

use crate::Settings;
use crate::follow::Follower;
use crate::input::Input;
use crate::record::Record;
use crate::transact::Client;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::BufRead;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const BATCH_INTERVAL: Duration = Duration::from_millis(50);
const BATCH_RECORDS: usize = 4000;

enum Command {
    Takeover(u64),
    Prepare,
    Release(String, u64, u64),
    Quit,
}

/// A client prepared for a handoff (rule 2): good only while the epoch is the same.
struct Prepared {
    client: Client,
    number: u64,
    epoch: u64,
}

struct Worker {
    settings: Settings,
    name: String,
    incarnation: u64,
    follower: Follower,
    input: Input,
    prepared: Option<Prepared>,
    clients: u64,
    commands: Receiver<Command>,
}

/// Runs until `quit` or the end of stdin.
pub fn run(settings: Settings) -> Result<()> {
    let name = settings.rest[0].clone();
    let (follower, input) = (Follower::new(&settings)?, Input::new(&settings)?);
    let incarnation = u64::from(std::process::id());
    let commands = read_commands();
    let mut worker = Worker { settings, name, incarnation, follower, input, prepared: None, clients: 0, commands };
    worker.follower.read_to_end()?;
    emit(json!({"event": "ready", "incarnation": incarnation}));
    loop {
        worker.stand_by()?;
    }
}

impl Worker {
    fn stand_by(&mut self) -> Result<()> {
        match self.commands.try_recv() {
            Ok(Command::Takeover(limit)) => self.take_over(limit)?,
            Ok(Command::Prepare) => self.prepare()?,
            Ok(Command::Release(..)) => emit(json!({"event": "no_owner"})),
            Ok(Command::Quit) => std::process::exit(0),
            Err(_) => {}
        }
        self.follower.poll(Duration::from_millis(5))?;
        self.input.fill(Duration::ZERO);
        self.input.trim(self.follower.view.next_input);
        let epoch = self.follower.view.epoch;
        if let Some(outdated) = self.prepared.take_if(|prepared| prepared.epoch != epoch) {
            outdated.client.discard();
        }
        if self.is_released_to_me()
            && let Some(prepared) = self.prepared.take()
        {
            self.own(prepared.client, json!({"how": "handoff"}))?;
        }
        Ok(())
    }

    /// Rule 3: this very process and this very client, prepared before the release.
    fn is_released_to_me(&self) -> bool {
        let mine = self.prepared.as_ref().map(|prepared| (self.name.clone(), self.incarnation, prepared.number));
        mine.is_some() && self.follower.view.released == mine
    }

    /// Rule 2.
    fn prepare(&mut self) -> Result<()> {
        let slot = 1 - self.follower.view.slot;
        let client = Client::init(&self.settings, slot)?;
        self.follower.read_to_end()?;
        let view = &self.follower.view;
        if view.slot == slot {
            client.discard();
            emit(json!({"event": "prepare_refused", "slot": slot}));
            return Ok(());
        }
        self.clients += 1;
        let init_ms = client.init.as_millis() as u64;
        self.prepared = Some(Prepared { client, number: self.clients, epoch: view.epoch });
        emit(json!({"event": "prepared", "client": self.clients, "slot": slot, "init_ms": init_ms}));
        Ok(())
    }

    /// Rule 4, with rule 5 in the place of `limit`: who sees a newer owner than the plan knows stands down.
    fn take_over(&mut self, limit: u64) -> Result<()> {
        let mut attempts = 0;
        while self.follower.view.epoch <= limit {
            attempts += 1;
            match self.attempt() {
                Ok(Some((client, mut steps))) if self.follower.view.epoch <= limit => {
                    steps["attempts"] = json!(attempts);
                    return self.own(client, steps);
                }
                Ok(Some((client, _))) => client.discard(),
                Ok(None) => {}
                Err(error) => {
                    emit(json!({"event": "attempt_failed", "error": format!("{error:#}")}));
                    std::thread::sleep(Duration::from_millis(10 + random() % 90));
                    self.follower.read_to_end()?;
                }
            }
        }
        emit(json!({"event": "stood_down", "epoch": self.follower.view.epoch}));
        Ok(())
    }

    /// Once through rule 4: init the idle id, then the named one, then read to the end. None: it names another id by now.
    fn attempt(&mut self) -> Result<Option<(Client, Value)>> {
        let named = self.follower.view.slot;
        let prepared = self.prepared.take().filter(|prepared| prepared.client.slot != named);
        let was_prepared = prepared.is_some();
        let idle = match prepared {
            Some(prepared) => prepared.client,
            None => Client::init(&self.settings, 1 - named)?,
        };
        let mut named_ms = 0;
        if self.settings.broken == "read-first" {
            self.follower.read_to_end()?;
        }
        // A courtesy, not a rule: who sees here that a rival was faster does not fence it.
        while self.follower.poll(Duration::from_millis(2))? == Some(true) {}
        if self.follower.view.slot != named {
            idle.discard();
            return Ok(None);
        }
        if self.settings.broken != "skip-named" {
            let fence = Client::init(&self.settings, named)?;
            named_ms = fence.init.as_millis() as u64;
            fence.discard();
        }
        let end = match self.settings.broken.as_str() {
            "read-first" => Duration::ZERO,
            _ => self.follower.read_to_end()?,
        };
        if self.follower.view.slot != named {
            idle.discard();
            return Ok(None);
        }
        let idle_ms = if was_prepared { 0 } else { idle.init.as_millis() as u64 };
        let how = if was_prepared { "takeover prepared" } else { "takeover" };
        Ok(Some((
            idle,
            json!({"how": how, "idle_ms": idle_ms, "named_ms": named_ms, "end_ms": end.as_millis() as u64}),
        )))
    }

    /// Owner until an error or a release. The first transaction carries the ownership record.
    fn own(&mut self, client: Client, mut steps: Value) -> Result<()> {
        let epoch = self.follower.view.epoch + 1;
        let mut next = self.follower.view.next_input;
        let mut release = None;
        let mut first = true;
        let mut due = Instant::now();
        self.input.advance(next)?;
        loop {
            match self.commands.try_recv() {
                Ok(Command::Release(worker, incarnation, client)) => {
                    release = Some(Record::Release { epoch, worker, incarnation, client });
                }
                Ok(Command::Quit) => std::process::exit(0),
                Ok(Command::Takeover(_)) => emit(json!({"event": "is_owner", "epoch": epoch})),
                Ok(Command::Prepare) => emit(json!({"event": "prepare_refused"})),
                Err(_) => {}
            }
            self.input.fill(if first { Duration::ZERO } else { Duration::from_millis(2) });
            if !first && release.is_none() && Instant::now() < due {
                continue;
            }
            due = Instant::now() + BATCH_INTERVAL;
            let batch = self.input.take(BATCH_RECORDS);
            if batch.is_empty() && !first && release.is_none() {
                continue;
            }
            let messages = self.messages(&client, epoch, next, &batch, first, release.as_ref())?;
            let began = Instant::now();
            if let Err(error) = client.transaction(&messages) {
                client.discard();
                emit(
                    json!({"event": "lost", "epoch": epoch, "first": first, "from": next, "error": format!("{error:#}")}),
                );
                return Ok(());
            }
            next += batch.len() as i64;
            if first {
                steps["first_commit_ms"] = json!(began.elapsed().as_millis() as u64);
                emit(json!({"event": "owner", "epoch": epoch, "slot": client.slot, "steps": steps}));
                first = false;
            }
            if release.is_some() {
                client.discard();
                emit(json!({"event": "released", "epoch": epoch}));
                return Ok(());
            }
        }
    }

    fn messages(
        &self,
        client: &Client,
        epoch: u64,
        next: i64,
        batch: &[i64],
        first: bool,
        release: Option<&Record>,
    ) -> Result<Vec<(String, i32, String)>> {
        let (worker, incarnation, slot) = (self.name.clone(), self.incarnation, client.slot);
        let mut changes = Vec::new();
        if first {
            changes.push(Record::Own { epoch, slot, worker: worker.clone(), incarnation });
        }
        if let Some(from) = batch.first().copied() {
            if from != next || batch.windows(2).any(|pair| pair[0] + 1 != pair[1]) {
                bail!("the input is not continuous at {next}: {from}");
            }
            changes.push(Record::Batch { epoch, slot, worker, from, next: next + batch.len() as i64 });
        }
        changes.extend(release.cloned());
        let (output, changelog, shard) =
            (self.settings.topic("output"), self.settings.topic("changelog"), self.settings.shard);
        let mut messages: Vec<_> =
            batch.iter().map(|offset| (output.clone(), shard, format!("{epoch} {offset}"))).collect();
        for change in changes {
            messages.push((changelog.clone(), shard, serde_json::to_string(&change).context("changelog record")?));
        }
        Ok(messages)
    }
}

fn emit(event: Value) {
    println!("{event}");
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn read_commands() -> Receiver<Command> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            let command = match words.as_slice() {
                ["takeover", limit] => limit.parse().ok().map(Command::Takeover),
                ["prepare"] => Some(Command::Prepare),
                ["release", worker, incarnation, client] => incarnation
                    .parse()
                    .ok()
                    .zip(client.parse().ok())
                    .map(|(i, c)| Command::Release((*worker).into(), i, c)),
                _ => Some(Command::Quit),
            };
            let sent = command.is_some_and(|command| sender.send(command).is_ok());
            if !sent {
                emit(json!({"event": "bad_command", "line": line}));
            }
        }
        std::process::exit(0); // the driver is gone
    });
    receiver
}
