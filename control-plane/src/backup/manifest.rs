//! What a backup says of itself, and when it may take the place of a ledger. Pure.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

/// The name of the manifest in a backup.
pub(super) const NAME: &str = "manifest.json";

/// The layout that this version writes and reads.
const FORMAT: u32 = 1;

/// Without these no control plane comes back as itself.
pub(super) const KEYS: [&str; 4] = ["ca.key", "ca.pem", "seal.key", "access.key"];

/// Kept too where they are there: the authorities, once there was a rotation, and the keys of values that look secret,
/// without which jobs that wait could not be done.
pub(super) const OPTIONAL: [&str; 2] = [crate::authority::FILE, crate::secrets::FILE];

/// The ledger's name.
pub(super) const LEDGER: &str = "ledger.db";

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The layout.
    pub(super) format: u32,
    /// The version of Muster that made it.
    pub(super) muster_version: String,
    /// When, as RFC 3339.
    pub(super) create_time: String,
    /// Names the control plane.
    pub(super) control_plane_id: String,
    /// Its generation then.
    pub(super) generation: String,
    /// How far its ledger had come.
    pub(super) ledger_position: i64,
    /// The newest migration of its ledger.
    pub(super) schema: i64,
    /// Every file beside the manifest.
    pub(super) files: Vec<Entry>,
}

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Its path in the backup, with "/".
    pub(super) name: String,
    /// Its length.
    pub(super) bytes: u64,
    /// Its SHA-256, in hex.
    pub(super) sha256: String,
}

impl Manifest {
    /// A manifest of this version's layout.
    pub(super) fn new(about: &crate::store::backup::About, create_time: String) -> Self {
        Self {
            format: FORMAT,
            muster_version: env!("CARGO_PKG_VERSION").to_owned(),
            create_time,
            control_plane_id: about.control_plane_id.clone(),
            generation: about.generation.clone(),
            ledger_position: about.position,
            schema: about.schema,
            files: Vec::new(),
        }
    }

    /// Why this version cannot restore it.
    pub(super) fn refusal(&self, schema: i64) -> Option<String> {
        if self.format != FORMAT {
            return Some(format!(
                "its layout is {}, and this version reads {FORMAT}: use Muster {}",
                self.format, self.muster_version
            ));
        }
        if self.schema > schema {
            return Some(format!(
                "its ledger was made by a newer Muster (schema {}, this one knows {schema}): use Muster {} or a \
                 later one",
                self.schema, self.muster_version
            ));
        }
        let missing = KEYS
            .iter()
            .chain([&LEDGER])
            .find(|name| self.files.iter().all(|file| file.name != **name));
        if let Some(name) = missing {
            return Some(format!("it does not hold {name}"));
        }
        let odd = self.files.iter().find(|file| !is_plain(&file.name));
        odd.map(|file| format!("it names a file {:?}, which no backup has", file.name))
    }
}

/// Whether a name in a backup is one that a backup has, and stays below it.
pub(super) fn is_plain(name: &str) -> bool {
    let path = Path::new(name);
    let normal = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let known = KEYS.contains(&name)
        || OPTIONAL.contains(&name)
        || [LEDGER, NAME, "output/index.db"].contains(&name)
        || name.strip_prefix("output/").is_some_and(|file| {
            file.strip_suffix(".segment").is_some_and(|number| {
                number.len() == 8 && number.bytes().all(|digit| digit.is_ascii_hexdigit())
            })
        });
    normal && known
}

/// A ledger that stands where a backup is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Present {
    /// There is none.
    Nothing,
    /// This one.
    Ledger {
        /// Names its control plane.
        control_plane_id: String,
        /// Its generation.
        generation: String,
        /// How far it has come.
        position: i64,
    },
    /// There is one, and it cannot be read.
    Unreadable(String),
}

/// Why a backup may not take the place of what is present.
pub(super) fn objection(present: &Present, backup: &Manifest) -> Option<String> {
    match present {
        Present::Nothing => None,
        Present::Unreadable(why) => Some(format!("it holds a ledger that cannot be read ({why})")),
        Present::Ledger {
            control_plane_id, ..
        } if *control_plane_id != backup.control_plane_id => {
            Some("it holds another control plane".to_owned())
        }
        Present::Ledger { generation, .. } if *generation != backup.generation => {
            Some("its ledger and the backup are of different generations: one of them was restored since".to_owned())
        }
        Present::Ledger { position, .. } if *position > backup.ledger_position => Some(format!(
            "its ledger is newer: {} commits have come since the backup",
            position - backup.ledger_position
        )),
        Present::Ledger { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let file = |name: &str| Entry {
            name: name.to_owned(),
            bytes: 1,
            sha256: String::new(),
        };
        Manifest {
            format: FORMAT,
            muster_version: "0.1.0".to_owned(),
            create_time: String::new(),
            control_plane_id: "plane".to_owned(),
            generation: "first".to_owned(),
            ledger_position: 7,
            schema: 6,
            files: KEYS
                .iter()
                .chain([&LEDGER])
                .map(|name| file(name))
                .collect(),
        }
    }

    #[test]
    fn a_backup_of_a_newer_version_or_without_a_key_is_refused() {
        assert_eq!(manifest().refusal(6), None);
        assert!(manifest().refusal(5).unwrap().contains("newer"));
        let mut other = manifest();
        other.format = 2;
        assert!(other.refusal(6).unwrap().contains("layout"));
        let mut keyless = manifest();
        keyless.files.retain(|file| file.name != "seal.key");
        assert!(keyless.refusal(6).unwrap().contains("seal.key"));
        let mut odd = manifest();
        odd.files[0].name = "../ca.key".to_owned();
        odd.files.push(manifest().files[0].clone());
        assert!(odd.refusal(6).unwrap().contains("../ca.key"));
    }

    #[test]
    fn names_stay_below_the_backup() {
        for name in ["ledger.db", "output/index.db", "output/0000000a.segment"] {
            assert!(is_plain(name), "{name}");
        }
        for name in [
            "",
            "/ledger.db",
            "../ledger.db",
            "output/../ca.key",
            "output/x.segment",
            "lock",
        ] {
            assert!(!is_plain(name), "{name}");
        }
    }

    #[test]
    fn a_newer_ledger_or_another_control_plane_is_not_replaced() {
        let ledger = |plane: &str, generation: &str, position| Present::Ledger {
            control_plane_id: plane.to_owned(),
            generation: generation.to_owned(),
            position,
        };
        assert_eq!(objection(&Present::Nothing, &manifest()), None);
        assert_eq!(objection(&ledger("plane", "first", 7), &manifest()), None);
        for present in [
            ledger("plane", "first", 8),
            ledger("plane", "second", 1),
            ledger("other", "first", 1),
            Present::Unreadable("damaged".to_owned()),
        ] {
            assert!(objection(&present, &manifest()).is_some(), "{present:?}");
        }
    }
}
