//! How the memory for state is divided in a process.
//!
//! One number, `state.memory`, bounds all of it, however many shards the process has:
//! - **three eighths** for the write-back caches of all shards, in equal shares ([`Pool`]), with what is changed and not stored yet;
//! - **a quarter** for RocksDB: blocks, indexes and filters, and in it, up to a half, memtables. What is in use there at a moment can be more; the caches give way
//!   to it before their next batch, so that both together stay within their five eighths;
//! - **three eighths** for work: flushes hold what has been replaced meanwhile; compactions have buffers; standbys and openings hold what they have read and not
//!   written; allocators round up and give back late. As much as that was measured (docs/src/design/memory.md).
//!
//! What a share must hold at least is the state of a large batch: a cache that turns over within a batch reads everything twice.

use crate::config;
use millstream_shard::memory::Pool;
use millstream_stores::rocks::{Bounds, Resources};

/// The least memory for one shard; three eighths of it are its share in the caches.
const LEAST: usize = 8 << 20;
/// Bounds of one memtable of one store: below, each flush is many files; above, one store takes what all should share.
const MEMTABLE: (usize, usize) = (1 << 20, 16 << 20);

/// The parts of a process's memory for state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// For the write-back caches of all shards.
    pub caches: usize,
    /// For RocksDB.
    pub rocks: Bounds,
    seats: usize,
}

impl Parts {
    /// Divides the memory among `seats` shards, those of all stages with state counted together.
    ///
    /// # Errors
    /// It is too little for them; says what to do.
    pub fn of(state: &config::State, seats: usize) -> Result<Parts, String> {
        let (total, seats) = (state.memory.bytes(), seats.max(1));
        let least = seats.saturating_mul(LEAST);
        if total < least {
            return Err(format!(
                "state.memory: {} is too little for the {seats} shards of this process: give it at least {}MiB, or fewer shards (`owned`)",
                state.memory,
                least >> 20
            ));
        }
        let cache_bytes = total / 4;
        let rocks = Bounds {
            cache_bytes,
            memtables_bytes: cache_bytes / 2,
            memtable_bytes: (cache_bytes / 2 / seats).clamp(MEMTABLE.0, MEMTABLE.1),
            compaction_threads: state.compaction_threads,
            write_bytes_per_second: state.write_per_second.0,
        };
        Ok(Parts { caches: total / 8 * 3, rocks, seats })
    }

    /// What the stores share, and the pool of the caches, which gives way to them: for all seats (`all_owned`), or for as many as there turn out to be.
    pub fn shared(&self, all_owned: bool) -> (Resources, Pool) {
        let resources = Resources::with(&self.rocks);
        let pool = resources.pool(self.caches, if all_owned { self.seats } else { 1 });
        (resources, pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Size;
    use millstream_model::key::{Kind, StateKey};
    use millstream_model::proto::StatePosition;
    use millstream_shard::state::StateStore as _;
    use millstream_stores::rocks::RocksState;

    fn parts(memory: u64, seats: usize) -> Result<Parts, String> {
        Parts::of(&config::State { memory: Size(memory), ..config::State::default() }, seats)
    }

    #[test]
    fn the_parts_are_less_than_the_whole_and_shares_follow_the_seats() {
        for (memory, seats) in [(128 << 20, 16), (512 << 20, 1), (512 << 20, 8), (8 << 30, 64)] {
            let parts = parts(memory, seats).unwrap();
            assert_eq!((parts.caches + parts.rocks.cache_bytes) * 8, memory as usize * 5);
            assert!(parts.rocks.memtable_bytes * seats <= parts.rocks.cache_bytes, "{parts:?}");
            let (_, pool) = parts.shared(true);
            let members: Vec<_> = std::iter::repeat_with(|| pool.join()).take(seats).collect();
            assert!(members.iter().map(|member| member.cache_bytes()).sum::<usize>() <= parts.caches);
        }
    }

    /// Nobody flushes: each store has room for more memtables than are there.
    #[test]
    fn caches_give_way_to_memtables_beyond_their_part() {
        let parts = parts(16 << 20, 2).unwrap();
        let (resources, pool) = parts.shared(true);
        let member = pool.join();
        let share = member.cache_bytes();
        assert_eq!(share, parts.caches / 2);
        let folder = tempfile::tempdir().unwrap();
        let open = |number: u32| RocksState::open(&folder.path().join(number.to_string()), &resources).unwrap();
        let stores: Vec<RocksState> = (0..6).map(open).collect();
        let value = vec![7; 900 << 10];
        for store in &stores {
            let key = StateKey::new(1, "acme", Kind::User, b"1");
            store.write(None, &mut [(&key, Some(&value[..]))].into_iter(), &StatePosition::default()).unwrap();
        }
        let held = resources.memory_bytes();
        assert!(held > parts.rocks.cache_bytes && held < parts.rocks.cache_bytes + parts.caches / 2, "{held} bytes");
        assert!(
            member.cache_bytes() < share && member.cache_bytes() * 2 + held <= parts.caches + parts.rocks.cache_bytes
        );
        for store in &stores {
            store.sync().unwrap();
        }
        drop(stores);
        assert_eq!(member.cache_bytes(), share, "{} bytes are left", resources.memory_bytes());
    }

    #[test]
    fn too_little_is_refused_with_what_to_do() {
        let error = parts(127 << 20, 16).unwrap_err();
        assert!(error.contains("127MiB") && error.contains("128MiB") && error.contains("`owned`"), "{error}");
    }

    #[test]
    fn the_default_is_enough_for_every_stage_of_the_default_number_of_shards() {
        let config = config::Config::default();
        assert!(Parts::of(&config.state, config.owned_shards().len() * 2).is_ok());
    }
}
