//! What a host permits, in words for whoever asks on it.

use serde::{Deserialize, Serialize};

use crate::actions as kinds;

/// What a host permits, for whoever asks on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permits {
    /// The highest mode of a task now.
    pub mode: String,
    /// The mode of the host's own policy.
    pub own: String,
    /// What the control plane has lowered it to, if it has.
    pub limit: Option<String>,
    /// Where a task in mode `edit` may write.
    pub roots: Vec<String>,
    /// The network of a task in mode `edit`.
    pub network: String,
    /// The kinds of action that may run; empty from an agent that does not say.
    #[serde(default)]
    pub actions: Vec<String>,
    /// Why no task can be confined here, if that is so.
    pub unenforceable: Option<String>,
}

impl Permits {
    /// The same for a caller that gets no more than `edit`, as AI clients do.
    pub fn at_most_edit(&self) -> Self {
        let mode = match self.mode.as_str() {
            "unrestricted" => "edit".to_owned(),
            _ => self.mode.clone(),
        };
        Self {
            own: mode.clone(),
            mode,
            ..self.clone()
        }
    }

    /// In one line.
    pub fn describe(&self) -> String {
        let mut text = match self.mode.as_str() {
            "unrestricted" => "unrestricted: tasks may do whatever their user may".to_owned(),
            "edit" => "edit at most".to_owned(),
            "read-only" => "read-only: tasks write nothing but a scratch directory".to_owned(),
            other => format!("{other}: nothing runs here"),
        };
        if self.mode == "edit" {
            let roots = match self.roots.is_empty() {
                true => "nowhere".to_owned(),
                false => format!("below {}", self.roots.join(", ")),
            };
            text.push_str(&format!(": tasks write {roots}; network {}", self.network));
        }
        let (actions, all) = (&self.actions, kinds::ALL);
        if !actions.is_empty() && actions.len() < all.len() {
            text.push_str(&format!(
                "; of the kinds of action only {}",
                actions.join(", ")
            ));
        }
        if self.mode != self.own {
            text.push_str(&format!(
                " (limited by the control plane; its own policy permits {})",
                self.own
            ));
        }
        if let Some(cause) = self
            .unenforceable
            .as_ref()
            .filter(|_| self.mode != "disabled")
        {
            text.push_str(&format!(
                "; tasks that are to be confined are refused: {cause}"
            ));
        }
        text
    }
}
