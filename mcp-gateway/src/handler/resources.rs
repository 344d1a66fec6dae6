//! Hosts and jobs as resources, for people who put one into a conversation by hand. Whatever is
//! here, the tools reach too.

use muster_proto::v1::{GetHostRequest, ListHostsRequest, ListJobsRequest};
use rmcp::{
    ErrorData,
    model::{
        CacheScope, CompleteRequestParams, CompleteResult, CompletionInfo,
        ListResourceTemplatesResult, ListResourcesResult, ReadResourceResult, Reference, Resource,
        ResourceContents, ResourceTemplate,
    },
};

use super::{lookup_error, not_found, protocol_error};
use crate::{
    call::Call,
    error::Refusal,
    render::{clean, words},
    tools,
};

const HOST: &str = "muster://host/";
const JOB: &str = "muster://job/";
/// Hosts on a page.
const HOSTS_MAX: i32 = 100;
/// Values that a completion offers at most, by the protocol.
const VALUES_MAX: usize = 100;
/// How long a page or a host may be taken for fresh.
const TTL_MS: u64 = 5_000;

pub(super) async fn list(
    call: &Call,
    cursor: Option<String>,
) -> Result<ListResourcesResult, ErrorData> {
    let request = ListHostsRequest {
        page_size: HOSTS_MAX,
        page_token: cursor.unwrap_or_default(),
        ..ListHostsRequest::default()
    };
    let page = tools::page_of_hosts(call, request).await;
    let page = page.map_err(|refusal| ErrorData::invalid_params(refusal.text(), None))?;
    let resources = page.hosts.iter().map(|host| {
        let name = clean::words(&host.name);
        Resource::new(format!("{HOST}{name}"), name.clone())
            .with_title(format!("Host {name}"))
            .with_description(format!(
                "{}; its instruction and facts",
                words::presence(host.presence())
            ))
            .with_mime_type("application/json")
    });
    let mut result = ListResourcesResult::with_all_items(resources.collect())
        .with_ttl_ms(TTL_MS)
        .with_cache_scope(CacheScope::Private);
    result.next_cursor = Some(page.next_page_token).filter(|token| !token.is_empty());
    Ok(result)
}

pub(super) fn templates() -> ListResourceTemplatesResult {
    let host = ResourceTemplate::new(format!("{HOST}{{name}}"), "host")
        .with_title("Host")
        .with_description("What a host is, what it is for and how to treat it")
        .with_mime_type("application/json");
    let job = ResourceTemplate::new(format!("{JOB}{{job_id}}"), "job")
        .with_title("Job")
        .with_description("Where a job stands, and head and tail of its output")
        .with_mime_type("text/plain");
    ListResourceTemplatesResult::with_all_items(vec![host, job])
        .with_ttl_ms(TTL_MS)
        .with_cache_scope(CacheScope::Public)
}

pub(super) async fn read(call: &mut Call, uri: &str) -> Result<ReadResourceResult, ErrorData> {
    let (text, mime_type) = if let Some(name) = uri.strip_prefix(HOST) {
        let request = GetHostRequest {
            host: name.to_owned(),
        };
        let mut hosts = call.client.hosts();
        let answer = hosts
            .get_host(request)
            .await
            .map_err(|status| lookup_error(status.into(), uri))?;
        let host = answer.into_inner().host.unwrap_or_default();
        (tools::full(&host).to_string(), "application/json")
    } else if let Some(id) = uri.strip_prefix(JOB) {
        (
            tools::job(call, id)
                .await
                .map_err(|refusal| not_found(refusal, uri))?,
            "text/plain",
        )
    } else {
        let refusal = Refusal::new(
            format!("there is no resource {:?}", words::shortened(uri, 200)),
            format!("resources are {HOST}NAME and {JOB}JOB-ID"),
        );
        return Err(not_found(refusal, uri));
    };
    let contents = ResourceContents::text(text, uri).with_mime_type(mime_type);
    Ok(ReadResourceResult::new(vec![contents])
        .with_ttl_ms(TTL_MS)
        .with_cache_scope(CacheScope::Private))
}

/// Names of hosts and ids of jobs that begin with what was typed.
pub(super) async fn complete(
    call: &Call,
    request: &CompleteRequestParams,
) -> Result<CompleteResult, ErrorData> {
    let jobs = match &request.r#ref {
        Reference::Resource(resource) => resource.uri.starts_with(JOB),
        Reference::Prompt(_) => false,
        _ => return Ok(CompleteResult::default()),
    };
    let argument = request.argument.name.as_str();
    let values: Vec<String> = if jobs {
        let list = ListJobsRequest {
            page_size: VALUES_MAX as i32,
            ..ListJobsRequest::default()
        };
        let answer = call.client.jobs().list_jobs(list).await;
        let answer = answer.map_err(|status| protocol_error(call.refused(status)))?;
        answer
            .into_inner()
            .jobs
            .into_iter()
            .map(|job| job.job_id)
            .collect()
    } else if matches!(argument, "name" | "host" | "target") {
        let list = ListHostsRequest {
            query: request.argument.value.clone(),
            page_size: VALUES_MAX as i32,
            ..ListHostsRequest::default()
        };
        let page = tools::page_of_hosts(call, list)
            .await
            .map_err(protocol_error)?;
        page.hosts.into_iter().map(|host| host.name).collect()
    } else {
        Vec::new()
    };
    let typed = &request.argument.value;
    let values = values
        .into_iter()
        .filter(|value| value.starts_with(typed.as_str()));
    let completion = CompletionInfo::with_all_values(values.take(VALUES_MAX).collect())
        .map_err(|error| ErrorData::internal_error(error, None))?;
    Ok(CompleteResult::new(completion))
}
