//! Whether a task was confined as far as was asked for. Pure.
//!
//! A host may always confine a task more: its own policy has the last word. Less is never right, and the task has run by
//! the time that it shows, so it is said beside the task and not refused.

use bytes::Bytes;
use muster_proto::v1::{Confinement, Mode, Network, network::Access};
use prost::Message as _;

/// What is weaker about the confinement that a host reports, serialized and empty where it says nothing, than the one that
/// was asked for; in words.
pub(super) fn weaker(asked: &Confinement, applied: &Bytes) -> Option<String> {
    let bounded = matches!(asked.mode(), Mode::ReadOnly | Mode::Edit | Mode::Disabled)
        || asked.network.is_some();
    if !bounded {
        return None;
    }
    if applied.is_empty() {
        return Some(format!(
            "{} was asked for, and the host does not say how the task is confined",
            words(asked)
        ));
    }
    let applied = Confinement::decode(Bytes::clone(applied)).unwrap_or_default();
    if asked.mode() != Mode::Unspecified && height(applied.mode()) > height(asked.mode()) {
        return Some(format!(
            "{} was asked for, and the host says {}",
            words(asked),
            words(&applied)
        ));
    }
    // A mode that was not asked for has the network that was, or its own.
    let wanted = match &asked.network {
        Some(network) => openness(Some(network), asked.mode()),
        None => openness(None, asked.mode()),
    };
    if openness(applied.network.as_ref(), applied.mode()) > wanted {
        return Some("less of the network was asked for than the host says was open".to_owned());
    }
    let wider = |root: &String| asked.roots.iter().any(|asked| is_above(root, asked));
    let wider = applied.roots.iter().find(|root| wider(root));
    wider.map(|root| {
        format!("the host says that {root} could be written, which is more than was asked for")
    })
}

/// How far a mode lets a task go.
fn height(mode: Mode) -> u8 {
    match mode {
        Mode::Disabled => 0,
        Mode::ReadOnly => 1,
        Mode::Edit => 2,
        // A host that names no mode, or one of tomorrow, has promised nothing.
        Mode::Unrestricted | Mode::Unspecified => 3,
    }
}

/// How much of the network there is: none, some, all.
fn openness(network: Option<&Network>, mode: Mode) -> u8 {
    match network.map_or(Access::Unspecified, Network::access) {
        Access::None => 0,
        Access::List => 1,
        Access::All => 2,
        Access::Unspecified if mode == Mode::ReadOnly => 0,
        Access::Unspecified => 2,
    }
}

/// Whether `root` is a directory above `other`.
fn is_above(root: &str, other: &str) -> bool {
    let root = root.trim_end_matches('/');
    other
        .trim_end_matches('/')
        .strip_prefix(root)
        .is_some_and(|rest| rest.starts_with('/'))
}

fn words(confinement: &Confinement) -> &'static str {
    match confinement.mode() {
        Mode::Unspecified => "a confinement",
        mode => mode.text(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confinement(mode: Mode, access: Option<Access>, roots: &[&str]) -> Bytes {
        Confinement {
            mode: mode.into(),
            network: access.map(|access| Network {
                access: access.into(),
                allow: Vec::new(),
            }),
            roots: roots.iter().map(|root| root.to_string()).collect(),
            features: Vec::new(),
        }
        .encode_to_vec()
        .into()
    }

    fn found(asked: &Bytes, applied: &Bytes) -> Option<String> {
        let asked = Confinement::decode(asked.clone()).unwrap();
        weaker(&asked, applied)
    }

    const MODES: [Mode; 3] = [Mode::ReadOnly, Mode::Edit, Mode::Unrestricted];

    #[test]
    fn a_higher_mode_than_was_asked_for_shows_and_a_lower_one_is_the_host_s_right() {
        for (place, asked) in MODES.iter().enumerate() {
            for (height, applied) in MODES.iter().enumerate() {
                let found = found(
                    &confinement(*asked, None, &[]),
                    &confinement(*applied, None, &[]),
                );
                assert_eq!(
                    found.is_some(),
                    height > place,
                    "{asked:?} {applied:?} {found:?}"
                );
            }
        }
        let silent = found(&confinement(Mode::Edit, None, &[]), &Bytes::new());
        assert!(silent.unwrap().contains("does not say"));
        let vague = confinement(Mode::Unspecified, None, &[]);
        assert!(found(&confinement(Mode::Edit, None, &[]), &vague).is_some());
        for applied in [Bytes::new(), confinement(Mode::Unrestricted, None, &[])] {
            assert_eq!(
                found(&Bytes::new(), &applied),
                None,
                "nothing was asked for"
            );
            let free = confinement(Mode::Unrestricted, None, &[]);
            assert_eq!(found(&free, &applied), None);
        }
    }

    #[test]
    fn a_wider_network_and_wider_roots_show() {
        let edit = |access, roots: &[&str]| confinement(Mode::Edit, access, roots);
        let asked = edit(Some(Access::None), &["/srv/app"]);
        assert_eq!(
            found(&asked, &edit(Some(Access::None), &["/srv/app"])),
            None
        );
        assert_eq!(
            found(&asked, &edit(Some(Access::None), &["/srv/app/x"])),
            None
        );
        assert!(found(&asked, &edit(Some(Access::List), &["/srv/app"])).is_some());
        assert!(found(&asked, &edit(None, &["/srv/app"])).is_some());
        for wide in ["/", "/srv", "/srv/"] {
            assert!(
                found(&asked, &edit(Some(Access::None), &[wide])).is_some(),
                "{wide}"
            );
        }
        // Read-only has no network unless it was asked for.
        let read_only = confinement(Mode::ReadOnly, None, &[]);
        assert!(
            found(
                &read_only,
                &confinement(Mode::ReadOnly, Some(Access::All), &[])
            )
            .is_some()
        );
        let listed = confinement(Mode::ReadOnly, Some(Access::List), &[]);
        assert_eq!(found(&listed, &listed), None);
    }
}
