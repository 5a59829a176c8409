//! Memory for the write-back caches of one process: one pool, in equal shares.
//!
//! A process has as many caches as it owns shards, and that number changes; a bound per shard would make the memory of the process a matter of luck. So the
//! bound is the pool's, and each shard reads its share anew before every batch. The pool expects a number of shards, so that those that open first do not
//! fill it and have to give it back.
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

/// The pool of a process. Clones are the same pool.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: usize,
    expected: usize,
    members: AtomicUsize,
    flushes: Mutex<usize>,
    ended: Condvar,
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
        let (members, flushes) = (AtomicUsize::new(0), Mutex::new(0));
        Pool(Arc::new(Inner { bytes, expected: expected.max(1), members, flushes, ended: Condvar::new() }))
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

/// A shard's part in the pool.
#[derive(Debug)]
pub struct Member(Pool);

impl Member {
    /// What this shard's cache may hold now, in bytes.
    pub fn cache_bytes(&self) -> usize {
        let Inner { bytes, expected, members, .. } = &*self.0.0;
        bytes / members.load(Ordering::Relaxed).max(*expected)
    }

    /// How much changed state makes a flush due now, in bytes.
    pub fn dirty_bytes(&self) -> usize {
        self.cache_bytes() / PARTS * DIRTY
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
        assert_eq!(first.dirty_bytes(), (1 << 18) / 5 * 2);
        drop(others);
        assert_eq!(first.cache_bytes(), 1 << 19);
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
