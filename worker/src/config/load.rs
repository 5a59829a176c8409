//! Reading a configuration: file, then flags and environment, then what the schema cannot say.

use super::{
    Action, ApiKey, Checkpoints, Config, Documents, Kafka, Limits, Log, LogFormat, Mongodb, Objects, Owned, Ownership,
    Place, Ratio, S3, Secret, Shards, Size,
};
use millstream_stages::source::LEAST_ID_CHARS;
use millstream_stores::embedded::log::LogOptions;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Flags that every process understands, each with its environment variable. They override the file's field.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigArgs {
    /// Configuration file (YAML).
    #[arg(long, env = "MILLSTREAM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the effective configuration, secrets redacted, and end.
    #[arg(long)]
    pub print_config: bool,
    /// Overrides `shards`.
    #[arg(long, env = "MILLSTREAM_SHARDS", value_name = "N")]
    pub shards: Option<u32>,
    /// Overrides `owned`: `all`, or shards with commas between them.
    #[arg(long, env = "MILLSTREAM_OWNED", value_name = "SHARDS")]
    pub owned: Option<Owned>,
    /// Overrides `worker`.
    #[arg(long, env = "MILLSTREAM_WORKER", value_name = "NAME")]
    pub worker: Option<super::Name>,
    /// Overrides `ownership.plan.zone`, unless it is empty: Kubernetes may not know the zone.
    #[arg(long, env = "MILLSTREAM_ZONE", value_name = "NAME")]
    pub zone: Option<String>,
    /// Overrides `ownership.plan.node`, unless it is empty.
    #[arg(long, env = "MILLSTREAM_NODE", value_name = "NAME")]
    pub node: Option<String>,
    /// Overrides `listen`.
    #[arg(long, env = "MILLSTREAM_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Overrides `admin_listen`.
    #[arg(long, env = "MILLSTREAM_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// Overrides `data_dir`.
    #[arg(long, env = "MILLSTREAM_DATA_DIR", value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Overrides `log.kafka.brokers`, and makes the log Kafka: host:port with commas between them.
    #[arg(long, env = "MILLSTREAM_KAFKA_BROKERS", value_name = "BROKERS", value_delimiter = ',')]
    pub kafka_brokers: Vec<String>,
    /// Overrides `documents.mongodb.uri`, and makes the document store MongoDB.
    #[arg(long, env = "MILLSTREAM_MONGODB_URI", value_name = "URI", hide_env_values = true)]
    pub mongodb_uri: Option<String>,
    /// Overrides `telemetry.otlp_endpoint`.
    #[arg(long, env = "MILLSTREAM_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Overrides `telemetry.sample_ratio`.
    #[arg(long, env = "MILLSTREAM_SAMPLE_RATIO", value_name = "RATIO")]
    pub sample_ratio: Option<Ratio>,
    /// Overrides `telemetry.log_format`.
    #[arg(long, env = "MILLSTREAM_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Overrides `telemetry.log_filter`, in the syntax of `RUST_LOG`.
    #[arg(long, env = "RUST_LOG", value_name = "FILTER")]
    pub log_filter: Option<String>,
}

/// The configuration is no good; the text says where and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// Not YAML, or not this schema.
    #[error("{path}:{line}:{column}: {message}")]
    Syntax {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong, and what is allowed.
        message: String,
    },
    /// Fields that do not fit together.
    #[error("{path}: {field}: {message}")]
    Invalid {
        /// The file.
        path: String,
        /// The field, as a path such as `tenants[1].name`.
        field: String,
        /// What is wrong, and what is allowed.
        message: String,
    },
}

/// The configuration of a process: the file, if there is one, overridden by flags and environment.
///
/// # Errors
/// [`ConfigError`].
pub fn load(args: &ConfigArgs) -> Result<Config, ConfigError> {
    let Some(path) = &args.config else { return finish(Config::default(), args, Path::new("configuration")) };
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.display().to_string(), error })?;
    finish(read(&text, path)?, args, path)
}

/// A configuration from YAML text; `path` is for error messages.
///
/// # Errors
/// [`ConfigError::Syntax`] and [`ConfigError::Invalid`].
pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    finish(read(text, path)?, &ConfigArgs::default(), path)
}

fn read(text: &str, path: &Path) -> Result<Config, ConfigError> {
    // An empty document is YAML's null; it means all defaults.
    let only_comments = text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#'));
    if only_comments {
        return Ok(Config::default());
    }
    serde_yaml::from_str(text).map_err(|error| syntax(&error, path))
}

fn syntax(error: &serde_yaml::Error, path: &Path) -> ConfigError {
    let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
    let text = error.to_string();
    let message = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text).to_owned();
    ConfigError::Syntax { path: path.display().to_string(), line, column, message }
}

fn finish(mut config: Config, args: &ConfigArgs, path: &Path) -> Result<Config, ConfigError> {
    let prepared = apply(args, &mut config).and_then(|()| read_secrets(&mut config));
    match prepared.and_then(|()| check(&config)) {
        Ok(()) => Ok(config),
        Err((field, message)) => Err(ConfigError::Invalid { path: path.display().to_string(), field, message }),
    }
}

fn apply(args: &ConfigArgs, config: &mut Config) -> Result<(), Complaint> {
    let args = args.clone();
    set(&mut config.shards, args.shards.map(Shards));
    set(&mut config.owned, args.owned);
    set(&mut config.worker, args.worker);
    set(&mut config.listen, args.listen);
    set(&mut config.admin_listen, args.admin_listen);
    set(&mut config.data_dir, args.data_dir);
    set(&mut config.telemetry.otlp_endpoint, args.otlp_endpoint.map(Some));
    set(&mut config.telemetry.sample_ratio, args.sample_ratio);
    set(&mut config.telemetry.log_format, args.log_format);
    set(&mut config.telemetry.log_filter, args.log_filter);
    if !args.kafka_brokers.is_empty() {
        apply_brokers(args.kafka_brokers, &mut config.log);
    }
    if let Some(uri) = args.mongodb_uri {
        apply_uri(uri, &mut config.documents);
    }
    apply_place(args.zone, args.node, &mut config.ownership)
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn apply_brokers(brokers: Vec<String>, log: &mut Log) {
    match log {
        Log::Kafka(kafka) => kafka.brokers = brokers,
        Log::Embedded => *log = Log::Kafka(Kafka::new(brokers)),
    }
}

fn apply_uri(uri: String, documents: &mut Documents) {
    match documents {
        Documents::Mongodb(mongodb) => (mongodb.uri, mongodb.uri_file) = (uri, None),
        Documents::Embedded => *documents = Documents::Mongodb(Mongodb::new(uri)),
    }
}

fn apply_place(zone: Option<String>, node: Option<String>, ownership: &mut Ownership) -> Result<(), Complaint> {
    let place = |field: &str, text: Option<String>| match text.filter(|text| !text.is_empty()) {
        Some(text) => text.parse::<Place>().map(Some).map_err(|why| (format!("ownership.plan.{field}"), why)),
        None => Ok(None),
    };
    let (zone, node) = (place("zone", zone)?, place("node", node)?);
    match ownership {
        Ownership::Plan(plan) => {
            set(&mut plan.zone, zone.map(Some));
            set(&mut plan.node, node.map(Some));
            Ok(())
        }
        Ownership::Static if zone.is_some() || node.is_some() => complaint(
            "ownership",
            "zone and node are for workers that follow a plan: set `ownership: {plan: {}}`, or leave them out",
        ),
        Ownership::Static => Ok(()),
    }
}

/// Puts what is in files of its own where it belongs.
fn read_secrets(config: &mut Config) -> Result<(), Complaint> {
    if let Log::Kafka(kafka) = &mut config.log {
        for (property, path) in &kafka.security_files {
            let field = format!("log.kafka.security_files.{property}");
            if kafka.security.contains_key(property) {
                return complaint(field, format!("log.kafka.security has `{property}`, too: write it in one of them"));
            }
            let secret = read_secret(&field, path)?;
            kafka.security.insert(property.clone(), secret);
        }
    }
    if let Objects::S3(s3) = &mut config.objects {
        read_keys(s3)?;
    }
    let Documents::Mongodb(mongodb) = &mut config.documents else { return Ok(()) };
    let Some(path) = &mongodb.uri_file else { return Ok(()) };
    if !mongodb.uri.is_empty() {
        return complaint("documents.mongodb.uri_file", "there is a `uri`, too: write one of them");
    }
    mongodb.uri = read_secret("documents.mongodb.uri_file", path)?.reveal().to_owned();
    Ok(())
}

fn read_keys(s3: &mut S3) -> Result<(), Complaint> {
    if let Some(path) = &s3.access_key_id_file {
        if s3.access_key_id.is_some() {
            return complaint("objects.s3.access_key_id_file", "there is an `access_key_id`, too: write one of them");
        }
        s3.access_key_id = Some(read_secret("objects.s3.access_key_id_file", path)?.reveal().to_owned());
    }
    if let Some(path) = &s3.secret_access_key_file {
        if s3.secret_access_key.is_some() {
            return complaint(
                "objects.s3.secret_access_key_file",
                "there is a `secret_access_key`, too: write one of them",
            );
        }
        s3.secret_access_key = Some(read_secret("objects.s3.secret_access_key_file", path)?);
    }
    if s3.access_key_id.is_some() != s3.secret_access_key.is_some() {
        return complaint(
            "objects.s3",
            "give both the access key and its secret, or neither: then what the environment gives is used",
        );
    }
    Ok(())
}

fn read_secret(field: &str, path: &Path) -> Result<Secret, Complaint> {
    let complain = |why: String| (field.to_owned(), format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| complain(format!("cannot be read: {error}")))?;
    text.trim_end_matches(['\r', '\n']).parse().map_err(complain)
}

type Complaint = (String, String);

fn complaint(field: impl Into<String>, message: impl Into<String>) -> Result<(), Complaint> {
    Err((field.into(), message.into()))
}

/// What a schema cannot say.
fn check(config: &Config) -> Result<(), Complaint> {
    check_shards(config)?;
    check_ownership(config)?;
    check_stores(config)?;
    check_tenants(config)?;
    check_limits(config)?;
    check_unify(config)?;
    check_action(config)?;
    check_state(config)?;
    if config.generation == 0 {
        return complaint("generation", "must be 1 or more");
    }
    match &config.telemetry.otlp_endpoint {
        Some(url) if !url.starts_with("http://") && !url.starts_with("https://") => {
            complaint("telemetry.otlp_endpoint", format!("`{url}` must start with http:// or https://"))
        }
        _ => Ok(()),
    }
}

fn check_shards(config: &Config) -> Result<(), Complaint> {
    let shards = config.shards.0;
    if !(1..=4096).contains(&shards) {
        return complaint("shards", format!("{shards} is not a number from 1 to 4096"));
    }
    let Owned::Shards(owned) = &config.owned else { return Ok(()) };
    if let Some(shard) = owned.iter().find(|shard| **shard >= shards) {
        return complaint(
            "owned",
            format!("there is no shard {shard}: with shards: {shards} they are 0 to {}", shards - 1),
        );
    }
    let mut sorted = owned.clone();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair.first() == pair.last()).and_then(|pair| pair.first().copied()) {
        Some(twice) => complaint("owned", format!("shard {twice} is listed twice")),
        None => Ok(()),
    }
}

fn check_ownership(config: &Config) -> Result<(), Complaint> {
    let Ownership::Plan(plan) = &config.ownership else { return Ok(()) };
    if config.owned != Owned::All {
        return complaint(
            "owned",
            "belongs to `ownership: static`; with a plan, the plan says which shards are whose: leave it out",
        );
    }
    plan.check().map_err(|(field, message)| (format!("ownership.plan.{field}"), message.to_owned()))
}

fn check_checkpoints(config: &Config) -> Result<(), Complaint> {
    let Checkpoints { interval, retained, max_concurrent, files_at_once, upload_per_second, .. } = &config.checkpoints;
    if !(1_000..=86_400_000).contains(&interval.0) {
        return complaint("checkpoints.interval", "must be from 1s to 1d");
    }
    for (field, value, most) in
        [("retained", *retained, 100), ("max_concurrent", *max_concurrent, 64), ("files_at_once", *files_at_once, 64)]
    {
        if !(1..=most).contains(&value) {
            return complaint(format!("checkpoints.{field}"), format!("must be a number from 1 to {most}"));
        }
    }
    if upload_per_second.0 > 0 && *upload_per_second < Size(100_000) {
        return complaint("checkpoints.upload_per_second", "must be 0B (no bound) or at least 100KB");
    }
    match &config.objects {
        Objects::S3(s3) => s3.store().check().map_err(|error| ("objects.s3".to_owned(), error.to_string())),
        Objects::None | Objects::Folder(_) => Ok(()),
    }
}

fn check_stores(config: &Config) -> Result<(), Complaint> {
    if let Log::Kafka(kafka) = &config.log {
        if kafka.brokers.is_empty() {
            return complaint("log.kafka.brokers", "name at least one broker, host:port");
        }
        kafka.store().check().map_err(|error| ("log.kafka".to_owned(), error.to_string()))?;
    }
    check_checkpoints(config)?;
    let Documents::Mongodb(mongodb) = &config.documents else { return Ok(()) };
    if !["mongodb://", "mongodb+srv://"].iter().any(|scheme| mongodb.uri.starts_with(scheme)) {
        return complaint(
            "documents.mongodb.uri",
            "must start with mongodb:// or mongodb+srv:// (or leave it out, and give `uri_file`)",
        );
    }
    mongodb.store().check().map_err(|error| ("documents.mongodb".to_owned(), error.to_string()))
}

fn check_tenants(config: &Config) -> Result<(), Complaint> {
    let mut names = BTreeMap::new();
    let mut keys = BTreeMap::new();
    for (index, tenant) in config.tenants.iter().enumerate() {
        if let Some(first) = names.insert(&tenant.name, index) {
            let message = format!("`{}` is also the name of tenants[{first}]", tenant.name);
            return complaint(format!("tenants[{index}].name"), message);
        }
        for (key_index, key) in tenant.api_keys.iter().enumerate() {
            let field = format!("tenants[{index}].api_keys[{key_index}]");
            check_key(key, &field)?;
            let Some(hash) = key.hash() else { continue };
            if let Some(first) = keys.insert(hash.0, field.clone()) {
                return complaint(field, format!("is the same key as {first}; a key belongs to one tenant"));
            }
        }
    }
    Ok(())
}

fn check_key(key: &ApiKey, field: &str) -> Result<(), Complaint> {
    match (&key.sha256, &key.plain) {
        (Some(_), None) | (None, Some(_)) => Ok(()),
        _ => complaint(field, "write either `sha256: ...` or `plain: ...`"),
    }
}

fn check_limits(config: &Config) -> Result<(), Complaint> {
    let (limits, gateway) = (&config.limits, &config.gateway);
    let positive = [
        ("limits.request_bytes", limits.request_bytes.0),
        ("limits.compressed_bytes", limits.compressed_bytes.0),
        ("limits.records", limits.records as u64),
        ("limits.record_bytes", limits.record_bytes.0),
        ("limits.depth", limits.depth as u64),
        ("gateway.body_timeout", gateway.body_timeout.0),
        ("gateway.acknowledge_timeout", gateway.acknowledge_timeout.0),
        ("gateway.count", u64::from(gateway.count)),
        ("batch.max_time", config.batch.max_time.0),
        ("batch.max_records", config.batch.max_records as u64),
        ("batch.max_bytes", config.batch.max_bytes.0),
        ("batch.max_exchange_partitions", config.batch.max_exchange_partitions as u64),
        ("reaction.backlog_bytes", config.reaction.backlog_bytes.0),
    ];
    if let Some((field, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return complaint(*field, "must be more than 0");
    }
    if limits.id_chars < LEAST_ID_CHARS {
        let message =
            format!("must be at least {LEAST_ID_CHARS}, because the gateway makes message ids of that length");
        return complaint("limits.id_chars", message);
    }
    // A record travels in one message of the log, whose clients take 1 MB by default.
    if limits.record_bytes.0 + limits.context_bytes.0 > 900_000 {
        return complaint(
            "limits.record_bytes",
            "together with limits.context_bytes it must not exceed 900KB, so that a record fits into one message of the log",
        );
    }
    if gateway.in_flight_bytes.0 < largest_request(limits) {
        let message = format!(
            "must hold at least the largest request, {} bytes: limits.request_bytes, and for each of limits.records limits.context_bytes and 1KiB for what surrounds it",
            largest_request(limits)
        );
        return complaint("gateway.in_flight_bytes", message);
    }
    Ok(())
}

/// Whether the memory is enough depends on the shards that the process owns: `runtime/memory.rs` checks that.
fn check_state(config: &Config) -> Result<(), Complaint> {
    let state = &config.state;
    if !(1..=64).contains(&state.compaction_threads) {
        return complaint("state.compaction_threads", "must be a number from 1 to 64");
    }
    // A flush that takes minutes makes batches wait.
    if state.write_per_second.0 > 0 && state.write_per_second < Size(1_000_000) {
        return complaint("state.write_per_second", "must be 0B (no bound) or at least 1MB");
    }
    Ok(())
}

/// Bytes of the largest request as it goes into the log: each record carries what the request says about all of them, and tenant, ids and trace.
fn largest_request(limits: &Limits) -> u64 {
    let around = limits.context_bytes.0.saturating_add(1024).saturating_mul(limits.records as u64);
    limits.request_bytes.0.saturating_add(around)
}

/// What the gateway takes in, unify must not refuse for its size: the sender has been told that it is accepted.
fn check_unify(config: &Config) -> Result<(), Complaint> {
    let unify = &config.unify;
    unify.check().map_err(|(field, message)| (format!("unify.{field}"), message.to_owned()))?;
    if unify.limits.max_record_bytes < config.limits.record_bytes {
        let message = format!("must be at least limits.record_bytes, {}", config.limits.record_bytes);
        return complaint("unify.limits.max_record_bytes", message);
    }
    if unify.limits.max_depth < config.limits.depth {
        return complaint("unify.limits.max_depth", format!("must be at least limits.depth, {}", config.limits.depth));
    }
    let is_known = |name: &String| config.tenants.iter().any(|tenant| tenant.name.as_str() == name);
    match unify.tenants.keys().find(|name| !is_known(name)) {
        Some(name) if !config.tenants.is_empty() => {
            complaint(format!("unify.tenants.{name}"), "is no tenant: there is none of this name in `tenants`")
        }
        _ => Ok(()),
    }
}

/// A user must hold what a single record brings, and a message of the log two users that have just become one.
fn check_action(config: &Config) -> Result<(), Complaint> {
    let (action, record) = (&config.action, &config.unify.limits);
    let least = [
        ("action.max_identifiers", action.max_identifiers, "unify.limits.max_identifiers", record.max_identifiers),
        ("action.max_attributes", action.max_attributes, "unify.limits.max_attributes", record.max_attributes),
        ("action.max_elements", action.max_elements, "unify.limits.max_list_elements", record.max_list_elements),
    ];
    if let Some((field, _, of, least)) = least.iter().find(|(_, value, _, least)| value < least) {
        return complaint(*field, format!("must be at least {of}, {least}, or a single record would not fit"));
    }
    if action.max_devices == 0 {
        return complaint("action.max_devices", "must be more than 0");
    }
    if action.max_bytes < Size(64 << 10) {
        return complaint("action.max_bytes", "must be at least 64KiB");
    }
    let message = match &config.log {
        Log::Kafka(kafka) => kafka.max_message_bytes,
        Log::Embedded => Size(LogOptions::default().max_message_bytes as u64),
    };
    if action.max_bytes.0.saturating_mul(2) > message.0 {
        let message = format!(
            "two users of this size can become one, which must fit into a message of the log: at most half of {message} (log.kafka.max_message_bytes)"
        );
        return complaint("action.max_bytes", message);
    }
    check_merged(action, message)
}

/// A document has, besides attributes, lists of at most 1 MB ([`millstream_stages::action`]); the smallest message that is allowed takes 2 MiB.
fn check_merged(action: &Action, message: Size) -> Result<(), Complaint> {
    let (field, merged) = ("action.max_merged_bytes", action.max_merged_bytes);
    if merged < action.max_bytes {
        let least = action.max_bytes;
        return complaint(
            field,
            format!("must be at least action.max_bytes, {least}, or a merge would take what records may bring"),
        );
    }
    if merged.0.saturating_mul(2) > message.0 {
        let message = format!(
            "a document has as much beside its attributes, and must fit into a message of the log: at most half of {message} (log.kafka.max_message_bytes)"
        );
        return complaint(field, message);
    }
    Ok(())
}
