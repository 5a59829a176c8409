//! `servers install` puts the test servers into the cache; `servers run` starts them until its standard input closes.

use anyhow::{Result, bail};
use millstream_tests::servers::{
    Kafka, Mongo, install_helm, install_kafka, install_kubernetes, install_minio, install_mongo,
};
use std::io::Read;

const USAGE: &str = "usage: servers install          fetch and build the test servers into the cache
       servers run [NODES]      start Kafka (1 node, or NODES) and MongoDB, print their addresses as shell
                                variables, end them when standard input closes";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["install"] => install(),
        ["run"] => run(1),
        ["run", nodes] => match nodes.parse() {
            Ok(nodes) if nodes > 0 => run(nodes),
            _ => bail!("NODES must be a number above 0\n{USAGE}"),
        },
        _ => bail!("{USAGE}"),
    }
}

fn install() -> Result<()> {
    println!("kafka: {}", install_kafka()?.display());
    println!("mongo: {}", install_mongo()?.display());
    println!("minio: {}", install_minio()?.display());
    println!("kubernetes: {}", install_kubernetes()?.display());
    println!("helm: {}", install_helm()?.display());
    Ok(())
}

fn run(nodes: usize) -> Result<()> {
    let mongo = Mongo::start()?;
    let kafka = Kafka::start_cluster(nodes)?;
    println!("KAFKA_BOOTSTRAP_SERVERS={}", kafka.bootstrap());
    println!("MONGO_URI='{}'", mongo.uri());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
