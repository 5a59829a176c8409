//! The conformance suites against real servers: Apache Kafka, and a MongoDB-compatible server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_shard::documents::DocumentStore;
use millstream_shard::log::{Log, TopicPartition};
use millstream_stores::kafka::KafkaLog;
use millstream_stores::mongo::MongoDocuments;
use millstream_tests::conformance::{documents, reader};
use millstream_tests::servers::{Kafka, Mongo};
use std::sync::Arc;

struct OnKafka(&'static Kafka);

fn kafka() -> OnKafka {
    OnKafka(Kafka::shared().unwrap())
}

impl OnKafka {
    fn log(&self) -> KafkaLog {
        KafkaLog::new(self.0.config()).unwrap()
    }
}

impl reader::Subject for OnKafka {
    fn open(&self) -> Arc<dyn Log> {
        Arc::new(self.log())
    }

    fn trim(&self, _: &Arc<dyn Log>, at: &TopicPartition, before: u64) {
        self.log().trim(at, before).unwrap();
    }

    fn delete_topic(&self, _: &Arc<dyn Log>, topic: &str) {
        self.log().delete_topic(topic).unwrap();
    }
}

struct OnMongo(&'static Mongo);

fn mongo() -> OnMongo {
    OnMongo(Mongo::shared().unwrap())
}

impl documents::Subject for OnMongo {
    fn open(&self) -> Arc<dyn DocumentStore> {
        Arc::new(MongoDocuments::connect(self.0.config("conformance")).unwrap())
    }
}

mod log_on_kafka {
    millstream_tests::log_conformance!(super::kafka());
}

mod documents_on_mongo {
    millstream_tests::document_conformance!(super::mongo());
}
