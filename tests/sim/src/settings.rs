//! What a run is like: drawn from its seed, so that some runs are large and calm, others small and wild.
//!
//! Not every fault is in every run. One that makes everything fail early would hide what only comes late.

use crate::counts::Fault;
use crate::rng::Rng;
use millstream_plan::view::Bounds;
use millstream_shard::checkpoint::Policy;
use millstream_shard::runtime::Limits;
use std::time::Duration;

/// What a run is like.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of which kind.
    pub runs: Runs,
    /// What it is drawn from.
    pub seed: u64,
    /// Shards of each stage.
    pub shards: u32,
    /// Names of workers.
    pub workers: Vec<String>,
    /// Sources.
    pub sources: u32,
    /// Records per source, about.
    pub records: u64,
    /// Some records delete users.
    pub deletes: bool,
    /// Some batches change more than a message of the changelog holds.
    pub large: bool,
    /// How long things go wrong, milliseconds.
    pub faults_ms: u64,
    /// How long everything may take once they do not.
    pub calm_ms: u64,
    /// How often something happens to a process, milliseconds.
    pub chaos_ms: u64,
    /// Bounds of batches and memory.
    pub limits: Limits,
    /// Bounds of patience.
    pub bounds: Bounds,
    /// A transaction that is open for longer is aborted.
    pub transaction_ms: u64,
    /// Latencies, in tenths of the usual.
    pub slowness: u64,
    /// A disk that breaks for good, if one does.
    pub broken_disk: Option<BrokenDisk>,
    /// When checkpoints are taken, if they are.
    pub checkpoints: Option<Policy>,
    /// How often a savepoint is taken, milliseconds, if any is.
    pub savepoints: Option<u64>,
    /// How often each fault happens, of ten thousand occasions.
    pub rates: Vec<(Fault, u32)>,
    /// What is done to a shard at the end, which it must refuse to go on from (I6).
    pub gap: Option<Gap>,
}

/// The disk of a shard's owner breaks for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokenDisk {
    /// When, milliseconds since the run began.
    pub at_ms: u64,
    /// It takes what is written, and does not give it back.
    pub is_unreadable: bool,
}

/// Something that a shard must not go on from (I6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// Records of `ingress` were deleted before they were read.
    InputDeleted,
    /// The beginning of the changelog was deleted, and no local state reaches it.
    ChangelogBegins,
    /// An input was deleted and made again.
    InputMadeAgain,
    /// The changelog was deleted and made again.
    ChangelogMadeAgain,
}

/// Faults of calls: with how much chance they are in a run, and then how often.
const OF_CALLS: [(Fault, u64, u32); 25] = [
    (Fault::CommitUnknownHappened, 2, 400),
    (Fault::CommitUnknownLost, 2, 400),
    (Fault::CommitUnknownLater, 2, 600),
    (Fault::CommitRepeatedLater, 2, 600),
    (Fault::InitUnknownHappened, 3, 1_500),
    (Fault::InitUnknownLost, 3, 1_500),
    (Fault::InitUnknownLater, 3, 1_500),
    (Fault::InitSlow, 2, 5_000),
    (Fault::LogUnavailable, 3, 200),
    (Fault::PollEmpty, 2, 500),
    (Fault::SendFailed, 3, 150),
    (Fault::SendUnknownHappened, 2, 1_000),
    (Fault::SendUnknownLost, 2, 1_000),
    (Fault::SendUnknownLater, 2, 1_000),
    (Fault::MarkerLate, 2, 1_000),
    (Fault::AppendTimeBack, 2, 2_000),
    (Fault::GossipDelayed, 2, 1_500),
    (Fault::GossipRepeated, 2, 1_000),
    (Fault::GossipLost, 2, 1_000),
    (Fault::PlanDelayed, 2, 200),
    (Fault::PlanRepeated, 2, 4_000),
    (Fault::FilesTorn, 3, 2_000),
    (Fault::DiskFailed, 4, 30),
    (Fault::RecordRepeated, 2, 800),
    (Fault::TransactionForgotten, 3, 300),
];

/// Which runs a seed stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runs {
    /// Everything goes wrong now and then.
    #[default]
    Usual,
    /// Those of [`Settings::forgetful`].
    Forgetful,
}

impl Runs {
    /// The run of a seed.
    pub fn draw(self, seed: u64) -> Settings {
        match self {
            Runs::Usual => Settings::draw(seed),
            Runs::Forgetful => Settings::draw(seed).forgetful(),
        }
    }

    /// How `sim` is told to run these.
    pub fn flag(self) -> &'static str {
        match self {
            Runs::Usual => "",
            Runs::Forgetful => " --forgetful",
        }
    }
}

impl Settings {
    /// Those of a seed.
    pub fn draw(seed: u64) -> Settings {
        let rng = &mut Rng::new(seed ^ 0xa11_5e77);
        let workers = rng.between(2, 4);
        let mut rates = Vec::new();
        for (fault, one_in, most) in OF_CALLS {
            if rng.one_in(one_in) {
                rates.push((fault, 1 + rng.below(u64::from(most)) as u32));
            }
        }
        // Drawn by itself, so that seeds without it are what they were before there was this fault.
        let lost = &mut Rng::new(seed ^ 0x1057);
        if lost.one_in(8) {
            rates.push((Fault::PlanLost, 1 + lost.below(3_000) as u32));
        }
        let checkpoints = checkpoints(seed, &mut rates);
        let small = small_batches(seed);
        let large = rng.one_in(24);
        let gaps = [Gap::InputDeleted, Gap::ChangelogBegins, Gap::InputMadeAgain, Gap::ChangelogMadeAgain];
        Settings {
            runs: Runs::Usual,
            seed,
            shards: if rng.one_in(4) { rng.between(3, 4) } else { rng.between(1, 2) } as u32,
            workers: ["ann", "bob", "cyd", "dan"]
                .iter()
                .take(workers as usize)
                .map(|name| (*name).to_owned())
                .collect(),
            sources: rng.between(2, 3) as u32,
            records: rng.between(12, 40),
            deletes: rng.one_in(3),
            large,
            faults_ms: rng.between(6_000, 15_000),
            calm_ms: 90_000,
            chaos_ms: rng.between(300, 2_500),
            limits: Limits { batch_bytes: small.unwrap_or(BATCH_BYTES), ..limits(rng, large) },
            bounds: Bounds { silence_ms: 1_500, believe_after: 4, handoff_ms: 2_500, unable_ms: 5_000 },
            transaction_ms: rng.between(2_000, 6_000),
            slowness: rng.between(5, 25),
            gap: rng.pick(&gaps).copied().filter(|_| rng.one_in(5)),
            rates,
            broken_disk: broken_disk(seed),
            checkpoints,
            savepoints: savepoints(seed),
        }
    }

    /// The same, but the log forgets much of what it has said was committed, and checkpoints are taken so often that some have it.
    #[must_use]
    pub fn forgetful(mut self) -> Settings {
        self.runs = Runs::Forgetful;
        self.rates.retain(|(fault, _)| *fault != Fault::TransactionForgotten);
        self.rates.push((Fault::TransactionForgotten, 1_500));
        if let Some(policy) = &mut self.checkpoints {
            (policy.interval_ms, policy.min_pause_ms, policy.retained) = (250, 60, 1);
        }
        self
    }
}

/// Of one run in eight. Drawn by itself, so that the others are what they were before there was this fault.
fn broken_disk(seed: u64) -> Option<BrokenDisk> {
    let rng = &mut Rng::new(seed ^ 0xb20c_ed15);
    rng.one_in(8).then(|| BrokenDisk { at_ms: rng.between(500, 5_500), is_unreadable: rng.one_in(2) })
}

/// Faults of the object store: with how much chance they are in a run, and then how often.
const OF_OBJECTS: [(Fault, u64, u32); 6] = [
    (Fault::ObjectsUnavailable, 2, 800),
    (Fault::PutUnknownHappened, 2, 1_500),
    (Fault::PutUnknownLater, 2, 1_500),
    (Fault::DeleteLater, 3, 2_000),
    (Fault::ListStale, 3, 5_000),
    (Fault::BitFlipped, 2, 4_000),
];

/// Of half of all runs. Drawn by themselves, so that the others are what they were before there were checkpoints.
fn checkpoints(seed: u64, rates: &mut Vec<(Fault, u32)>) -> Option<Policy> {
    let rng = &mut Rng::new(seed ^ 0xc4ec_b017);
    if rng.one_in(2) {
        return None;
    }
    for (fault, one_in, most) in OF_OBJECTS {
        if rng.one_in(one_in) {
            rates.push((fault, 1 + rng.below(u64::from(most)) as u32));
        }
    }
    Some(Policy {
        interval_ms: rng.between(200, 2_500),
        min_pause_ms: rng.between(50, 400),
        retained: rng.between(1, 3) as usize,
        concurrent: rng.between(1, 3) as usize,
        lanes: rng.between(1, 3) as usize,
    })
}

/// In a third of all runs. Drawn by itself, so that the others are what they were before there were savepoints: those whose seeds are known, too.
fn savepoints(seed: u64) -> Option<u64> {
    let rng = &mut Rng::new(seed ^ 0x5a8f);
    rng.one_in(3).then(|| rng.between(150, 2_500))
}

/// More than any batch of a run has.
const BATCH_BYTES: usize = 4 << 20;

/// Bytes of a batch, in some runs so few that what waits for other shards holds the inputs. Drawn by itself, so that the others are what they were before.
fn small_batches(seed: u64) -> Option<usize> {
    let rng = &mut Rng::new(seed ^ 0x5a11_ba7c);
    rng.one_in(6).then(|| rng.between(5, 100) as usize)
}

fn limits(rng: &mut Rng, large: bool) -> Limits {
    Limits {
        batch_records: if large { 100 } else { rng.between(1, 20) as usize },
        batch_bytes: BATCH_BYTES,
        batch_time: Duration::from_millis(rng.between(10, 60)),
        linger: Duration::from_millis(rng.between(1, 20)),
        cache_bytes: rng.between(500, 20_000) as usize,
        dirty_bytes: rng.between(300, 6_000) as usize,
        exchange_partitions: rng.between(1, 2) as usize,
        clock_slack_ms: 1_000,
        pool: None,
    }
}
