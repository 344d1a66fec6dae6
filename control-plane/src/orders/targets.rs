//! Which hosts somebody means, of those that it may see.

use std::sync::Arc;

use muster_proto::v1::Reason;

use super::Orders;
use crate::{
    hosts::{Host, Inventory, SelectError},
    model::Refusal,
    policy::Right,
    rights::Asker,
    selector::Selector,
};

/// Tasks of one job. An inventory of this size is beyond what one control plane is built for.
pub(crate) const TARGETS_MAX: usize = 50_000;

/// The host of that name or id, if it may be seen.
pub(crate) fn seen(inventory: &Inventory, asker: &Asker, word: &str) -> Result<Arc<Host>, Refusal> {
    inventory
        .find(word)
        .ok()
        .filter(|host| asker.may(Right::HostRead, host))
        .ok_or_else(|| {
            let word = word.chars().take(80).collect();
            SelectError::HostNotFound(word).into()
        })
}

/// Hosts that the selector means and the asker may read. Each that is named must be among them.
pub(crate) fn select(
    inventory: &Inventory,
    asker: &Asker,
    selector: &Selector,
) -> Result<Vec<Arc<Host>>, Refusal> {
    let mut found = inventory.select(selector)?;
    if let Selector::Hosts(words) = selector {
        for word in words {
            seen(inventory, asker, word)?;
        }
    }
    found.retain(|host| asker.may(Right::HostRead, host));
    Ok(found)
}

impl Orders {
    /// The hosts of an order.
    pub(super) fn targets(
        &self,
        asker: &Asker,
        selector: &Selector,
    ) -> Result<Vec<Arc<Host>>, Refusal> {
        let hosts = select(&self.inventory, asker, selector)?;
        if hosts.is_empty() {
            return Err(Refusal::new(
                Reason::NoHostMatches,
                "no host matches the selector; `host list` shows names, labels and facts",
            ));
        }
        if hosts.len() > TARGETS_MAX {
            return Err(Refusal::new(
                Reason::LimitExceeded,
                format!(
                    "selector: {} hosts match; a job has at most {TARGETS_MAX}",
                    hosts.len()
                ),
            ));
        }
        Ok(hosts)
    }
}
