//! This machine: folder of local state, disk, open files, memory and processors, against what the configuration asks for. Looks, and writes nothing.

use super::finding::Finding;
use crate::config::{Config, Log, Ownership, Size};
use crate::gateway::MAX_CONNECTIONS;
use crate::runtime::Role;
use crate::runtime::memory::Parts;
use rustix::fs::{Access, access, statvfs};
use rustix::process::{Resource, getrlimit};
use std::path::{Path, PathBuf};

/// Files that a shard's store has open at most besides those of deeper levels: the first level's until writes stop (64), the next level's, logs.
const FILES_PER_STORE: u64 = 80;
/// What a process takes beside state and bodies, bytes: program, clients, threads.
const PROGRAM_BYTES: u64 = 128 << 20;
/// Shards per processor from which on small batches cost a third more (docs/src/design/decisions.md).
const SHARDS_PER_CPU: usize = 8;

/// What this machine is like.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Machine {
    folder: Folder,
    /// Bytes that the folder's disk has left for us.
    free_bytes: Option<u64>,
    /// Files and bytes of local state that is there already.
    state: (u64, u64),
    /// How many files may be open: the hard limit, which workers take.
    open_files: u64,
    /// Bytes that this process's control group may have.
    memory_limit: Option<u64>,
    /// Bytes of memory that the machine has.
    memory: Option<u64>,
    cpus: usize,
}

/// The folder of local state.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Folder {
    Writable,
    /// It is to be created here.
    Absent(PathBuf),
    /// Why not.
    Unusable(String),
}

/// What a process needs, by its configuration and role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Needs {
    /// Stores of shards.
    stores: usize,
    memory: Memory,
    takes_requests: bool,
}

/// Memory that a process takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Memory {
    /// What it is for.
    what: &'static str,
    /// Bytes that the configuration lets it take.
    bytes: u64,
    /// Bytes with everything that is beside them.
    whole: u64,
}

impl Memory {
    fn beside_the_program(what: &'static str, bytes: u64) -> Memory {
        Memory { what, bytes, whole: bytes.saturating_add(PROGRAM_BYTES) }
    }
}

/// Everything about this machine.
pub(super) fn check(config: &Config, role: Option<Role>) -> Vec<Finding> {
    judge(config, &Needs::of(config, role), &Machine::look(&config.data_dir))
}

impl Needs {
    fn of(config: &Config, role: Option<Role>) -> Needs {
        let is_local = matches!(config.log, Log::Embedded);
        let may_be = |other: Role| role.is_none_or(|role| role == other);
        let with_state = [Role::Unify, Role::Action].into_iter().filter(|role| may_be(*role)).count();
        let shards = config.owned_shards().len();
        // One process has one role, unless it has all.
        let stores = shards * if is_local { with_state } else { with_state.min(1) };
        Needs {
            stores,
            memory: memory_of(config, may_be, is_local && role.is_none()),
            takes_requests: may_be(Role::Gateway),
        }
    }
}

/// Of all roles in one process, or of the one that takes most.
fn memory_of(config: &Config, may_be: impl Fn(Role) -> bool, is_all: bool) -> Memory {
    let state = config.state.memory.0;
    // Batches, clients and code take about as much (docs/src/design/memory.md), and that is what the operator leaves them.
    let state = Memory { what: "state.memory", bytes: state, whole: state.saturating_mul(2) };
    let bodies = config.gateway.in_flight_bytes.0.saturating_mul(4);
    let bodies = Memory::beside_the_program("four times gateway.in_flight_bytes", bodies);
    let shards = config.owned_shards().len() as u64;
    let backlog = config.reaction.backlog_bytes.0.saturating_mul(2).saturating_mul(shards);
    let backlog = Memory::beside_the_program("twice reaction.backlog_bytes for each owned shard", backlog);
    if is_all {
        let sum = |of: fn(&Memory) -> u64| [&state, &bodies, &backlog].into_iter().map(of).fold(0, u64::saturating_add);
        let what = "state.memory, with requests and backlog,";
        return Memory { what, bytes: sum(|memory| memory.bytes), whole: sum(|memory| memory.whole) };
    }
    let has_state = may_be(Role::Unify) || may_be(Role::Action);
    let each = [(has_state, state), (may_be(Role::Gateway), bodies), (may_be(Role::Reaction), backlog)];
    let each = each.into_iter().filter(|(is_needed, _)| *is_needed).map(|(_, memory)| memory);
    each.max_by_key(|memory| memory.whole).unwrap_or_default()
}

impl Machine {
    fn look(data_dir: &Path) -> Machine {
        let folder = folder(data_dir);
        let there = if let Folder::Absent(parent) = &folder { parent.as_path() } else { data_dir };
        let free = statvfs(there).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Machine {
            free_bytes: free,
            state: files(&data_dir.join("state")),
            open_files: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            memory_limit: memory_limit(&read("/proc/self/cgroup"), |path| std::fs::read_to_string(path).ok()),
            memory: memory(&read("/proc/meminfo")),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            folder,
        }
    }
}

fn folder(data_dir: &Path) -> Folder {
    let may_write = |path: &Path| match access(path, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => None,
        Err(error) => Some(Folder::Unusable(format!("{} cannot be written: {error}", path.display()))),
    };
    if data_dir.is_dir() {
        return may_write(data_dir).unwrap_or(Folder::Writable);
    }
    let whole = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let Some(parent) = whole.ancestors().find(|folder| folder.exists()) else {
        return Folder::Unusable(format!("no folder of {} is there", whole.display()));
    };
    if !parent.is_dir() {
        return Folder::Unusable(format!("{} is no folder", parent.display()));
    }
    may_write(parent).unwrap_or_else(|| Folder::Absent(parent.to_owned()))
}

/// Number and bytes of files below a folder.
fn files(folder: &Path) -> (u64, u64) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.fold((0, 0), |(count, bytes), entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => {
            let (more, size) = files(&entry.path());
            (count + more, bytes + size)
        }
        Ok(_) => (count + 1, bytes + entry.metadata().map_or(0, |file| file.len())),
        Err(_) => (count, bytes),
    })
}

/// The least limit of the control groups that this process is in: `cgroup` is `/proc/self/cgroup`.
fn memory_limit(cgroup: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let groups = cgroup.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':'))?;
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            of if of.split(',').any(|name| name == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return None,
        };
        Some((root, path.trim_start_matches('/'), file))
    });
    let files = groups.flat_map(|(root, path, file)| {
        let folders: Vec<PathBuf> = Path::new(path).ancestors().map(|folder| Path::new(root).join(folder)).collect();
        folders.into_iter().map(move |folder| folder.join(file))
    });
    // `max`, or a number beyond any memory: no limit.
    files.filter_map(|file| read(&file)?.trim().parse().ok()).filter(|limit| *limit < 1 << 62).min()
}

/// Of `/proc/meminfo`, in bytes.
fn memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn judge(config: &Config, needs: &Needs, machine: &Machine) -> Vec<Finding> {
    let mut findings = judge_folder(config, machine);
    findings.extend(judge_disk(config, needs, machine));
    findings.push(judge_files(needs, machine));
    findings.extend(judge_memory(config, needs, machine));
    findings.push(judge_cpus(config, needs, machine));
    findings
}

fn judge_folder(config: &Config, machine: &Machine) -> Vec<Finding> {
    let subject = format!("data_dir {}", config.data_dir.display());
    vec![match &machine.folder {
        Folder::Writable => Finding::ok(subject, "is there, and may be written"),
        Folder::Absent(parent) => {
            Finding::ok(subject, format!("not there yet; it can be created in {}", parent.display()))
        }
        Folder::Unusable(why) => Finding::problem(
            subject,
            why,
            "give the folder to the user that runs the worker (chown), mount it for writing, or set another data_dir",
        ),
    }]
}

fn judge_disk(config: &Config, needs: &Needs, machine: &Machine) -> Option<Finding> {
    let (free, (_, used)) = (machine.free_bytes?, machine.state);
    let memory = config.state.memory.0;
    if needs.stores == 0 {
        return None;
    }
    // A compaction may write anew all that there is, and flushes add what memory holds.
    let comfortable = used.saturating_add(memory);
    let found = format!(
        "{} free; local state is {} and may grow by what state.memory holds ({})",
        mebibytes(free),
        mebibytes(used),
        config.state.memory
    );
    let change = format!("give the disk of data_dir at least {} of free space", mebibytes(comfortable));
    Some(if free < memory / 4 {
        Finding::problem("disk", found, change)
    } else if free < comfortable {
        Finding::warning("disk", found, change)
    } else {
        Finding::ok("disk", found)
    })
}

/// RocksDB has no bound of open files of its own (`max_open_files` -1): what is there is open.
fn judge_files(needs: &Needs, machine: &Machine) -> Finding {
    let stores = FILES_PER_STORE.saturating_mul(needs.stores as u64).saturating_add(machine.state.0.saturating_mul(2));
    let connections = if needs.takes_requests { MAX_CONNECTIONS as u64 } else { 0 };
    let half = machine.open_files / 2;
    let found = format!(
        "{} may be open (hard limit), half of them for connections; {stores} for {} shards' state",
        machine.open_files, needs.stores
    );
    let wanted = stores.max(connections).saturating_mul(2);
    let change =
        format!("raise the hard limit to {wanted} (ulimit -Hn, LimitNOFILE of systemd, the container runtime's)");
    if half < stores {
        return Finding::problem("open files", format!("{found}: too few"), change);
    }
    if half < connections {
        return Finding::warning(
            "open files",
            format!("{found}: fewer than {connections} connections of a gateway"),
            change,
        );
    }
    Finding::ok("open files", found)
}

fn judge_memory(config: &Config, needs: &Needs, machine: &Machine) -> Vec<Finding> {
    let mut findings = Vec::new();
    if needs.stores > 0
        && let Err(error) = Parts::of(&config.state, needs.stores)
    {
        findings.push(Finding::problem("memory", error, "set state.memory, or `owned`, as it says"));
    }
    let Memory { what, bytes, whole } = needs.memory;
    let known = machine.memory_limit.map(|limit| (limit, "the limit of the control group"));
    let known = known.into_iter().chain(machine.memory.map(|bytes| (bytes, "the machine's memory")));
    let Some((limit, whose)) = known.min_by_key(|(limit, _)| *limit) else {
        findings.push(Finding::ok("memory", format!("{what} is {}; what there is, is not told", mebibytes(bytes))));
        return findings;
    };
    let found = format!("{what} is {}, and {whose} is {}", mebibytes(bytes), mebibytes(limit));
    let change = format!("raise the limit to {}, or lower what the process may take", mebibytes(whole));
    findings.push(if limit < bytes {
        Finding::problem("memory", format!("{found}: the process will be killed"), change)
    } else if limit < whole {
        Finding::warning("memory", format!("{found}: little is left for batches, clients and code"), change)
    } else {
        Finding::ok("memory", found)
    });
    findings
}

fn judge_cpus(config: &Config, needs: &Needs, machine: &Machine) -> Finding {
    let (cpus, threads) = (machine.cpus, usize::from(config.state.compaction_threads));
    if needs.stores == 0 {
        return Finding::ok("processors", format!("{cpus}"));
    }
    if threads > cpus {
        let found = format!("{cpus}, and state.compaction_threads is {threads}: compactions can take all of them");
        return Finding::warning("processors", found, format!("set state.compaction_threads: {cpus}"));
    }
    // With a plan, shards are where the plan puts them.
    let is_static = matches!(config.ownership, Ownership::Static);
    if is_static && needs.stores > cpus * SHARDS_PER_CPU {
        let found = format!("{cpus} for {} shards: batches become small, and cost a third more", needs.stores);
        return Finding::warning(
            "processors",
            found,
            "use more processors, or more processes with fewer shards each (`owned`, or a plan)",
        );
    }
    Finding::ok("processors", format!("{cpus}, for up to {} shards and {threads} threads that compact", needs.stores))
}

fn mebibytes(bytes: u64) -> String {
    if bytes < 1 << 20 { Size(bytes).to_string() } else { Size((bytes >> 20) << 20).to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;
    use crate::config::Kafka;

    fn config() -> Config {
        Config { log: Log::Kafka(Kafka::new(vec!["b:1".into()])), ..Config::default() }
    }

    fn good() -> Machine {
        Machine {
            folder: Folder::Writable,
            free_bytes: Some(100 << 30),
            state: (100, 1 << 30),
            open_files: 1 << 20,
            memory_limit: Some(4 << 30),
            memory: Some(16 << 30),
            cpus: 4,
        }
    }

    /// What is not well, without any level when all is.
    fn amiss(config: &Config, role: Option<Role>, machine: &Machine) -> Vec<Finding> {
        let findings = judge(config, &Needs::of(config, role), machine);
        findings.into_iter().filter(|finding| finding.level != Level::Ok).collect()
    }

    #[test]
    fn a_good_machine_is_well_for_every_role() {
        for role in [None, Some(Role::Gateway), Some(Role::Unify), Some(Role::Action), Some(Role::Reaction)] {
            assert_eq!(amiss(&config(), role, &good()), []);
        }
    }

    #[test]
    fn each_fact_has_its_weight() {
        let (problem, warning, mib) = (Level::Problem, Level::Warning, 1 << 20);
        for (machine, level, words) in [
            (Machine { folder: Folder::Unusable("read-only".into()), ..good() }, problem, "read-only"),
            (Machine { free_bytes: Some(127 * mib), ..good() }, problem, "127MiB free"),
            (Machine { free_bytes: Some(1535 * mib), ..good() }, warning, "1535MiB free"),
            (Machine { open_files: 1024, ..good() }, problem, "1024 may be open"),
            (Machine { open_files: 4096, ..good() }, warning, "fewer than 10000 connections"),
            (Machine { memory_limit: Some(511 * mib), ..good() }, problem, "511MiB"),
            (Machine { memory_limit: None, memory: Some(1023 * mib), ..good() }, warning, "machine's memory"),
            (Machine { cpus: 1, ..good() }, warning, "compaction_threads is 2"),
        ] {
            // The largest need must be state.
            let role = if words.contains("connections") { None } else { Some(Role::Unify) };
            let found = amiss(&config(), role, &machine);
            assert!(
                found.len() == 1 && found[0].level == level && found[0].found.contains(words),
                "{words}: {found:?}"
            );
            assert!(found[0].change.is_some());
        }
    }

    #[test]
    fn needs_follow_role_and_shards() {
        let of = |role| Needs::of(&config(), Some(role));
        assert_eq!((of(Role::Unify).stores, of(Role::Unify).memory.bytes), (8, 512 << 20));
        assert_eq!((of(Role::Gateway).stores, of(Role::Gateway).memory.bytes), (0, 256_000_000));
        assert_eq!((of(Role::Reaction).stores, of(Role::Reaction).memory.bytes), (0, 1 << 30));
        assert_eq!(Needs::of(&Config::default(), None).stores, 16, "one process has all roles");
        let too_many = Config { shards: crate::config::Shards(100), ..config() };
        let found = amiss(&too_many, Some(Role::Unify), &good());
        assert!(found[0].level == Level::Problem && found[0].found.contains("800MiB"), "{found:?}");
        assert!(found[1].level == Level::Warning && found[1].found.contains("100 shards"), "{found:?}");
    }

    #[test]
    fn the_least_limit_of_the_groups_counts() {
        let read = |path: &Path| match path.to_str()? {
            "/sys/fs/cgroup/a/b/memory.max" => Some("max\n".to_owned()),
            "/sys/fs/cgroup/a/memory.max" => Some("1000\n".to_owned()),
            "/sys/fs/cgroup/memory/x/memory.limit_in_bytes" => Some("9223372036854771712\n".to_owned()),
            "/sys/fs/cgroup/memory/memory.limit_in_bytes" => Some("500\n".to_owned()),
            _ => None,
        };
        assert_eq!(memory_limit("0::/a/b\n", read), Some(1000));
        assert_eq!(memory_limit("4:memory:/x\n3:cpu,cpuacct:/a\n", read), Some(500));
        assert_eq!(memory_limit("0::/\n", read), None);
        assert_eq!(memory("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
    }

    #[test]
    fn a_folder_is_looked_at_and_not_made() {
        let parent = tempfile::tempdir().unwrap();
        let inner = parent.path().join("a/b");
        assert_eq!(folder(&inner), Folder::Absent(parent.path().to_owned()));
        assert!(!parent.path().join("a").exists());
        assert_eq!(folder(parent.path()), Folder::Writable);
        let file = parent.path().join("file");
        std::fs::write(&file, "12345").unwrap();
        assert!(matches!(folder(&file), Folder::Unusable(why) if why.contains("no folder")));
        assert_eq!(files(parent.path()), (1, 5));
    }
}
