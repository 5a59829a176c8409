//! `millstream tail`: events, mutations or rejects as NDJSON.

use super::admin::error_line;
use super::visible::{json_line, visible};
use super::{Admin, Outcome, usage};
use anyhow::{bail, ensure};
use std::borrow::Cow;
use std::io::{IsTerminal, Write};

/// What to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Topic {
    /// Enriched events
    Events,
    /// Changes to documents
    Mutations,
    /// Records that were not processed, with the reason
    Rejects,
}

/// Arguments of `millstream tail`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TailArgs {
    /// What to print
    #[arg(value_enum)]
    topic: Topic,
    /// Base URL of an admin port
    #[arg(long, default_value = "http://127.0.0.1:9090", env = "MILLSTREAM_ADMIN")]
    admin: String,
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<String>,
    /// Go on with what comes, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
}

/// Runs it.
pub(super) fn run(args: &TailArgs) -> anyhow::Result<Outcome> {
    let path = match args.topic {
        Topic::Events => "/v1/tail/events",
        Topic::Mutations => "/v1/tail/mutations",
        Topic::Rejects => "/v1/tail/rejects",
    };
    let mut query = vec![("follow", if args.follow { "true" } else { "false" })];
    query.extend(args.tenant.as_deref().map(|tenant| ("tenant", tenant)));
    let admin = Admin::new(&args.admin)?;
    if args.follow {
        // It may come yet.
        unknown_tenant(&admin, args).into_iter().for_each(|why| note(&why));
    }
    let (mut out, mut lines, mut failed) = (std::io::stdout().lock(), 0_u64, None);
    let for_people = out.is_terminal();
    admin.lines::<anyhow::Error>(path, &query, &mut |line| {
        if let Some(message) = error_line(line) {
            note(&message);
            failed = Some(message);
            return Ok(true);
        }
        lines += 1;
        let line = if for_people { json_line(line) } else { Cow::Borrowed(line) };
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
        Ok(true)
    })?;
    out.flush()?;
    if let Some(message) = failed {
        bail!("what was printed is not all: {message}");
    }
    ensure!(!args.follow, "{} ended the tail: the process stops; what comes from now on was not printed", args.admin);
    match unknown_tenant(&admin, args).filter(|_| lines == 0) {
        None => Ok(Outcome::Good),
        Some(why) => {
            note(&why);
            Ok(Outcome::Bad)
        }
    }
}

/// Beside the lines, which are for programs.
fn note(text: &str) {
    // Nothing can be done when even that cannot be written.
    let _ = writeln!(std::io::stderr(), "millstream: {}", visible(text));
}

/// Says so when no record of the tenant has ever come, as far as this process knows.
fn unknown_tenant(admin: &Admin, args: &TailArgs) -> Option<String> {
    let tenant = args.tenant.as_deref()?;
    let rows = usage::collect(std::slice::from_ref(admin)).ok()?;
    usage::unknown(tenant, &usage::sums(&rows))
}
