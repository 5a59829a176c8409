//! Asks Kafka, and passes on what it says to those who judge it.

use super::cluster::said;
use super::finding::Finding;
use super::{PATIENCE_MS, cluster, topics};
use crate::config::{Config, Kafka, Log};
use crate::runtime::stores;
use millstream_shard::log::{LogError, TopicSpec};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::KafkaConfig;
use millstream_stores::kafka::survey::{self, Broker, Layout, Settings, Survey, Versions};

/// Where the brokers keep their transactions.
const TRANSACTIONS: &str = "__transaction_state";

/// Everything about the log.
pub(super) fn check(config: &Config) -> Vec<Finding> {
    let Log::Kafka(kafka) = &config.log else {
        return vec![Finding::ok("log", "embedded, in data_dir: there is nobody to ask")];
    };
    let store = KafkaConfig { request_timeout_ms: PATIENCE_MS, ..stores::kafka_config(config, kafka) };
    let reached = reach_all(&store, kafka);
    let is_any_there = reached.iter().any(|(_, versions)| versions.is_ok());
    let judged = reached.into_iter().map(|(address, versions)| cluster::judge_reached(&address, versions));
    let mut findings: Vec<Finding> = judged.collect();
    if !is_any_there {
        let change = "make a broker reachable, and run this again";
        findings.push(Finding::warning("topics", "not looked at: no broker answers", change));
        return findings;
    }
    match look(config, &store) {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::problem("cluster", said(&error), cluster::advice(&said(&error)))),
    }
    findings
}

/// Each by itself, all at once.
fn reach_all(store: &KafkaConfig, kafka: &Kafka) -> Vec<(String, Result<Versions, LogError>)> {
    std::thread::scope(|scope| {
        let ask = |address: &String| {
            let address = address.trim().to_owned();
            let asked = address.clone();
            (address, scope.spawn(move || survey::reach(store, &asked)))
        };
        // One `host:port` may be several, with commas between them, as in the environment.
        let addresses: Vec<String> = kafka.brokers.iter().flat_map(|some| some.split(',')).map(str::to_owned).collect();
        let asked: Vec<_> = addresses.iter().map(ask).collect();
        let failed = || Err(LogError::Unavailable("the check broke off".to_owned()));
        asked.into_iter().map(|(address, thread)| (address, thread.join().unwrap_or_else(|_| failed()))).collect()
    })
}

fn look(config: &Config, store: &KafkaConfig) -> Result<Vec<Finding>, LogError> {
    let survey = Survey::open(store.clone())?;
    let brokers = survey.brokers()?;
    let mut findings = cluster::judge_copies(store, brokers.len());
    let mut told: Option<Settings> = None;
    for broker in &brokers {
        let settings = survey.broker_settings(broker);
        findings.extend(cluster::judge_broker(store, broker, settings.as_ref()));
        told = told.or(settings.ok());
    }
    findings.push(transactions(&survey, store, &brokers, told.as_ref()));
    findings.extend(look_at_topics(&survey, config, store));
    Ok(findings)
}

fn transactions(survey: &Survey, store: &KafkaConfig, brokers: &[Broker], told: Option<&Settings>) -> Finding {
    match survey.layout(TRANSACTIONS) {
        Ok(layout) => {
            let own = survey.topic_settings(TRANSACTIONS).ok();
            cluster::judge_transactions(store, brokers.len(), layout, own.as_ref(), told)
        }
        Err(error) => Finding::warning(
            "transactions",
            format!("the brokers do not tell how they keep them: {}", said(&error)),
            "allow the user Describe on the topic __transaction_state, or ask who runs the brokers for 3 copies of it",
        ),
    }
}

fn look_at_topics(survey: &Survey, config: &Config, store: &KafkaConfig) -> Vec<Finding> {
    let topics = Topics::new(config.pipeline.as_str(), config.shards.0, config.generation);
    let look = |spec: TopicSpec| {
        let layout = survey.layout(&spec.name);
        (spec, layout)
    };
    let looked_at: Vec<_> = topics.specs().into_iter().map(look).collect();
    let is_there = |layout: &Result<Option<Layout>, LogError>| !matches!(layout, Ok(None));
    let present: Vec<&str> =
        looked_at.iter().filter(|(_, layout)| is_there(layout)).map(|(spec, _)| spec.name.as_str()).collect();
    let judge = |(spec, layout): &(TopicSpec, Result<Option<Layout>, LogError>)| match layout {
        Ok(Some(layout)) => topics::judge(store, spec, *layout, survey.topic_settings(&spec.name).as_ref()),
        Ok(None) => {
            let would = store.create_topics.then(|| survey.would_create(spec));
            let is_amiss = topics::is_amiss(&topics, &spec.name, &present);
            vec![topics::judge_missing(store, &topics, spec, is_amiss, would)]
        }
        Err(error) => vec![topics::judge_unseen(spec, error)],
    };
    looked_at.iter().flat_map(judge).collect()
}
