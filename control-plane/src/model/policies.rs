//! Policies as they are written.

use std::collections::BTreeMap;

/// Files of a set of policies by name.
pub(crate) type Files = BTreeMap<String, String>;
