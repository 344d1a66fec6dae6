//! The door to the audit log.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::Stream;
use muster_client::audit::{Head, header, last_line};
use muster_proto::v1::{
    AuditEntry, ExportAuditRequest, ExportAuditResponse, GetAuditHeadRequest, GetAuditHeadResponse,
    ListAuditRequest, ListAuditResponse, Reason, audit_service_server::AuditService,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    caller::Caller,
    page::{self, Query},
};
use crate::{
    audit::Heads,
    hosts::Inventory,
    jobs::Jobs,
    store::{AuditFilter, Store, StoreError},
    times,
    wire::status,
};

/// Entries that one page looks at: a filter that keeps few costs no more than this.
const LOOKED_AT_MAX: i64 = 50_000;

/// Entries of an export that are read at once.
const EXPORT_EACH: i64 = 1000;

/// Bytes of lines in one message.
const MESSAGE_BYTES: usize = 512 << 10;

/// Messages that whoever takes an export may be behind.
const EXPORT_QUEUE: usize = 4;

/// `muster.v1.AuditService`.
pub(crate) struct AuditDoor {
    pub(crate) store: Store,
    /// Entries of jobs are written with them.
    pub(crate) jobs: Jobs,
    pub(crate) heads: Heads,
    pub(crate) inventory: Inventory,
}

type Lines = Pin<Box<dyn Stream<Item = Result<ExportAuditResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AuditService for AuditDoor {
    async fn list_audit(
        &self,
        request: Request<ListAuditRequest>,
    ) -> Result<Response<ListAuditResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let size = page::size(request.page_size, 100, 1000)?;
        let from = request.time_from.as_ref().map(times::millis);
        let to = request.time_to.as_ref().map(times::millis);
        let query = Query::new(&[
            "ListAudit",
            &caller.principal,
            &request.principal,
            &request.method,
            &request.host,
            &request.verdict,
            &format!("{from:?} {to:?}"),
        ]);
        let before = match query.place(&request.page_token)? {
            None => i64::MAX,
            Some(place) => place.parse().map_err(|_| {
                status::refuse(Reason::PageTokenInvalid, "page_token: it is malformed")
            })?,
        };
        let host = match request.host.as_str() {
            "" => None,
            // One that is gone has its entries still.
            word => Some(match word.parse() {
                Ok(id) => id,
                Err(_) => self.inventory.find(word).map_err(status::of)?.id,
            }),
        };
        let filter = AuditFilter {
            from,
            to,
            principal: request.principal,
            method: request.method,
            host,
            verdict: request.verdict,
        };
        // A log that cannot be added to, as on a full disk, can still be read.
        let _ = self.jobs.written_now().await;
        let limit = i64::try_from(size).unwrap_or(i64::MAX);
        let (entries, next) = self
            .store
            .audit_page(&filter, before, limit, LOOKED_AT_MAX)
            .await
            .map_err(status::of)?;
        let entries = entries.into_iter().map(|row| AuditEntry {
            number: row.number,
            time: Some(times::timestamp(row.time)),
            entry: row.entry,
            hash: Bytes::copy_from_slice(&row.hash),
        });
        Ok(Response::new(ListAuditResponse {
            entries: entries.collect(),
            next_page_token: next.map_or(String::new(), |next| query.token(&next.to_string())),
        }))
    }

    type ExportAuditStream = Lines;

    async fn export_audit(
        &self,
        request: Request<ExportAuditRequest>,
    ) -> Result<Response<Lines>, Status> {
        let after = request.into_inner().after;
        if after < 0 {
            return Err(status::invalid("after", "is not negative"));
        }
        let _ = (self.jobs.written_now().await).map_err(status::of)?;
        let head = self.heads.publish().await.map_err(status::of)?;
        let count = i64::try_from(head.position.count).unwrap_or(i64::MAX);
        if after > count {
            return Err(status::invalid(
                "after",
                &format!("the log has {count} entries"),
            ));
        }
        let (lines, stream) = mpsc::channel(EXPORT_QUEUE);
        let (store, id) = (self.store.clone(), Arc::clone(&self.store.control_plane_id));
        tokio::spawn(async move {
            if let Err(error) = export(&store, &id, after, &head, &lines).await {
                let _ = lines.send(Err(status::of(error))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn get_audit_head(
        &self,
        _: Request<GetAuditHeadRequest>,
    ) -> Result<Response<GetAuditHeadResponse>, Status> {
        let head = self.heads.sign().await.map_err(status::of)?;
        Ok(Response::new(GetAuditHeadResponse {
            head: Some(head.signed),
        }))
    }
}

/// Sends the lines of an export. Whoever takes them may go away at any time.
async fn export(
    store: &Store,
    control_plane: &str,
    after: i64,
    head: &Head,
    lines: &mpsc::Sender<Result<ExportAuditResponse, Status>>,
) -> Result<(), StoreError> {
    let count = i64::try_from(head.position.count).unwrap_or(i64::MAX);
    let begin = store.audit_position_at(after).await?;
    let mut text = header(control_plane, begin);
    text.push('\n');
    let mut at = after;
    while at < count {
        let limit = EXPORT_EACH.min(count - at);
        let rows = store.audit_lines(at, limit).await?;
        if rows.is_empty() {
            // Somebody took rows away: whoever verifies the export is told.
            break;
        }
        for (number, line) in rows {
            at = number;
            text.push_str(&line);
            text.push('\n');
            if text.len() >= MESSAGE_BYTES && !send(lines, &mut text).await {
                return Ok(());
            }
        }
    }
    text.push_str(&last_line(head));
    text.push('\n');
    send(lines, &mut text).await;
    Ok(())
}

async fn send(
    lines: &mpsc::Sender<Result<ExportAuditResponse, Status>>,
    text: &mut String,
) -> bool {
    let message = ExportAuditResponse {
        lines: Bytes::from(std::mem::take(text)),
    };
    lines.send(Ok(message)).await.is_ok()
}
