//! Sessions of the older protocol: each belongs to the principal that opened it, and there are only
//! so many. Newer clients have none.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::Stream;
use parking_lot::Mutex;
use rmcp::{
    model::{ClientJsonRpcMessage, GetExtensions as _, ServerJsonRpcMessage},
    transport::streamable_http_server::{
        SessionId, SessionManager,
        session::{
            ServerSseMessage,
            local::{LocalSessionManager, LocalSessionManagerError},
        },
    },
};

use crate::control_plane::Caller;

/// Sessions of one principal; the one that was used longest ago makes room for the next.
const PER_PRINCIPAL: usize = 64;
/// Sessions in all, by the same rule.
const IN_ALL: usize = 1_024;
/// A session that nobody uses for so long is closed. Clients open the next one by themselves.
const IDLE: Duration = Duration::from_secs(3_600);

/// The sessions that are open, and whose they are.
pub(super) struct Sessions {
    local: LocalSessionManager,
    owners: Mutex<HashMap<SessionId, Owner>>,
}

struct Owner {
    principal: Arc<str>,
    used: Instant,
}

impl Sessions {
    pub(super) fn new() -> Self {
        let mut local = LocalSessionManager::default();
        local.session_config.keep_alive = Some(IDLE);
        Self {
            local,
            owners: Mutex::default(),
        }
    }

    /// Notes that `principal` uses a session; `false` if it is not there or somebody else's.
    pub(super) fn touch(&self, id: &str, principal: &str) -> bool {
        let mut owners = self.owners.lock();
        let Some(owner) = owners.get_mut(id) else {
            return false;
        };
        owner.used = Instant::now();
        &*owner.principal == principal
    }

    /// Enters a session and returns those that make room for it.
    fn enter(&self, id: &SessionId, principal: Arc<str>) -> Vec<SessionId> {
        let mut owners = self.owners.lock();
        let mut left = Vec::new();
        while let Some(id) = surplus(&owners, &principal) {
            owners.remove(&id);
            left.push(id);
        }
        let used = Instant::now();
        owners.insert(id.clone(), Owner { principal, used });
        left
    }
}

fn surplus(owners: &HashMap<SessionId, Owner>, principal: &str) -> Option<SessionId> {
    let oldest = |ours: bool| {
        owners
            .iter()
            .filter(|(_, owner)| !ours || &*owner.principal == principal)
            .min_by_key(|(_, owner)| owner.used)
            .map(|(id, _)| id.clone())
    };
    let ours = owners
        .values()
        .filter(|owner| &*owner.principal == principal)
        .count();
    if ours >= PER_PRINCIPAL {
        oldest(true)
    } else if owners.len() >= IN_ALL {
        oldest(false)
    } else {
        None
    }
}

fn caller(message: &ClientJsonRpcMessage) -> Option<Caller> {
    let ClientJsonRpcMessage::Request(request) = message else {
        return None;
    };
    let parts = request.request.extensions().get::<http::request::Parts>()?;
    parts.extensions.get::<Caller>().cloned()
}

impl SessionManager for Sessions {
    type Error = LocalSessionManagerError;
    type Transport = <LocalSessionManager as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), Self::Error> {
        self.local.create_session().await
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Self::Error> {
        let Some(caller) = caller(&message) else {
            // Nobody gets here without a caller; a session without an owner could be used by none.
            return Err(LocalSessionManagerError::SessionNotFound(id.clone()));
        };
        for old in self.enter(id, caller.principal) {
            self.local.close_session(&old).await?;
        }
        self.local.initialize_session(id, message).await
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, Self::Error> {
        self.local.has_session(id).await
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), Self::Error> {
        self.owners.lock().remove(id);
        self.local.close_session(id).await
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        self.local.create_stream(id, message).await
    }

    async fn accept_message(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<(), Self::Error> {
        self.local.accept_message(id, message).await
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        self.local.create_standalone_stream(id).await
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        self.local.resume(id, last_event_id).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_belongs_to_who_opened_it() {
        let sessions = Sessions::new();
        let id: SessionId = "s-1".into();
        assert!(sessions.enter(&id, "ai/one".into()).is_empty());
        assert!(sessions.touch("s-1", "ai/one"));
        assert!(!sessions.touch("s-1", "ai/two"));
        assert!(!sessions.touch("s-2", "ai/one"));
        sessions.close_session(&id).await.unwrap();
        assert!(!sessions.touch("s-1", "ai/one"));
    }

    #[test]
    fn the_session_used_longest_ago_makes_room() {
        let sessions = Sessions::new();
        for n in 0..PER_PRINCIPAL {
            let id: SessionId = format!("s-{n}").into();
            assert!(sessions.enter(&id, "ai/one".into()).is_empty());
        }
        assert!(sessions.touch("s-0", "ai/one"));
        let left = sessions.enter(&"next".into(), "ai/one".into());
        assert_eq!(left, ["s-1".into()]);
        assert!(sessions.enter(&"other".into(), "ai/two".into()).is_empty());
    }
}
