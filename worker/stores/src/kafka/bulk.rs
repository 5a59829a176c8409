//! One client for all readers of much.
//!
//! A client has three threads and more, and asks each broker on its own; each answer wakes several of them, here and in the broker. At a low rate that is most of the work of a reader. Readers
//! of one client come with one question per broker, and keep queues of their own, so that none waits for another's.
//!
//! A client reads a partition once: who comes second for one gets a client of its own. After a partition could not be read, whoever comes next gets a new client, as after any error; and so
//! when a topic was deleted and made again: a client that knew the former one may wait for it for ever.

use super::client::{Quiet, Reading};
use millstream_shard::log::{LogError, TopicPartition};
use rdkafka::consumer::BaseConsumer;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The client that is shared, while there is a reader.
#[derive(Default)]
pub(super) struct Bulk(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    client: Weak<BaseConsumer<Quiet>>,
    /// What is read with it.
    taken: BTreeSet<TopicPartition>,
    /// The topics that it knows, and the id of each.
    topics: BTreeMap<String, String>,
}

/// A reader's part in the client; to be dropped after the reader.
pub(super) struct Share {
    of: Arc<Bulk>,
    client: Weak<BaseConsumer<Quiet>>,
    partitions: Vec<TopicPartition>,
}

impl Bulk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client to read these with; `topics` are theirs, each with the id that it has now.
    pub(super) fn join(
        self: &Arc<Bulk>,
        partitions: Vec<TopicPartition>,
        topics: BTreeMap<String, String>,
        make: impl FnOnce() -> Result<Reading, LogError>,
    ) -> Result<(Reading, Option<Share>), LogError> {
        let mut inner = self.lock();
        let was_made_again = topics.iter().any(|(topic, id)| inner.topics.get(topic).is_some_and(|known| known != id));
        let client = inner.client.upgrade().filter(|_| !was_made_again);
        if client.is_none() {
            // Of the one before, which is gone, or for those only that have it.
            *inner = Inner::default();
        }
        if partitions.iter().any(|at| inner.taken.contains(at)) {
            return Ok((make()?, None));
        }
        let client = client.map_or_else(make, Ok)?;
        inner.client = Arc::downgrade(&client);
        inner.taken.extend(partitions.iter().cloned());
        inner.topics.extend(topics);
        let share = Share { of: Arc::clone(self), client: Arc::downgrade(&client), partitions };
        Ok((client, Some(share)))
    }
}

impl Share {
    /// Whoever comes next gets another client.
    pub(super) fn retire(&self) {
        let mut inner = self.of.lock();
        if inner.client.ptr_eq(&self.client) {
            *inner = Inner::default();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut inner = self.of.lock();
        // Of a client that was retired, others may read the same by now.
        if inner.client.ptr_eq(&self.client) {
            for at in &self.partitions {
                inner.taken.remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::config::{ClientConfig, FromClientConfigAndContext};

    fn client() -> Result<Reading, LogError> {
        Ok(Arc::new(BaseConsumer::from_config_and_context(&ClientConfig::new(), Quiet::default()).unwrap()))
    }

    fn join(bulk: &Arc<Bulk>, partition: u32, id: &str) -> (Reading, Option<Share>) {
        let topics = BTreeMap::from([("topic".to_owned(), id.to_owned())]);
        bulk.join(vec![TopicPartition::new("topic", partition)], topics, client).unwrap()
    }

    #[test]
    fn readers_of_different_partitions_share_a_client_and_a_second_of_one_does_not() {
        let bulk = Arc::new(Bulk::default());
        let (first, share) = join(&bulk, 0, "id");
        let (second, _second_share) = join(&bulk, 1, "id");
        assert!(Arc::ptr_eq(&first, &second));
        let (rival, none) = join(&bulk, 0, "id");
        assert!(!Arc::ptr_eq(&first, &rival) && none.is_none());
        drop(share);
        let (again, _share) = join(&bulk, 0, "id");
        assert!(Arc::ptr_eq(&second, &again), "it is free again");
    }

    #[test]
    fn after_trouble_the_next_reader_has_another_client() {
        let bulk = Arc::new(Bulk::default());
        let (first, share) = join(&bulk, 0, "id");
        let share = share.unwrap();
        share.retire();
        let (second, second_share) = join(&bulk, 0, "id");
        assert!(!Arc::ptr_eq(&first, &second));
        share.retire();
        drop(share);
        let (third, none) = join(&bulk, 0, "id");
        assert!(
            none.is_none() && !Arc::ptr_eq(&second, &third),
            "the former reader's end frees nothing of the next one's"
        );
        drop((second, second_share));
        assert!(join(&bulk, 0, "id").1.is_some());
    }

    #[test]
    fn a_topic_that_was_made_again_is_read_with_another_client() {
        let bulk = Arc::new(Bulk::default());
        let (first, _first_share) = join(&bulk, 0, "id");
        let (second, _second_share) = join(&bulk, 1, "another id");
        assert!(!Arc::ptr_eq(&first, &second));
        let (third, share) = join(&bulk, 0, "another id");
        assert!(Arc::ptr_eq(&second, &third) && share.is_some());
    }
}
