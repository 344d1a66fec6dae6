//! The operators' door to the inventory.

mod messages;

use std::{collections::HashSet, pin::Pin, sync::Arc};

use futures_util::Stream;
use muster_proto::{
    ids::HostId,
    v1::{self, PrincipalKind, Reason, host_service_server::HostService},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use self::messages::{host_message, instruction_message};
use super::{
    caller::Caller,
    page::{self, Query},
};
use crate::{
    audit,
    hosts::{Edit, Host, Inventory},
    model::{Labels, Mode, mode_in},
    orders::targets,
    policy::{Circumstances, Right},
    selector::Selector,
    sessions::Sessions,
    wire::status,
};

/// Hosts in one message of a watch.
const WATCH_BATCH: usize = 200;

/// Messages that a watcher may be behind; then it gets the newest state later.
const WATCH_QUEUE: usize = 4;

/// Tasks of a host that are not final.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Load {
    pub(crate) running: i32,
    pub(crate) pending: i32,
    /// Those of the pending ones that an operator has to release.
    pub(crate) held: i32,
}

/// Says how many tasks a host has now.
pub(crate) type LoadOf = Arc<dyn Fn(HostId) -> Load + Send + Sync>;

/// `muster.v1.HostService`.
pub(crate) struct HostDoor {
    inventory: Inventory,
    connections: Sessions,
    load: LoadOf,
}

impl HostDoor {
    /// A door to `inventory`, whose hosts are told over `connections`; `load` knows the tasks.
    pub(crate) fn new(inventory: Inventory, connections: Sessions, load: LoadOf) -> Self {
        Self {
            inventory,
            connections,
            load,
        }
    }

    /// The host, if the caller may read it: else there is none.
    fn find(&self, caller: &Caller, word: &str) -> Result<Arc<Host>, Status> {
        if word.is_empty() {
            return Err(status::invalid("host", "is empty; give a name or an id"));
        }
        let host = targets::seen(&self.inventory, caller, word)?;
        audit::hosts([host.id]);
        Ok(host)
    }

    /// The host, if the caller may do this to it.
    fn find_for(&self, caller: &Caller, right: Right, word: &str) -> Result<Arc<Host>, Status> {
        let host = self.find(caller, word)?;
        caller.need(right, &host, Circumstances::default())?;
        Ok(host)
    }

    fn message(&self, host: &Host) -> v1::Host {
        host_message(host, (self.load)(host.id))
    }
}

/// An empty selector means all hosts here, where nothing is run.
fn selector(text: &str) -> Result<Selector, Status> {
    if text.is_empty() {
        return Ok(Selector::All);
    }
    Selector::parse(text).map_err(status::of)
}

type HostStream = Pin<Box<dyn Stream<Item = Result<v1::WatchHostsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl HostService for HostDoor {
    async fn list_hosts(
        &self,
        request: Request<v1::ListHostsRequest>,
    ) -> Result<Response<v1::ListHostsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let asked = request.into_inner();
        let query = Query::new(&[
            "ListHosts",
            &caller.principal,
            &asked.selector,
            &asked.query,
        ]);
        let from = query.place(&asked.page_token)?.unwrap_or_default();
        let size = page::size(asked.page_size, 100, 1000)?;
        let text = asked.query.to_lowercase();
        let mut found = targets::select(&self.inventory, &caller, &selector(&asked.selector)?)?;
        found.retain(|host| host.contains(&text));
        let total = found.len();
        found.retain(|host| host.name >= from);
        let next_page_token = found.get(size).map(|next| query.token(&next.name));
        Ok(Response::new(v1::ListHostsResponse {
            hosts: found
                .iter()
                .take(size)
                .map(|host| self.message(host))
                .collect(),
            next_page_token: next_page_token.unwrap_or_default(),
            total_size: i32::try_from(total).unwrap_or(i32::MAX),
        }))
    }

    async fn get_host(
        &self,
        request: Request<v1::GetHostRequest>,
    ) -> Result<Response<v1::GetHostResponse>, Status> {
        let caller = Caller::of(&request)?;
        let host = self.find(&caller, &request.get_ref().host)?;
        let host = Some(self.message(&host));
        Ok(Response::new(v1::GetHostResponse { host }))
    }

    type WatchHostsStream = HostStream;

    async fn watch_hosts(
        &self,
        request: Request<v1::WatchHostsRequest>,
    ) -> Result<Response<HostStream>, Status> {
        let caller = Caller::of(&request)?;
        let selector = selector(&request.get_ref().selector)?;
        targets::select(&self.inventory, &caller, &selector)?;
        let (updates, stream) = mpsc::channel(WATCH_QUEUE);
        let watch = Watch {
            inventory: self.inventory.clone(),
            load: Arc::clone(&self.load),
            rights: caller.policy_changed(),
            caller,
            selector,
            shown: HashSet::new(),
            updates,
        };
        tokio::spawn(watch.run());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn update_host(
        &self,
        request: Request<v1::UpdateHostRequest>,
    ) -> Result<Response<v1::UpdateHostResponse>, Status> {
        let caller = Caller::of(&request)?;
        let asked = request.into_inner();
        let host = self.find_for(&caller, Right::HostUpdate, &asked.host)?;
        let edit = edit(asked)?;
        if edit.name.is_some() && caller.kind == PrincipalKind::Ai {
            return Err(status::refuse(
                Reason::NotAllowed,
                "an ai may not rename a host; ask an operator",
            ));
        }
        // Labels are what policies see: whoever changes them must have the right to what the host becomes, too.
        let host = self
            .inventory
            .update(host.id, edit, |host, becomes| {
                caller.may(Right::HostUpdate, host)
                    && caller.may_to(Right::HostUpdate, &host.id_text, becomes)
            })
            .await
            .map_err(status::of)?;
        let host = Some(self.message(&host));
        Ok(Response::new(v1::UpdateHostResponse { host }))
    }

    async fn set_instruction(
        &self,
        request: Request<v1::SetInstructionRequest>,
    ) -> Result<Response<v1::SetInstructionResponse>, Status> {
        let caller = Caller::of(&request)?;
        let asked = request.into_inner();
        let host = self.find_for(&caller, Right::HostInstruct, &asked.host)?;
        let instruction = self
            .inventory
            .set_instruction(host.id, &asked.text, &asked.etag, &caller.principal)
            .await
            .map_err(status::of)?;
        let instruction = Some(instruction_message(&instruction));
        Ok(Response::new(v1::SetInstructionResponse { instruction }))
    }

    async fn list_instructions(
        &self,
        request: Request<v1::ListInstructionsRequest>,
    ) -> Result<Response<v1::ListInstructionsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let asked = request.into_inner();
        let host = self.find(&caller, &asked.host)?;
        let query = Query::new(&["ListInstructions", &caller.principal, &host.id_text]);
        let before = query
            .place(&asked.page_token)?
            .and_then(|place| place.parse().ok())
            .unwrap_or(i64::MAX);
        let size = page::size(asked.page_size, 20, 100)?;
        let mut found = self
            .inventory
            .instructions(host.id, before, i64::try_from(size + 1).unwrap_or(i64::MAX))
            .await
            .map_err(status::of)?;
        let more = found.len() > size;
        found.truncate(size);
        let next_page_token = found
            .last()
            .filter(|_| more)
            .map(|last| query.token(&last.version.to_string()));
        Ok(Response::new(v1::ListInstructionsResponse {
            instructions: found.iter().map(instruction_message).collect(),
            next_page_token: next_page_token.unwrap_or_default(),
        }))
    }

    async fn lock_host(
        &self,
        request: Request<v1::LockHostRequest>,
    ) -> Result<Response<v1::LockHostResponse>, Status> {
        let caller = Caller::of(&request)?;
        let asked = request.into_inner();
        let host = self.find_for(&caller, Right::HostLock, &asked.host)?;
        let host = self
            .inventory
            .lock(host.id, &caller.principal, &asked.note)
            .await
            .map_err(status::of)?;
        tracing::info!(host.id = %host.id, "{} locked host {}", caller.principal, host.name);
        let host = Some(self.message(&host));
        Ok(Response::new(v1::LockHostResponse { host }))
    }

    async fn unlock_host(
        &self,
        request: Request<v1::UnlockHostRequest>,
    ) -> Result<Response<v1::UnlockHostResponse>, Status> {
        let caller = Caller::of(&request)?;
        let host = self.find_for(&caller, Right::HostLock, &request.get_ref().host)?;
        let host = self.inventory.unlock(host.id).await.map_err(status::of)?;
        tracing::info!(host.id = %host.id, "{} unlocked host {}", caller.principal, host.name);
        let host = Some(self.message(&host));
        Ok(Response::new(v1::UnlockHostResponse { host }))
    }

    async fn remove_host(
        &self,
        request: Request<v1::RemoveHostRequest>,
    ) -> Result<Response<v1::RemoveHostResponse>, Status> {
        let caller = Caller::of(&request)?;
        let host = self.find_for(&caller, Right::HostRemove, &request.get_ref().host)?;
        self.inventory.remove(host.id).await.map_err(status::of)?;
        tracing::info!(host.id = %host.id, "{} removed host {}", caller.principal, host.name);
        Ok(Response::new(v1::RemoveHostResponse {}))
    }

    async fn set_host_mode(
        &self,
        request: Request<v1::SetHostModeRequest>,
    ) -> Result<Response<v1::SetHostModeResponse>, Status> {
        let caller = Caller::of(&request)?;
        let asked = request.into_inner();
        let mode =
            v1::Mode::try_from(asked.mode).map_err(|_| status::invalid("mode", "is unknown"))?;
        let limit = mode_in(mode);
        let host = self.find(&caller, &asked.host)?;
        let how = Circumstances {
            mode: Some(limit.unwrap_or(Mode::Unrestricted)),
            ..Circumstances::default()
        };
        caller.need(Right::HostMode, &host, how)?;
        let host = self
            .inventory
            .set_mode_limit(host.id, limit, &asked.note)
            .await
            .map_err(status::of)?;
        self.connections.tell_policy(host.id, &self.inventory);
        let said = limit.map_or("its own mode", Mode::text);
        tracing::info!(host.id = %host.id, "{} set host {} to {said}", caller.principal, host.name);
        let host = Some(self.message(&host));
        Ok(Response::new(v1::SetHostModeResponse { host }))
    }
}

/// What an update asks for, by its mask.
fn edit(asked: v1::UpdateHostRequest) -> Result<Edit, Status> {
    let mask = asked.update_mask.unwrap_or_default().paths;
    if mask.is_empty() {
        return Err(status::invalid(
            "update_mask",
            "is empty; name \"name\", \"labels\" or \"labels.KEY\"",
        ));
    }
    let mut labels: Labels = asked.labels.into_iter().collect();
    let mut edit = Edit::default();
    for path in mask {
        match path.split_once('.') {
            None if path == "name" => edit.name = Some(asked.name.clone()),
            None if path == "labels" => edit.labels = Some(labels.clone()),
            Some(("labels", key)) => edit.label.push((key.to_owned(), labels.remove(key))),
            _ => {
                return Err(status::invalid(
                    "update_mask",
                    &format!("{path:?} is not \"name\", \"labels\" or \"labels.KEY\""),
                ));
            }
        }
    }
    Ok(edit)
}

/// One watcher of the inventory.
struct Watch {
    inventory: Inventory,
    load: LoadOf,
    caller: Caller,
    /// Moves when the caller's rights may have changed.
    rights: tokio::sync::watch::Receiver<u64>,
    selector: Selector,
    shown: HashSet<HostId>,
    updates: mpsc::Sender<Result<v1::WatchHostsResponse, Status>>,
}

impl Watch {
    async fn run(mut self) {
        let mut moved = self.inventory.version();
        let mut seen = 0;
        let mut caught_up = false;
        loop {
            moved.borrow_and_update();
            if self.rights.has_changed().unwrap_or(false) {
                self.rights.borrow_and_update();
                self.caller = self.caller.renewed();
                // Whatever was shown or left out is judged anew.
                seen = 0;
            }
            let (version, changed, removed) = self.inventory.changed_since(seen);
            seen = version;
            let had_some = !self.shown.is_empty();
            if self.tell(&changed, removed, !caught_up).await.is_err() {
                return;
            }
            caught_up = true;
            if had_some && self.shown.is_empty() && !self.sees_any() {
                let refusal = self.caller.no_longer().into();
                let _ = self.updates.send(Err(refusal)).await;
                return;
            }
            tokio::select! {
                changed = moved.changed() => if changed.is_err() { return },
                _ = self.rights.changed() => self.rights.mark_changed(),
                () = self.updates.closed() => return,
            }
        }
    }

    fn sees_any(&self) -> bool {
        let hosts = self.inventory.everything();
        hosts
            .iter()
            .any(|host| self.caller.may(Right::HostRead, host))
    }

    /// Sends what changed. `Err` when nobody listens any more.
    async fn tell(
        &mut self,
        changed: &[Arc<Host>],
        removed: Vec<HostId>,
        first: bool,
    ) -> Result<(), ()> {
        let mut gone: Vec<HostId> = removed
            .into_iter()
            .filter(|id| self.shown.remove(id))
            .collect();
        let mut hosts = Vec::new();
        for host in changed {
            if self.selector.matches(host.as_ref()) && self.caller.may(Right::HostRead, host) {
                self.shown.insert(host.id);
                hosts.push(host_message(host, (self.load)(host.id)));
            } else if self.shown.remove(&host.id) {
                gone.push(host.id);
            }
        }
        let mut rest = hosts.into_iter().peekable();
        while rest.peek().is_some() || !gone.is_empty() || first {
            let update = v1::WatchHostsResponse {
                hosts: rest.by_ref().take(WATCH_BATCH).collect(),
                removed_host_ids: gone.drain(..).map(|id| id.to_string()).collect(),
                caught_up: rest.peek().is_none(),
            };
            let last = update.caught_up;
            self.updates.send(Ok(update)).await.map_err(drop)?;
            if last {
                break;
            }
        }
        Ok(())
    }
}
