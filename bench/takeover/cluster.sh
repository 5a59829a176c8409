#!/usr/bin/env bash
# Three Kafka brokers (KRaft, combined) on loopback for the proof.
# usage: cluster.sh start FOLDER JARS | stop FOLDER | start-node FOLDER JARS NODE | kill-node FOLDER JARS NODE
# JARS: a folder with kafka_2.13 and what it needs, as `make servers` leaves it in the cache.
set -euo pipefail
command=$1 folder=$2 jars=${3:-}

properties() { # properties NODE: its server.properties
    cat <<P
process.roles=broker,controller
node.id=$1
controller.quorum.voters=1@127.0.0.1:29093,2@127.0.0.1:29095,3@127.0.0.1:29097
listeners=PLAINTEXT://127.0.0.1:$((29090 + 2 * $1)),CONTROLLER://127.0.0.1:$((29091 + 2 * $1))
advertised.listeners=PLAINTEXT://127.0.0.1:$((29090 + 2 * $1))
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs=$folder/$1/data
auto.create.topics.enable=false
unclean.leader.election.enable=false
min.insync.replicas=2
default.replication.factor=3
offsets.topic.replication.factor=3
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
transaction.state.log.num.partitions=4
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
share.coordinator.state.topic.replication.factor=3
share.coordinator.state.topic.min.isr=2
broker.session.timeout.ms=${SESSION_MS:-9000}
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=4
P
}

start_node() { # start_node NODE
    mkdir -p "$folder/$1"
    properties "$1" >"$folder/$1/server.properties"
    [ -f "$folder/$1/data/meta.properties" ] || java -cp "$jars/*" -Xmx256m kafka.tools.StorageTool format \
        -t AAAAAAAAQACAAAAAAAAAAA -c "$folder/$1/server.properties" --ignore-formatted >"$folder/$1/format.log" 2>&1
    nohup java -cp "$jars/*" -Xmx400m -Xms400m -XX:+UseG1GC -XX:MaxGCPauseMillis=20 kafka.Kafka \
        "$folder/$1/server.properties" >>"$folder/$1/server.log" 2>&1 &
    echo $! >"$folder/$1/pid"
}

case $command in
start) for node in 1 2 3; do start_node $node; done ;;
stop) for node in 1 2 3; do kill "$(cat "$folder/$node/pid")" 2>/dev/null || true; done ;;
start-node) start_node "$4" ;;
kill-node) kill -9 "$(cat "$folder/$4/pid")" ;;
esac
