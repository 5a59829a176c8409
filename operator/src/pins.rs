//! Shards that a person has moved: `kubectl millstream shards move` writes them into an annotation of the pipeline.
//!
//! An annotation and no field of the spec, because it is the work of a moment: what is applied from a repository must not undo it, nor be in conflict with it. A pin counts while its worker lives,
//! stays and is able to open the shard; it does not hold back failover, scaling or a new template.

use millstream_crds::IngestionPipeline;
use millstream_plan::plan::ShardId;
use millstream_shard::topics::SHARDED;
use std::collections::BTreeMap;

/// The annotation: `STAGE/SHARD=WORKER`, separated by commas.
pub const ANNOTATION: &str = "ingestion.millstream.dev/pinned-shards";

/// Worker by shard.
pub type Pins = BTreeMap<ShardId, String>;

/// Shards of a pipeline that a person has moved, and what is wrong with the annotation that says so.
pub fn of(pipeline: &IngestionPipeline) -> (Pins, Vec<String>) {
    let annotations = pipeline.metadata.annotations.as_ref();
    let text = annotations.and_then(|annotations| annotations.get(ANNOTATION));
    parse(text.map_or("", String::as_str), pipeline.spec.shards)
}

/// Reads the annotation, of a pipeline with so many shards per stage: the pins, and what is wrong with those that are none.
pub fn parse(text: &str, shards: i32) -> (Pins, Vec<String>) {
    let (mut pins, mut problems) = (Pins::new(), Vec::new());
    for pin in text.split(',').map(str::trim).filter(|pin| !pin.is_empty()) {
        match parse_one(pin, shards) {
            Ok((id, worker)) => drop(pins.insert(id, worker)),
            Err(problem) => problems.push(problem),
        }
    }
    (pins, problems)
}

fn parse_one(pin: &str, shards: i32) -> Result<(ShardId, String), String> {
    let parts = pin.split_once('=').and_then(|(shard, worker)| Some((parse_shard(shard)?, worker.trim())));
    let Some((id, worker)) = parts.filter(|(_, worker)| !worker.is_empty()) else {
        return Err(format!("`{pin}` is no pin: write STAGE/SHARD=WORKER, such as action/3=orders-action-1"));
    };
    if i64::from(id.shard) >= i64::from(shards) {
        return Err(format!("`{pin}`: shards of a stage are 0 to {}", shards - 1));
    }
    Ok((id, worker.to_owned()))
}

/// Reads `STAGE/SHARD`.
pub fn parse_shard(text: &str) -> Option<ShardId> {
    let (stage, shard) = text.trim().split_once('/')?;
    let stage = SHARDED.into_iter().find(|known| *known == stage)?;
    Some(ShardId::new(stage, shard.parse().ok()?))
}

/// As the annotation says it.
pub fn format(pins: &Pins) -> String {
    let pins: Vec<String> = pins.iter().map(|(id, worker)| format!("{}/{}={worker}", id.stage, id.shard)).collect();
    pins.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_as_they_are_written() {
        let pins: Pins =
            [(ShardId::new("action", 3), "orders-action-1".to_owned()), (ShardId::new("unify", 0), "u".to_owned())]
                .into();
        let none = Vec::<String>::new();
        assert_eq!(parse(&format(&pins), 8), (pins.clone(), none.clone()));
        assert_eq!(parse(" unify/0 = u ,, action/3=orders-action-1,", 8), (pins.clone(), none));
        assert_eq!(
            parse("action/9=w,unify/0=u,action/3=orders-action-1", 8).0,
            pins,
            "one that is wrong spoils no other"
        );
        for (text, words) in [
            ("action/8=w", "0 to 7"),
            ("gateway/1=w", "no pin"),
            ("action/x=w", "no pin"),
            ("action/1=", "no pin"),
            ("w", "no pin"),
        ] {
            let (pins, problems) = parse(text, 8);
            assert!(pins.is_empty() && problems[0].contains(words), "{text}: {problems:?}");
        }
    }
}
