//! What a decision costs: one that has to be thought about, and a whole job on many hosts.

use anyhow::Context as _;
use muster_control_plane::PolicyFiles;

use crate::figures::{Samples, heading, millis};

/// Decides about a job on so many hosts by so many policies beside those that are shipped, of which each looks at a
/// label; the hosts have so many different sets of labels. Once with a policy for each of many teams, once with all of
/// them for everybody.
pub(crate) fn run(hosts: usize, policies: usize, sets: usize) -> anyhow::Result<()> {
    let team = |number| format!("principal in Muster::Role::\"team-{number}\"");
    measure("each for a team", team, (hosts, policies, sets))?;
    let everybody = |_| "principal".to_owned();
    measure("all for everybody", everybody, (hosts, policies, sets))
}

fn measure(
    words: &str,
    principal: impl Fn(usize) -> String,
    (hosts, policies, sets): (usize, usize, usize),
) -> anyhow::Result<()> {
    let mut files = PolicyFiles::shipped().files().clone();
    let more = (0..policies).map(|number| {
        format!(
            "@id(\"team-{number}\") permit({}, \
             action == Muster::Action::\"job.create\", resource) \
             when {{ resource.hasTag(\"set\") && resource.getTag(\"set\") == \"{number}\" }};\n",
            principal(number)
        )
    });
    files.insert("teams.cedar".to_owned(), more.collect());
    let files = PolicyFiles::read(files).context("the policies do not fit the schema")?;
    let times = files.time(hosts, sets);
    let mut thought = Samples::default();
    for time in &times.thought {
        thought.add(*time);
    }
    heading(&format!(
        "a decision, {} policies, {words}, {} of them thought about",
        files.count(),
        times.thought.len()
    ));
    println!("median {:.1} us", millis(thought.median()) * 1e3);
    println!(
        "99th percentile {:.1} us",
        millis(thought.percentile(99)) * 1e3
    );
    heading(&format!(
        "a job on {hosts} hosts with {sets} sets of labels, policies {words}"
    ));
    println!("the first time {:.2} ms", millis(times.first));
    println!("again {:.2} ms", millis(times.again));
    Ok(())
}
