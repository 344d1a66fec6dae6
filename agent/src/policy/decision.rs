//! What a task may, from all who have a say: the host's table, the control plane's limit, and what was asked for.
//! The lowest counts, and nothing is ever more than one of them said. Pure.

use std::{
    io,
    path::{Path, PathBuf},
};

use muster_proto::v1::{Confinement, Reason};

use super::{
    Mode, Refusal, Table,
    network::{self, Network},
};

/// What an offer asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Asked {
    pub(super) mode: Option<Mode>,
    pub(super) network: Option<Network>,
    /// Lead over no link.
    pub(super) roots: Vec<PathBuf>,
}

/// How a task is run.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Decision {
    /// Without any confinement.
    Free,
    /// As this says.
    Confined {
        mode: Mode,
        network: Network,
        roots: Vec<PathBuf>,
    },
}

impl Decision {
    /// The mode that it comes to.
    pub(super) fn mode(&self) -> Mode {
        match self {
            Self::Free => Mode::Unrestricted,
            Self::Confined { mode, .. } => *mode,
        }
    }
}

impl Asked {
    /// Reads an offer. `resolve` follows the links of a path.
    pub(super) fn read(
        asked: &Confinement,
        resolve: impl Fn(&Path) -> io::Result<PathBuf>,
    ) -> Result<Self, Refusal> {
        let mode = Mode::from_wire(asked.mode).map_err(|mode| {
            let message = format!("mode {mode} is not known to this agent; update it");
            Refusal::new(Reason::ModeUnenforceable, message)
        })?;
        let network = match &asked.network {
            None => None,
            Some(network) => Network::read(network)
                .map_err(|problem| Refusal::new(Reason::NetworkUnenforceable, problem))?,
        };
        let roots = asked.roots.iter().map(|root| {
            let resolved = match Path::new(root).is_absolute() {
                true => resolve(Path::new(root)),
                false => Err(io::Error::other("it is not absolute")),
            };
            resolved.map_err(|error| {
                let message = format!("the root {root:?} cannot be used: {error}");
                Refusal::new(Reason::PathDenied, message)
            })
        });
        Ok(Self {
            mode,
            network,
            roots: roots.collect::<Result<_, _>>()?,
        })
    }
}

/// What becomes of a task.
pub(super) fn decide(
    table: &Table,
    limit: Option<Mode>,
    asked: &Asked,
) -> Result<Decision, Refusal> {
    let ceiling = limit.unwrap_or(Mode::Unrestricted).min(table.mode);
    let mode = asked.mode.unwrap_or(ceiling);
    if ceiling == Mode::Disabled || mode == Mode::Disabled {
        let who = match (ceiling, table.mode) {
            (Mode::Disabled, Mode::Disabled) => "its own policy says so",
            (Mode::Disabled, _) => "the control plane has limited it",
            _ => "the task asks for it",
        };
        let message = format!("nothing runs on this host in mode disabled: {who}");
        return Err(Refusal::new(Reason::ModeDisabled, message));
    }
    if mode > ceiling {
        let who = match table.mode == ceiling {
            true => "its own policy",
            false => "the control plane's limit",
        };
        let message = format!(
            "the task asks for {}, and this host permits {} at most by {who}",
            mode.name(),
            ceiling.name()
        );
        return Err(Refusal::new(Reason::ModeTooHigh, message));
    }
    if mode == Mode::Unrestricted {
        return match &asked.network {
            None | Some(Network::All) => Ok(Decision::Free),
            Some(_) => Err(Refusal::new(
                Reason::NetworkUnenforceable,
                "the network of an unrestricted task cannot be closed; ask for edit or read-only",
            )),
        };
    }
    let network = match &asked.network {
        None => network::of(table.network.as_ref(), mode),
        Some(network) => match &table.network {
            Some(most) if !network.is_within(most) => {
                let message =
                    "the task asks for more of the network than the policy of this host permits";
                return Err(Refusal::new(Reason::ModeTooHigh, message));
            }
            _ => network.clone(),
        },
    };
    let roots = match mode {
        Mode::Edit if asked.roots.is_empty() => table.roots.clone(),
        Mode::Edit => {
            for root in &asked.roots {
                if !table.roots.iter().any(|most| root.starts_with(most)) {
                    let message = format!(
                        "the root {} is below none of the roots of this host",
                        root.display()
                    );
                    return Err(Refusal::new(Reason::PathDenied, message));
                }
            }
            outermost(asked.roots.clone())
        }
        _ => Vec::new(),
    };
    Ok(Decision::Confined {
        mode,
        network,
        roots,
    })
}

/// Those that are below no other.
pub(super) fn outermost(mut roots: Vec<PathBuf>) -> Vec<PathBuf> {
    roots.sort();
    let mut kept: Vec<PathBuf> = Vec::new();
    for root in roots {
        if !kept.iter().any(|outer| root.starts_with(outer)) {
            kept.push(root);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MODES: [Mode; 4] = [
        Mode::Disabled,
        Mode::ReadOnly,
        Mode::Edit,
        Mode::Unrestricted,
    ];

    fn mode() -> impl Strategy<Value = Mode> {
        prop::sample::select(&MODES[..])
    }

    fn network() -> impl Strategy<Value = Network> {
        let rule = prop::sample::select(vec![
            "*:443",
            "*:80",
            "10.0.0.0/8:443",
            "10.1.0.0/16:443",
            "[::1]:80",
        ]);
        prop_oneof![
            Just(Network::None),
            Just(Network::All),
            prop::collection::vec(rule, 0..4).prop_map(|rules| Network::List(
                rules.iter().map(|rule| rule.parse().unwrap()).collect()
            )),
        ]
    }

    fn roots() -> impl Strategy<Value = Vec<PathBuf>> {
        let paths = vec![
            "/srv",
            "/srv/app",
            "/srv/app/log",
            "/srv-2",
            "/home/ada",
            "/",
        ];
        prop::collection::vec(prop::sample::select(paths), 0..4)
            .prop_map(|paths| paths.into_iter().map(PathBuf::from).collect())
    }

    prop_compose! {
        fn table()(
            mode in mode(),
            roots in roots(),
            network in prop::option::of(network()),
        ) -> Table {
            Table {
                mode,
                roots: outermost(roots),
                network,
                readable: Vec::new(),
                hidden: Vec::new(),
                programs: Vec::new(),
                actions: Default::default(),
                users: None,
                scratch_bytes: 0,
            }
        }
    }

    prop_compose! {
        fn asked()(
            mode in prop::option::of(mode()),
            network in prop::option::of(network()),
            roots in roots(),
        ) -> Asked {
            Asked { mode, network, roots }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_ever_more_than_anybody_said(
            table in table(),
            limit in prop::option::of(mode()),
            asked in asked(),
        ) {
            let most = table.mode.min(limit.unwrap_or(Mode::Unrestricted));
            match decide(&table, limit, &asked) {
                Err(refusal) => prop_assert!(!refusal.message.is_empty()),
                Ok(Decision::Free) => {
                    prop_assert_eq!(most, Mode::Unrestricted);
                    prop_assert!(matches!(asked.mode, None | Some(Mode::Unrestricted)));
                    prop_assert!(matches!(asked.network, None | Some(Network::All)));
                }
                Ok(Decision::Confined { mode, network, roots }) => {
                    prop_assert!(mode <= most && mode > Mode::Disabled);
                    prop_assert!(asked.mode.is_none_or(|asked| mode <= asked));
                    if let Some(most) = &table.network {
                        prop_assert!(network.is_within(most));
                    }
                    if let Some(most) = &asked.network {
                        prop_assert!(network.is_within(most));
                    } else if mode == Mode::ReadOnly {
                        prop_assert_eq!(&network, &Network::None);
                    }
                    prop_assert!(mode == Mode::Edit || roots.is_empty());
                    for root in &roots {
                        prop_assert!(table.roots.iter().any(|most| root.starts_with(most)));
                        let named = |most: &PathBuf| root.starts_with(most);
                        prop_assert!(asked.roots.is_empty() || asked.roots.iter().any(named));
                    }
                }
            }
        }

        #[test]
        fn a_lower_limit_never_gives_more(
            table in table(),
            limit in mode(),
            asked in asked(),
        ) {
            let without = decide(&table, None, &asked);
            let with = decide(&table, Some(limit), &asked);
            if let (Ok(without), Ok(with)) = (&without, &with) {
                prop_assert!(with.mode() <= without.mode());
            }
            // A task that a limit lowers to read-only may lose what stood in its way, but for what it asked for.
            if asked.mode.is_some() && without.is_err() {
                prop_assert!(with.is_err());
            }
        }
    }

    #[test]
    fn what_is_refused_says_why() {
        let table = Table {
            mode: Mode::Edit,
            roots: vec!["/srv".into()],
            network: None,
            readable: Vec::new(),
            hidden: Vec::new(),
            programs: Vec::new(),
            actions: Default::default(),
            users: None,
            scratch_bytes: 0,
        };
        let reason = |limit, asked: &Asked| decide(&table, limit, asked).unwrap_err().reason;
        let asking = |mode| Asked {
            mode: Some(mode),
            ..Asked::default()
        };
        assert_eq!(
            reason(None, &asking(Mode::Unrestricted)),
            Reason::ModeTooHigh
        );
        let limit = Some(Mode::ReadOnly);
        assert_eq!(reason(limit, &asking(Mode::Edit)), Reason::ModeTooHigh);
        let limit = Some(Mode::Disabled);
        assert_eq!(reason(limit, &Asked::default()), Reason::ModeDisabled);
        let elsewhere = Asked {
            roots: vec!["/etc".into()],
            ..Asked::default()
        };
        assert_eq!(reason(None, &elsewhere), Reason::PathDenied);
    }

    #[test]
    fn links_are_followed_before_a_root_is_looked_at() {
        let confinement = Confinement {
            roots: vec!["/srv/link".to_owned()],
            ..Confinement::default()
        };
        let asked = Asked::read(&confinement, |_| Ok("/etc".into())).unwrap();
        assert_eq!(asked.roots, [PathBuf::from("/etc")]);
        let relative = Confinement {
            roots: vec!["srv".to_owned()],
            ..Confinement::default()
        };
        assert!(Asked::read(&relative, |path| Ok(path.to_owned())).is_err());
    }
}
