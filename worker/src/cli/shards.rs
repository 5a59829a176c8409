//! `millstream shards`: who has which shard, how far, in which role.

use super::{Admin, AdminError, Outcome};
use crate::admin::ShardRow;
use millstream_plan::unread::age;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often a table that follows is drawn anew.
const EVERY: Duration = Duration::from_secs(1);
/// A report older than this is marked.
const OLD_MS: u64 = 2_800;
/// Moves the cursor home and clears what is below it.
const HOME: &str = "\x1b[H\x1b[J";

/// Arguments of `millstream shards`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ShardsArgs {
    /// Base URL of an admin port. One is enough where workers follow a plan; else one per process, separated by commas
    #[arg(long, default_value = "http://127.0.0.1:9090", env = "MILLSTREAM_ADMIN", value_delimiter = ',')]
    admin: Vec<String>,
    /// Only this stage
    #[arg(long)]
    stage: Option<String>,
    /// Draw the table anew every second, until Ctrl-C
    #[arg(long)]
    follow: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "follow")]
    json: bool,
}

/// Runs it; the outcome is bad while a shard has no owner, or something is wrong with one.
pub(super) fn run(args: &ShardsArgs) -> anyhow::Result<Outcome> {
    let admins = args.admin.iter().map(|url| Admin::new(url)).collect::<Result<Vec<_>, _>>()?;
    let ask = || {
        let mut rows = collect(&admins)?;
        rows.retain(|row| args.stage.as_ref().is_none_or(|stage| *stage == row.stage));
        Ok::<_, AdminError>(rows)
    };
    if args.follow {
        loop {
            // Whoever is asked may be the one that dies: it is back later.
            let shown = ask().map_or_else(|error| format!("{error}\n"), |rows| table(&rows));
            super::print(format_args!("{HOME}{shown}"))?;
            std::thread::sleep(EVERY);
        }
    }
    let rows = ask()?;
    if args.json {
        super::print(format_args!("{}\n", serde_json::to_string_pretty(&rows)?))?;
    } else {
        super::print(format_args!("{}", table(&rows)))?;
    }
    Ok(if is_good(&rows) { Outcome::Good } else { Outcome::Bad })
}

/// Asks all processes; of what several say of one worker's shard, the newest counts.
fn collect(admins: &[Admin]) -> Result<Vec<ShardRow>, AdminError> {
    let mut newest: BTreeMap<(String, u32, String, String), ShardRow> = BTreeMap::new();
    let (mut without, mut asked) = (None, 0);
    for admin in admins {
        match admin.json::<Vec<ShardRow>>("/v1/shards", &[]) {
            Ok(rows) => {
                asked += 1;
                for row in rows {
                    let key = (row.stage.clone(), row.shard, row.worker.clone(), row.incarnation.clone());
                    let known = newest.get(&key).is_some_and(|known| known.heard_ms <= row.heard_ms);
                    if !known {
                        newest.insert(key, row);
                    }
                }
            }
            // A gateway has no shards.
            Err(error) if error.is_not_found() => without = Some(error),
            Err(error) => return Err(error),
        }
    }
    match without {
        Some(error) if asked == 0 => Err(error),
        _ => Ok(sorted(newest.into_values().collect())),
    }
}

/// By shard, the owner first.
fn sorted(mut rows: Vec<ShardRow>) -> Vec<ShardRow> {
    rows.sort_by_key(|row| (row.stage.clone(), row.shard, row.role != "owner", row.worker.clone()));
    rows
}

/// Every shard that anybody reports has one owner that was heard, and nothing is wrong with any.
fn is_good(rows: &[ShardRow]) -> bool {
    let mut owners: BTreeMap<(&str, u32), usize> = BTreeMap::new();
    for row in rows {
        let owns = row.role == "owner" && row.heard_ms <= OLD_MS;
        *owners.entry((&row.stage, row.shard)).or_default() += usize::from(owns);
    }
    !rows.is_empty() && owners.values().all(|owners| *owners == 1) && rows.iter().all(|row| row.condition.is_empty())
}

/// The rows for people.
fn table(rows: &[ShardRow]) -> String {
    let width = rows.iter().map(|row| row.worker.len()).max().unwrap_or(0).max(6);
    let mut text = format!(
        "{:8} {:>5}  {:8} {:width$} {:8} {:>6} {:>10} {:>10} {:>6} {:>7}  {:16}  {:>8}  {}\n",
        "stage",
        "shard",
        "role",
        "worker",
        "process",
        "epoch",
        "batch",
        "position",
        "lag",
        "unread",
        "digest",
        "heard",
        "remarks"
    );
    for row in rows {
        text.push_str(&format!(
            "{:8} {:>5}  {:8} {:width$} {:8} {:>6} {:>10} {:>10} {:>6} {:>7}  {:16}  {:>8}  {}\n",
            row.stage,
            row.shard,
            row.role,
            row.worker,
            process(&row.incarnation),
            row.epoch,
            row.batch,
            row.changelog_offset,
            row.lag,
            unread(row),
            row.digest,
            format!("{:.1} s", row.heard_ms as f64 / 1000.0),
            remarks(row)
        ));
    }
    text
}

/// How old what an owner has not processed is.
fn unread(row: &ShardRow) -> String {
    match row.unread_ms {
        Some(milliseconds) => age(milliseconds),
        None if row.role == "owner" => "unknown".to_owned(),
        None => "-".to_owned(),
    }
}

/// Enough of an incarnation to tell two processes of one name apart: its end, which is drawn at random.
fn process(incarnation: &str) -> &str {
    let begin = incarnation.char_indices().rev().nth(7).map_or(0, |(begin, _)| begin);
    incarnation.get(begin..).unwrap_or_default()
}

fn remarks(row: &ShardRow) -> String {
    let place = [&row.zone, &row.node].into_iter().filter(|text| !text.is_empty()).map(String::as_str);
    let mut remarks: Vec<&str> = place.collect();
    if row.prepared {
        remarks.push("prepared");
    }
    if row.leaving {
        remarks.push("leaving");
    }
    if row.heard_ms > OLD_MS {
        remarks.push("SILENT");
    }
    if !row.condition.is_empty() {
        remarks.push(&row.condition);
    }
    remarks.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(shard: u32, role: &str, worker: &str) -> ShardRow {
        ShardRow { stage: "unify".into(), shard, role: role.into(), worker: worker.into(), ..ShardRow::default() }
    }

    #[test]
    fn a_shard_without_an_owner_that_is_heard_is_not_good() {
        let good = vec![row(0, "owner", "a"), row(0, "standby", "b")];
        assert!(is_good(&good));
        assert!(!is_good(&[row(0, "standby", "b")]));
        assert!(!is_good(&[ShardRow { heard_ms: OLD_MS + 1, ..row(0, "owner", "a") }]));
        assert!(!is_good(&[row(0, "owner", "a"), row(0, "owner", "b")]), "one of two was fenced and does not know");
        assert!(!is_good(&[ShardRow { condition: "disk full".into(), ..row(0, "owner", "a") }]));
        assert!(!is_good(&[]), "nobody has anything");
    }

    #[test]
    fn a_table_names_owner_first_and_what_is_wrong() {
        let silent =
            ShardRow { heard_ms: 9_000, condition: "disk full".into(), prepared: true, ..row(1, "standby", "a") };
        let text = table(&sorted(vec![silent, row(1, "owner", "b"), row(0, "owner", "a")]));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("owner") && lines[2].contains(" b ") && lines[3].contains("standby"), "{text}");
        assert!(lines[3].ends_with("prepared, SILENT, disk full"), "{text}");
    }

    #[test]
    fn an_owner_says_how_old_what_it_has_not_processed_is() {
        let old = ShardRow { unread_ms: Some(250_000), digest: "d".into(), ..row(0, "owner", "a") };
        let not_looked = ShardRow { digest: "d".into(), ..row(1, "owner", "a") };
        let standby = ShardRow { digest: "d".into(), ..row(1, "standby", "a") };
        let text = table(&[old, not_looked, standby]);
        let cells = text.lines().skip(1).map(|line| line.split(" d ").next().unwrap().split_whitespace().last());
        assert_eq!(cells.collect::<Vec<_>>(), [Some("4m"), Some("unknown"), Some("-")], "{text}");
    }

    #[test]
    fn two_processes_of_one_name_can_be_told_apart() {
        let of = |incarnation: &str| ShardRow { incarnation: incarnation.into(), ..row(0, "owner", "a") };
        let text = table(&[of("0199c3a1f2b0-00c0ffee"), of("0199c3a1f2b7-0badcafe")]);
        assert!(text.contains(" a      00c0ffee ") && text.contains(" a      0badcafe "), "{text}");
    }
}
