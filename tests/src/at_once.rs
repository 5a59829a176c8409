//! Background work, done at once.

use millstream_shard::{Executor, Job};

/// Does it in the thread that asks for it.
#[derive(Clone, Copy, Debug)]
pub struct AtOnce;

impl Executor for AtOnce {
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> Box<dyn Job> {
        work();
        Box::new(Done)
    }
}

struct Done;

impl Job for Done {
    fn wait(self: Box<Self>) {}
}
