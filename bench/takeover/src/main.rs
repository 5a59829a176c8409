//! Proof (i): takeover and handoff of a shard with two transactional ids, on real brokers (I4, I1).
//!
//! `drive` creates the topics, starts `worker` processes, feeds a numbered load into the shard's input, makes owners stop, die, hand off and be
//! robbed, and watches the shard's output as any reader would. The rules are those of the design, section 4; `worker.rs` carries them out, and
//! `audit.rs` judges by what is in the log, never by what a worker says.
//!
//! usage: takeover drive KIND SHARD ROUNDS [--brokers B] [--run NAME] [--break RULE] [--hold MS] [--cluster FOLDER:JARS]
//! KIND: quiet, handoff, stop, stop-short, kill, rivals, broker (kills brokers: needs --cluster). RULE, to see the audit find it: skip-named, read-first.
//!        takeover worker NAME SHARD (started by `drive`; commands on stdin, events on stdout)

mod audit;
mod driver;
mod follow;
mod input;
mod load;
mod record;
mod rounds;
mod transact;
mod worker;

use anyhow::{Context, Result, bail};

/// What both programs need to know; the driver hands it to its workers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Brokers.
    pub brokers: String,
    /// Prefix of topics and transactional ids, so that runs do not meet.
    pub run: String,
    /// Partition of every topic.
    pub shard: i32,
    /// A rule that is not kept, to see that the audit finds it.
    pub broken: String,
    /// Milliseconds for which a transaction is kept open before its commit, so that a stopped owner is likely to be inside one.
    pub hold: u64,
    /// Folder and jars of `cluster.sh`, for the rounds that kill brokers.
    pub cluster: String,
    /// Other arguments, in order.
    pub rest: Vec<String>,
}

/// Transaction timeout; a stopped owner's transaction is aborted by the broker after it.
pub const TRANSACTION_TIMEOUT_MS: u64 = 6000;

impl Settings {
    fn parse(args: &[String]) -> Result<Settings> {
        let mut settings = Settings {
            brokers: "127.0.0.1:29092,127.0.0.1:29094,127.0.0.1:29096".into(),
            run: "proof".into(),
            shard: 0,
            broken: String::new(),
            hold: 0,
            cluster: String::new(),
            rest: Vec::new(),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--") else {
                settings.rest.push(arg.clone());
                continue;
            };
            let value = args.next().with_context(|| format!("--{flag} needs a value"))?.clone();
            match flag {
                "brokers" => settings.brokers = value,
                "run" => settings.run = value,
                "break" => settings.broken = value,
                "cluster" => settings.cluster = value,
                "hold" => settings.hold = value.parse().context("--hold")?,
                other => bail!("unknown flag --{other}"),
            }
        }
        settings.shard = settings.rest.get(1).context("the shard is missing")?.parse().context("shard")?;
        Ok(settings)
    }

    /// The name of one of the run's topics.
    pub fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.run)
    }

    /// One of the shard's two transactional ids.
    pub fn transactional_id(&self, slot: u8) -> String {
        format!("{}.stage.{}.{slot}", self.run, self.shard)
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = args.split_first().context("usage: takeover drive KIND SHARD ROUNDS")?;
    let settings = Settings::parse(rest)?;
    match command.as_str() {
        "worker" => worker::run(settings),
        "drive" => driver::run(settings),
        other => bail!("unknown command {other}"),
    }
}
