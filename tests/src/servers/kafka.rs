//! Apache Kafka: one or more combined nodes.

use super::acls::{self, Acl};
use super::cache::install_kafka;
use super::certificates::Authority;
use super::process::{Server, Stop, folder, free_ports, host};
use super::scram;
use anyhow::{Context, Result, ensure};
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

const PROPERTIES: &str = include_str!("../../servers/kafka/server.properties");
const SECURE: &str = include_str!("../../servers/kafka/secure.properties");
const MUTUAL: &str = include_str!("../../servers/kafka/mutual.properties");
const AUTHORIZING: &str = include_str!("../../servers/kafka/authorizing.properties");
const LOGGING: &str = include_str!("../../servers/kafka/log4j2.properties");

/// A cold start takes 6 s on a quiet machine, and three nodes at once 14 s; loaded CI machines are several times slower.
const READY_WITHIN: Duration = Duration::from_secs(180);

/// A running cluster.
#[derive(Debug)]
pub struct Kafka {
    bootstrap: String,
    nodes: Vec<Server>,
    security: BTreeMap<String, String>,
    /// Where a secured broker takes whom it does not ask for a password.
    internal_port: Option<u16>,
    /// Whom clients trust; its folder has the certificate.
    _authority: Option<Authority>,
}

/// A node that asks its clients for a certificate and for the password of [`USER`] (SASL_SSL, SCRAM-SHA-512), at a port for that.
#[derive(Debug)]
pub struct MutualTls {
    /// The node; at its own port, nobody is asked.
    pub kafka: Kafka,
    /// `host:port` where clients are asked.
    pub bootstrap: String,
    /// Who may issue clients' certificates. The node's own is the first one's.
    pub authorities: [Authority; 2],
}

/// The user that a secured broker knows, and its password.
pub const USER: (&str, &str) = ("millstream", "open-sesame");

impl Kafka {
    /// One node.
    ///
    /// # Errors
    /// When Kafka cannot be installed or started.
    pub fn start() -> Result<Kafka> {
        Kafka::start_cluster(1)
    }

    /// Several nodes; topics have as many copies, at most three, of which two must be in sync.
    ///
    /// # Errors
    /// When Kafka cannot be installed or started.
    pub fn start_cluster(nodes: usize) -> Result<Kafka> {
        Kafka::start_with(nodes, "")
    }

    /// Several nodes with further lines in their configuration.
    ///
    /// # Errors
    /// When Kafka cannot be installed or started.
    pub fn start_with(nodes: usize, more: &str) -> Result<Kafka> {
        ensure!(nodes > 0, "a cluster has at least one node");
        let classpath = format!("{}/*", install_kafka()?.display());
        let ports = free_ports(nodes * 2)?;
        let (ports, controllers) = ports.split_at(nodes);
        let cluster = Cluster { classpath, ports, controllers, more, secure: None };
        let nodes: Vec<Server> = std::thread::scope(|scope| -> Result<Vec<Server>> {
            let cluster = &cluster;
            let starts: Vec<_> = (0..nodes).map(|index| scope.spawn(move || cluster.start(index))).collect();
            starts.into_iter().map(|start| start.join().unwrap_or_else(|_| anyhow::bail!("a start panicked"))).collect()
        })?;
        let bootstrap = ports.iter().map(|port| format!("{}:{port}", host())).collect::<Vec<_>>().join(",");
        let kafka = Kafka { bootstrap, nodes, security: BTreeMap::new(), internal_port: None, _authority: None };
        kafka.wait_until_ready()?;
        Ok(kafka)
    }

    /// One node that takes clients by TLS, by their certificates and with a password, too.
    ///
    /// # Errors
    /// When Kafka cannot be installed or started.
    pub fn start_mutual() -> Result<MutualTls> {
        let (first, second, port) = (Authority::new()?, Authority::new()?, free_ports(1)?);
        let port = port.first().context("a port")?;
        let [keystore, truststore] = ["broker.pem", "trusted.pem"].map(|name| first.path().with_file_name(name));
        std::fs::write(&keystore, first.issue(&[&host()])?.in_one())?;
        let authorities = [first, second];
        std::fs::write(&truststore, trusted(&authorities)?)?;
        let more = MUTUAL
            .replace("{tls_port}", &port.to_string())
            .replace("{keystore}", &keystore.display().to_string())
            .replace("{truststore}", &truststore.display().to_string());
        let kafka = Kafka::start_with(1, &more)?;
        kafka.change_password(USER.1)?;
        Ok(MutualTls { kafka, bootstrap: format!("{}:{port}", host()), authorities })
    }

    /// One node that takes clients by TLS and with a password (SASL_SSL, SCRAM-SHA-512) only.
    ///
    /// # Errors
    /// When Kafka cannot be installed or started.
    pub fn start_secure() -> Result<Kafka> {
        Kafka::start_asking("")
    }

    /// A secured node that lets these users (and [`USER`]) do nothing but what they are [allowed](Kafka::allow); their passwords are their names.
    ///
    /// # Errors
    /// When Kafka cannot be installed or started.
    pub fn start_authorizing(users: &[&str]) -> Result<Kafka> {
        let users: String = users.iter().map(|user| format!(" user_{user}=\"{user}\"")).collect();
        Kafka::start_asking(&format!("{AUTHORIZING}{users};\n"))
    }

    fn start_asking(more: &str) -> Result<Kafka> {
        let classpath = format!("{}/*", install_kafka()?.display());
        let ports = free_ports(3)?;
        let [port, controller, internal] = ports[..] else { anyhow::bail!("too few ports") };
        let authority = Authority::new()?;
        let secure = Some(Secure { internal_port: internal, authority: &authority });
        let cluster = Cluster { classpath, ports: &[port], controllers: &[controller], more, secure };
        let nodes = vec![cluster.start(0)?];
        let security = [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", USER.0),
            ("sasl.password", USER.1),
            ("ssl.ca.location", &authority.path().display().to_string()),
        ];
        let security = security.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let (bootstrap, internal_port) = (format!("127.0.0.1:{port}"), Some(internal));
        let kafka = Kafka { bootstrap, nodes, security, internal_port, _authority: Some(authority) };
        kafka.wait_until_ready()?;
        Ok(kafka)
    }

    /// A node that all tests of a process share; use topic names of your own.
    ///
    /// # Errors
    /// When it cannot be started; the same for everybody.
    pub fn shared() -> Result<&'static Kafka> {
        static SHARED: OnceLock<Result<Kafka, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Kafka::start().map_err(|error| format!("{error:#}")));
        shared.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// `host:port` of each node, separated by commas.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The nodes, for signals.
    pub fn nodes(&self) -> &[Server] {
        &self.nodes
    }

    /// A configuration for this cluster.
    pub fn config(&self) -> KafkaConfig {
        let replication_factor = u16::try_from(self.nodes.len().min(3)).unwrap_or(3);
        KafkaConfig { replication_factor, security: self.security.clone(), ..KafkaConfig::new(&self.bootstrap) }
    }

    /// How clients prove who they are, by librdkafka's names.
    pub fn security(&self) -> &BTreeMap<String, String> {
        &self.security
    }

    /// How a user of [`Kafka::start_authorizing`] proves who it is, by librdkafka's names.
    pub fn security_of(&self, user: &str) -> BTreeMap<String, String> {
        let other = [("sasl.mechanism", "PLAIN"), ("sasl.username", user), ("sasl.password", user)];
        let other = other.map(|(name, value)| (name.to_owned(), value.to_owned()));
        self.security.clone().into_iter().chain(other).collect()
    }

    /// Lets a user do these things.
    ///
    /// # Errors
    /// When the broker is no secured one, or refuses.
    pub fn allow(&self, user: &str, acls: &[Acl]) -> Result<()> {
        let port = self.internal_port.context("a broker that asks nobody who it is")?;
        acls::create(("127.0.0.1", port), user, acls)
    }

    /// From now on [`USER`] has another password for SCRAM-SHA-512, and the former one is nobody's. Who is connected stays so.
    ///
    /// # Errors
    /// When the broker refuses, or everybody who asks it needs a password.
    pub fn change_password(&self, password: &str) -> Result<()> {
        let (host, port) = self.bootstrap.rsplit_once(':').context("an address without a port")?;
        match self.internal_port {
            Some(port) => scram::alter(("127.0.0.1", port), USER.0, password),
            None => scram::alter((host, port.parse()?), USER.0, password),
        }
    }

    /// Restarts a secured broker with another password of its user for SASL/PLAIN.
    ///
    /// # Errors
    /// When there is no such broker.
    pub fn restart_with_password(&mut self, password: &str) -> Result<()> {
        let node = self.node(0)?;
        let file = node.folder().join("server.properties");
        let user = format!("user_{}=", USER.0);
        let lines = std::fs::read_to_string(&file)?;
        let lines = lines.lines().map(|line| match line.split_once(&user) {
            Some((before, _)) => format!("{before}{user}\"{password}\";\n"),
            None => format!("{line}\n"),
        });
        let changed: String = lines.collect();
        node.kill()?;
        std::fs::write(file, changed)?;
        node.start_again()
    }

    /// Kills a node (-9) and leaves it dead.
    pub fn kill(&mut self, node: usize) {
        drop(self.nodes.remove(node));
    }

    /// A node, to kill it and start it again.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node(&mut self, node: usize) -> Result<&mut Server> {
        self.nodes.get_mut(node).context("no such node")
    }

    /// Waits until all nodes are there and every copy of every partition, internal topics included, has caught up: only then may another node be lost.
    ///
    /// # Errors
    /// When they are not in time.
    pub fn is_whole(&self) -> Result<()> {
        self.wait_until_ready()?;
        let client: BaseProducer = ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create()?;
        let first = self.nodes.first().context("no node")?;
        first.wait_until(READY_WITHIN, || {
            let metadata = client.client().fetch_metadata(None, Duration::from_secs(5))?;
            let partitions = metadata
                .topics()
                .iter()
                .flat_map(|topic| topic.partitions().iter().map(move |partition| (topic.name(), partition)));
            let behind: Vec<String> = partitions
                .filter(|(_, partition)| partition.isr().len() < partition.replicas().len())
                .map(|(topic, partition)| {
                    format!("{topic}[{}]: {:?} of {:?}", partition.id(), partition.isr(), partition.replicas())
                })
                .collect();
            ensure!(behind.is_empty(), "in sync are only: {}", behind.join(", "));
            Ok(())
        })
    }

    fn wait_until_ready(&self) -> Result<()> {
        let log = KafkaLog::new(self.config())?;
        let first = self.nodes.first().context("no node")?;
        first.wait_until(READY_WITHIN, || {
            let brokers = log.brokers(Duration::from_secs(2))?;
            ensure!(brokers == self.nodes.len(), "{brokers} of {} nodes are there", self.nodes.len());
            Ok(())
        })
    }
}

/// The certificates of all of them, PEM.
///
/// # Errors
/// When a file cannot be read.
pub fn trusted(authorities: &[Authority]) -> Result<String> {
    authorities.iter().map(|authority| Ok(std::fs::read_to_string(authority.path())?)).collect()
}

struct Cluster<'a> {
    classpath: String,
    ports: &'a [u16],
    controllers: &'a [u16],
    more: &'a str,
    secure: Option<Secure<'a>>,
}

/// What a broker needs to be secured.
struct Secure<'a> {
    /// For itself, without TLS.
    internal_port: u16,
    authority: &'a Authority,
}

impl Cluster<'_> {
    fn start(&self, index: usize) -> Result<Server> {
        let folder = folder("kafka")?;
        std::fs::write(folder.join("log4j2.properties"), LOGGING)?;
        std::fs::write(folder.join("hosts"), "127.0.0.1 localhost\n")?;
        std::fs::write(folder.join("server.properties"), self.properties(index, &folder)?)?;
        if let Err(error) = self.format(&folder) {
            let _ = std::fs::remove_dir_all(&folder);
            return Err(error);
        }
        let properties = folder.join("server.properties").display().to_string();
        let mut command = vec!["java".to_owned()];
        command.extend(self.java(&folder));
        command.extend(["-Xmx512m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"].map(str::to_owned));
        command.extend(["kafka.Kafka".to_owned(), properties]);
        // Whoever is asked for a password (SASL) is asked for the name of its address first, and where no name server answers, that takes too long.
        command.insert(1, format!("-Djdk.net.hosts.file={}", folder.join("hosts").display()));
        Server::start(folder, Stop::Kill, &command)
    }

    fn java(&self, folder: &Path) -> [String; 3] {
        let logging = format!("-Dlog4j2.configurationFile={}", folder.join("log4j2.properties").display());
        ["-cp".to_owned(), self.classpath.clone(), logging]
    }

    fn format(&self, folder: &Path) -> Result<()> {
        let properties = folder.join("server.properties");
        let output = Command::new("java")
            .args(self.java(folder))
            .args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", "format", "--ignore-formatted"])
            .args(["-t", &self.id(), "-c"])
            .arg(properties)
            .args(self.users())
            .output()
            .context("cannot start java")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "cannot format: {said}{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Base64 of 16 bytes, another one for each cluster that runs here.
    fn id(&self) -> String {
        format!("{:021}A", self.controllers.first().copied().unwrap_or_default())
    }

    fn users(&self) -> Vec<String> {
        if self.secure.is_none() {
            return Vec::new();
        }
        vec!["--add-scram".to_owned(), format!("SCRAM-SHA-512=[name={},password={}]", USER.0, USER.1)]
    }

    fn properties(&self, index: usize, folder: &Path) -> Result<String> {
        let voters: Vec<String> =
            self.controllers.iter().enumerate().map(|(node, port)| format!("{}@127.0.0.1:{port}", node + 1)).collect();
        let replication = self.ports.len().min(3);
        let port = self.ports.get(index).context("no port")?;
        let controller_port = self.controllers.get(index).context("no port")?;
        let mut properties = PROPERTIES.to_owned();
        let (keystore, mut internal_port) = (folder.join("broker.pem"), String::new());
        if let Some(secure) = &self.secure {
            properties.push_str(SECURE);
            internal_port = secure.internal_port.to_string();
            std::fs::write(&keystore, secure.authority.issue(&["127.0.0.1"])?.in_one())?;
        }
        properties.push_str(self.more);
        properties.push('\n');
        Ok(properties
            .replace("{internal_port}", &internal_port)
            .replace("{keystore}", &keystore.display().to_string())
            .replace("{host}", &host())
            .replace("{id}", &(index + 1).to_string())
            .replace("{voters}", &voters.join(","))
            .replace("{port}", &port.to_string())
            .replace("{controller_port}", &controller_port.to_string())
            .replace("{data}", &folder.join("data").display().to_string())
            .replace("{replication}", &replication.to_string())
            .replace("{in_sync}", if replication == 3 { "2" } else { "1" }))
    }
}
