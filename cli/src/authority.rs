//! `muster authority …`: the authority behind all certificates, and how another takes its place.

use muster_proto::v1::{
    AuthorityRotation, GetAuthoritiesRequest, RotateAuthorityRequest,
    rotate_authority_request::Step,
};
use serde_json::json;

use crate::{failure::Failure, json, operator::Operator, screen, time};

#[derive(clap::Subcommand, Debug)]
#[command(
    after_help = "A rotation, in this order; each step is durable, and until the last everything can be taken back:
  muster authority begin      make the next authority; everybody trusts it too
  muster authority issue      it issues; hosts renew their certificates by it
  muster authority serve      the control plane shows a certificate of it
  muster authority finish     the old one is dropped, once every host has taken the new one"
)]
pub(crate) enum AuthorityCommand {
    /// Show where the rotation stands, and which hosts are missing
    Status,
    /// Make the next authority, and have everybody trust it too
    Begin,
    /// Let the next authority issue
    Issue,
    /// Let the control plane show a certificate of the next authority
    Serve,
    /// Drop the old authority (after a rollback: the next one)
    Finish {
        /// Do not wait for hosts that are missing: they come back by their old keys
        #[arg(long)]
        force: bool,
        /// The old key may be known to others: nobody comes back by a certificate of it
        #[arg(long)]
        distrust: bool,
    },
    /// Back to the old authority; `finish` then drops the next one
    Rollback,
}

pub(crate) async fn run(command: AuthorityCommand, operator: &Operator) -> Result<u8, Failure> {
    let client = operator.connect().await?;
    let (step, force, distrust) = match command {
        AuthorityCommand::Status => {
            let request = GetAuthoritiesRequest {};
            let answer = client.authorities().get_authorities(request).await?;
            show(answer.into_inner().rotation, operator.json)?;
            return Ok(0);
        }
        AuthorityCommand::Begin => (Step::Begin, false, false),
        AuthorityCommand::Issue => (Step::Issue, false, false),
        AuthorityCommand::Serve => (Step::Serve, false, false),
        AuthorityCommand::Finish { force, distrust } => (Step::Finish, force, distrust),
        AuthorityCommand::Rollback => (Step::Rollback, false, false),
    };
    let request = RotateAuthorityRequest {
        step: step.into(),
        force,
        distrust,
    };
    let answer = client.authorities().rotate_authority(request).await?;
    show(answer.into_inner().rotation, operator.json)?;
    Ok(0)
}

fn show(rotation: Option<AuthorityRotation>, as_json: bool) -> Result<(), Failure> {
    let rotation = rotation.unwrap_or_default();
    let phase = json::word(rotation.phase().as_str_name(), "PHASE_").replace('_', "-");
    if as_json {
        screen::print_json(&json!({
            "phase": phase,
            "phase_time": time::rfc3339(rotation.phase_time.as_ref()),
            "issuing": rotation.issuing,
            "other": Some(&rotation.other).filter(|other| !other.is_empty()),
            "hosts": rotation.hosts,
            "taken": rotation.taken,
            "missing_hosts": rotation.missing_hosts,
        }))?;
        return Ok(());
    }
    let mut fields = screen::Fields::new();
    fields.add("phase", phase);
    fields.add("since", time::local(rotation.phase_time.as_ref()));
    fields.add("issuing", &rotation.issuing);
    fields.add("other", &rotation.other);
    fields.add(
        "taken",
        format!("{} of {} hosts", rotation.taken, rotation.hosts),
    );
    fields.add("missing", rotation.missing_hosts.join(", "));
    screen::print(&fields.render())?;
    Ok(())
}
