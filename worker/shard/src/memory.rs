//! Memory for the write-back caches of one process: one pool, in equal shares.
//!
//! A process has as many caches as it owns shards, and that number changes; a bound per shard would make the memory of the process a matter of luck. So the
//! bound is the pool's, and each shard reads its share anew before every batch. The pool expects a number of shards, so that those that open first do not
//! fill it and have to give it back.
//!
//! What else lives on the process's memory for state, the local stores, has a part of its own, which it can exceed for a while: blocks that are in use and memtables that
//! wait for a flush cannot be refused without stopping a shard. The caches can give way at any time, so they do: the pool is smaller by the overrun until it is gone.
//!
//! What a flush writes stays in memory until it is written, also what has changed again meanwhile. So a share is divided: two fifths may be waiting for a flush, as much
//! again may be in one, and what is left is for what was only read.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Flushes that may run at a time in one process: one keeps a disk busy, the second encodes meanwhile.
pub const FLUSHES: usize = 2;
/// Of so many parts of a share, [`DIRTY`] make a flush due. The more, the more changes of an entry are one write.
const PARTS: usize = 5;
const DIRTY: usize = 2;
/// Of so many parts of the pool, one is left to the caches whatever the others take: with less they would read everything twice, and the shards' work with it.
const LEFT: usize = 4;

/// Tells how many bytes the others hold beyond their part, now. It is asked before every batch of every shard.
pub type Overrun = dyn Fn() -> usize + Send + Sync;

/// The pool of a process. Clones are the same pool.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    bytes: usize,
    overrun: Box<Overrun>,
    expected: usize,
    members: AtomicUsize,
    flushes: Mutex<usize>,
    ended: Condvar,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("bytes", &self.bytes()).field("members", &self.0.members).finish_non_exhaustive()
    }
}

impl PartialEq for Pool {
    fn eq(&self, other: &Pool) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Pool {}

impl Pool {
    /// A pool of so many bytes, for about `expected` shards.
    pub fn new(bytes: usize, expected: usize) -> Pool {
        Pool::beside(bytes, expected, Box::new(|| 0))
    }

    /// The same, less what others hold beyond their part.
    pub fn beside(bytes: usize, expected: usize, overrun: Box<Overrun>) -> Pool {
        let (members, flushes) = (AtomicUsize::new(0), Mutex::new(0));
        Pool(Arc::new(Inner { bytes, overrun, expected: expected.max(1), members, flushes, ended: Condvar::new() }))
    }

    /// What all caches may hold now, in bytes.
    fn bytes(&self) -> usize {
        let Inner { bytes, overrun, .. } = &*self.0;
        bytes.saturating_sub(overrun()).max(bytes / LEFT)
    }

    /// Takes part, until the member is dropped.
    pub fn join(&self) -> Member {
        self.0.members.fetch_add(1, Ordering::Relaxed);
        Member(self.clone())
    }

    /// Waits until fewer than [`FLUSHES`] others have a turn.
    pub fn turn(&self) -> Turn {
        let running = self.0.flushes.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.0.ended.wait_while(running, |running| *running >= FLUSHES);
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        Turn(self.clone())
    }
}

/// How much changed state makes a flush due, of a cache of so many bytes.
pub fn dirty_bytes(cache_bytes: usize) -> usize {
    cache_bytes / PARTS * DIRTY
}

/// A shard's part in the pool.
#[derive(Debug)]
pub struct Member(Pool);

impl Member {
    /// What this shard's cache may hold now, in bytes.
    pub fn cache_bytes(&self) -> usize {
        self.share_of(self.0.bytes())
    }

    /// What it may hold when nobody is beyond its part: what waits for a flush makes batches wait only by that, or one store's memtables would hold up all shards.
    pub fn full_bytes(&self) -> usize {
        self.share_of(self.0.0.bytes)
    }

    fn share_of(&self, bytes: usize) -> usize {
        let Inner { expected, members, .. } = &*self.0.0;
        bytes / members.load(Ordering::Relaxed).max(*expected)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.0.members.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Leave to flush, until dropped.
#[derive(Debug)]
pub struct Turn(Pool);

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.0.flushes.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_number_of_shards_and_never_exceed_the_pool() {
        let pool = Pool::new(1 << 20, 2);
        let first = pool.join();
        assert_eq!(first.cache_bytes(), 1 << 19, "as many as were expected");
        let others: Vec<Member> = (0..3).map(|_| pool.join()).collect();
        assert_eq!(others.iter().chain([&first]).map(Member::cache_bytes).sum::<usize>(), 1 << 20);
        assert_eq!(dirty_bytes(first.cache_bytes()), (1 << 18) / 5 * 2);
        drop(others);
        assert_eq!(first.cache_bytes(), 1 << 19);
    }

    #[test]
    fn caches_give_way_to_what_others_hold_beyond_their_part_but_for_a_quarter() {
        let beyond = Arc::new(AtomicUsize::new(0));
        let asked = beyond.clone();
        let pool = Pool::beside(1 << 20, 2, Box::new(move || asked.load(Ordering::Relaxed)));
        let member = pool.join();
        for (held, left) in [(0, 1 << 19), (1 << 19, 1 << 18), (1 << 30, 1 << 17), (0, 1 << 19)] {
            beyond.store(held, Ordering::Relaxed);
            assert_eq!((member.cache_bytes(), member.full_bytes()), (left, 1 << 19), "{held} bytes beyond");
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a bound on threads is tested with threads")]
    fn no_more_flushes_than_allowed_have_a_turn() {
        let pool = Pool::new(1, 1);
        let running = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let turn = pool.turn();
                        assert!(running.fetch_add(1, Ordering::SeqCst) < FLUSHES);
                        std::thread::yield_now();
                        running.fetch_sub(1, Ordering::SeqCst);
                        drop(turn);
                    }
                });
            }
        });
    }
}
