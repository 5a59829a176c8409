//! The rounds: what happens to owners, and how long the output stands still for it.

use crate::TRANSACTION_TIMEOUT_MS;
use crate::audit::Output;
use crate::driver::{Event, Fleet};
use anyhow::{Result, bail};
use serde_json::json;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// One round: its variant, the longest standstill at the output, and the time from the command to the first output of the new owner.
pub struct Measured {
    pub variant: String,
    pub gap: Duration,
    pub to_output: Duration,
}

/// Plays `count` rounds of a kind.
pub fn play(kind: &str, count: usize, fleet: &mut Fleet, output: &Output) -> Result<Vec<Measured>> {
    let mut all = Vec::new();
    for round in 0..count {
        pause(300 + jitter(700)); // strike anywhere in the batch cycle
        println!("-- {kind} {round}: {} owns with epoch {}", fleet.owner, fleet.epoch);
        let measured = match kind {
            "quiet" => quiet(output),
            "handoff" => handoff(fleet, output),
            "stop" => stop(round, fleet, output),
            "stop-short" => stop(2, fleet, output),
            "kill" => kill(round, fleet, output),
            "rivals" => rivals(round, fleet, output),
            "broker" => broker(round, fleet, output),
            other => bail!("unknown kind {other}: quiet, handoff, stop, stop-short, kill, rivals, broker"),
        }?;
        println!(
            "ROUND {} gap={:?} to_output={:?} load={}",
            measured.variant,
            measured.gap,
            measured.to_output,
            machine_load()
        );
        all.push(measured);
    }
    Ok(all)
}

/// Nothing happens for a second: what the output does by itself.
fn quiet(output: &Output) -> Result<Measured> {
    let began = Instant::now();
    pause(1000);
    Ok(Measured { variant: "quiet".into(), gap: output.longest_gap(began, Instant::now()), to_output: Duration::ZERO })
}

/// (b) Planned: the recipient prepares while the owner works, then the owner releases to it.
fn handoff(fleet: &mut Fleet, output: &Output) -> Result<Measured> {
    let (from, to, epoch) = (fleet.owner.clone(), other(&fleet.owner), fleet.epoch);
    fleet.tell(&to, "prepare")?;
    let prepared = fleet.wait(60, |event| event.worker == to && event.name().starts_with("prepare"))?;
    pause(100 + jitter(200));
    let began = Instant::now();
    fleet.tell(&from, &format!("release {to} {} {}", fleet.incarnation(&to), prepared.number("client")))?;
    fleet.wait(30, |event| event.worker == to && event.name() == "owner")?;
    finish("handoff", began, began, epoch, output)
}

/// (a) The owner is stopped, then goes on: soon, or beyond its transaction timeout; robbed in between, or not.
fn stop(round: usize, fleet: &mut Fleet, output: &Output) -> Result<Measured> {
    let (zombie, rival, epoch) = (fleet.owner.clone(), other(&fleet.owner), fleet.epoch);
    let beyond = TRANSACTION_TIMEOUT_MS + 2000;
    let (variant, before_takeover, stopped) = match round % 4 {
        0 => ("stopped 8 s, robbed at once", 200, beyond),
        1 => ("stopped 8 s, robbed after the timeout", beyond - 500, beyond),
        2 => ("stopped 1 s, robbed at once", 100, 1000),
        _ => ("stopped 8 s, not robbed: takes over from itself", beyond, beyond),
    };
    let stopped_at = Instant::now();
    fleet.signal(&zombie, "STOP")?;
    pause(before_takeover);
    let began = Instant::now();
    if round % 4 == 3 {
        fleet.signal(&zombie, "CONT")?;
        // It may have been stopped between two transactions: then it just goes on, which is right.
        let went_on = fleet.wait(2, |event| event.worker == zombie && event.name() == "lost").is_err();
        if went_on {
            let gap = output.longest_gap(stopped_at, Instant::now());
            return Ok(Measured {
                variant: "stopped 8 s between transactions, goes on".into(),
                gap,
                to_output: Duration::ZERO,
            });
        }
        fleet.tell(&zombie, &format!("takeover {epoch}"))?;
        fleet.wait(60, |event| event.worker == zombie && event.name() == "owner")?;
        return finish(variant, began, began, epoch, output);
    }
    fleet.tell(&rival, &format!("takeover {epoch}"))?;
    if stopped > 1000 {
        fleet.wait(60, |event| event.worker == rival && event.name() == "owner")?;
        pause((stopped as i64 - stopped_at.elapsed().as_millis() as i64).max(0) as u64);
        fleet.signal(&zombie, "CONT")?;
    } else {
        pause(stopped - before_takeover);
        fleet.signal(&zombie, "CONT")?; // in the middle of the takeover
        if fleet.epoch == epoch {
            fleet.wait(60, |event| event.worker == rival && event.name() == "owner")?;
        }
    }
    expect_lost(fleet, &zombie, epoch)?;
    finish(variant, began, began, epoch, output)
}

/// (c) kill -9, then the successor takes over, cold or with a prepared id. The dead one is started again.
fn kill(round: usize, fleet: &mut Fleet, output: &Output) -> Result<Measured> {
    let (dead, rival, epoch) = (fleet.owner.clone(), other(&fleet.owner), fleet.epoch);
    let prepared = round % 2 == 1;
    if prepared {
        fleet.tell(&rival, "prepare")?;
        fleet.wait(60, |event| event.worker == rival && event.name() == "prepared")?;
        pause(50 + jitter(100));
    }
    let began = Instant::now();
    fleet.kill(&dead)?;
    fleet.tell(&rival, &format!("takeover {epoch}"))?;
    fleet.wait(60, |event| event.worker == rival && event.name() == "owner")?;
    let variant = if prepared { "kill -9, id prepared" } else { "kill -9" };
    let measured = finish(variant, began, began, epoch, output);
    fleet.start(&dead)?;
    measured
}

/// (d) Two take over at the same time, from a dead owner or from one that works. Exactly one must come out as owner.
fn rivals(round: usize, fleet: &mut Fleet, output: &Output) -> Result<Measured> {
    let (owner, epoch) = (fleet.owner.clone(), fleet.epoch);
    let others: Vec<String> =
        ["A", "B", "C"].iter().filter(|name| **name != owner).map(|name| (*name).to_owned()).collect();
    let dies = round.is_multiple_of(2);
    let began = Instant::now();
    if dies {
        fleet.kill(&owner)?;
    }
    for rival in &others {
        fleet.tell(rival, &format!("takeover {epoch}"))?;
        pause(jitter(2) * jitter(300)); // together, or one inside the other's steps
    }
    // Until every rival owns or stood down, and nobody has lost for a second: the loser's inits may fence the winner even when the
    // loser stands down after them, and then the winner goes through takeover once more.
    let mut settled = HashSet::new();
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let of_rival =
            |event: &Event| others.contains(&event.worker) && matches!(event.name(), "owner" | "stood_down" | "lost");
        match fleet.wait(1, of_rival) {
            Ok(event) if event.name() == "lost" => {
                settled.remove(&event.worker);
                // As far as the plan lets it: the epoch that was to be replaced, or its own when it had won already.
                let limit = if fleet.owner == event.worker { fleet.epoch } else { epoch };
                fleet.tell(&event.worker, &format!("takeover {limit}"))?;
            }
            Ok(event) => {
                settled.insert(event.worker);
            }
            Err(_) if settled.len() == others.len() => break,
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => {}
        }
    }
    if fleet.epoch == epoch {
        bail!("both rivals stood down");
    }
    let variant = if dies { "two rivals, owner killed" } else { "two rivals, owner at work" };
    let mut measured = finish(variant, began, began, epoch, output);
    if let Ok(measured) = &mut measured {
        measured.gap = output.longest_gap(began, Instant::now()); // the winner may have lost again
    }
    if dies {
        fleet.start(&owner)?
    } else {
        expect_lost(fleet, &owner, epoch)?
    }
    measured
}

/// (e) kill -9 of a broker: it leads some of the shard's partitions or coordinates its transactions, or neither. Whatever error the owner sees, it goes
/// through takeover. Over when the output has flowed for three seconds.
fn broker(round: usize, fleet: &mut Fleet, output: &Output) -> Result<Measured> {
    let node = 1 + round % 3;
    let began = Instant::now();
    fleet.broker("kill-node", node)?;
    let mut lost = 0;
    let deadline = began + Duration::from_secs(90);
    loop {
        match fleet.wait(3, |event| event.name() == "lost") {
            Ok(event) => {
                lost += 1;
                fleet.tell(&event.worker, &format!("takeover {}", fleet.epoch))?;
            }
            Err(_)
                if output.longest_gap(Instant::now() - Duration::from_secs(3), Instant::now())
                    < Duration::from_secs(1) =>
            {
                break;
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => {}
        }
    }
    let gap = output.longest_gap(began, Instant::now());
    fleet.broker("start-node", node)?;
    fleet.wait_in_sync()?;
    let variant = if lost > 0 { "broker killed, shard taken over again" } else { "broker killed, no error seen" };
    Ok(Measured { variant: variant.into(), gap, to_output: Duration::ZERO })
}

/// A robbed owner must find out at its next transaction.
fn expect_lost(fleet: &mut Fleet, zombie: &str, epoch: u64) -> Result<()> {
    if fleet.lost.contains(&(zombie.to_owned(), epoch)) {
        return Ok(());
    }
    fleet.wait(30, |event| event.worker == zombie && event.name() == "lost" && event.number("epoch") == epoch)?;
    Ok(())
}

fn finish(variant: &str, began: Instant, from: Instant, epoch: u64, output: &Output) -> Result<Measured> {
    let first = output.wait_epoch(epoch + 1, Duration::from_secs(30))?;
    let gap = output.longest_gap(from, first + Duration::from_millis(1));
    Ok(Measured { variant: variant.into(), gap, to_output: first.saturating_duration_since(began) })
}

fn other(owner: &str) -> String {
    if owner == "A" { "B".into() } else { "A".into() }
}

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

fn jitter(below: u64) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() % below
}

fn machine_load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or_default().to_owned()
}

/// Quantiles per variant, one line of JSON each.
pub fn report(kind: &str, measured: &[Measured]) {
    let mut variants: Vec<&str> = measured.iter().map(|round| round.variant.as_str()).collect();
    variants.sort_unstable();
    variants.dedup();
    for variant in variants {
        let of = |pick: fn(&Measured) -> Duration| {
            let mut all: Vec<u64> =
                measured.iter().filter(|m| m.variant == variant).map(|m| pick(m).as_millis() as u64).collect();
            all.sort_unstable();
            let at = |q: f64| all[((all.len() - 1) as f64 * q).round() as usize];
            json!({"n": all.len(), "min": at(0.0), "p50": at(0.5), "p99": at(0.99), "max": at(1.0)})
        };
        println!(
            "REPORT {}",
            json!({"kind": kind, "variant": variant, "gap_ms": of(|m| m.gap), "to_output_ms": of(|m| m.to_output)})
        );
    }
}
