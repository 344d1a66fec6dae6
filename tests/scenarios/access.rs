//! Who may call what, over a real listener.

use muster_proto::v1::{
    CreateTokenRequest, GetCallerRequest, ListHostsRequest, LockHostRequest, PrincipalKind, Reason,
    RemoveHostRequest, RevokeTokenRequest, SetInstructionRequest,
};
use muster_tests::{
    fleet::Fleet,
    operator::{Operator, reason, request, script},
};
use prost::Message as _;
use tonic::Status;

/// Calls a method by its path with an empty message, and returns how that failed.
async fn call(caller: &Operator, path: &str) -> Option<Status> {
    let mut client = tonic::client::Grpc::new(caller.door());
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::try_from(path).unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let request = tonic::Request::new(tokio_stream::once(()));
    match client.streaming(request, path, codec).await {
        Err(status) => Some(status),
        Ok(mut answers) => answers.get_mut().message().await.err(),
    }
}

/// Every method of the contract, as "/package.Service/Method".
fn methods() -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(muster_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut methods = Vec::new();
    for file in set.file {
        for service in &file.service {
            for method in &service.method {
                methods.push(format!(
                    "/{}.{}/{}",
                    file.package(),
                    service.name(),
                    method.name()
                ));
            }
        }
    }
    methods
}

#[tokio::test]
async fn without_a_credential_only_enroll_and_health_answer() {
    let fleet = Fleet::start().await;
    let nobody = fleet.nobody();
    let methods = methods();
    assert!(methods.len() > 25, "{methods:?}");
    let others = [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo".to_owned(),
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo".to_owned(),
    ];
    for method in methods.iter().chain(&others) {
        let status = call(&nobody, method)
            .await
            .unwrap_or_else(|| panic!("{method} answers"));
        if method.ends_with("/Enroll") {
            assert_ne!(status.code(), tonic::Code::Unauthenticated, "{method}");
            continue;
        }
        assert_eq!(
            status.code(),
            tonic::Code::Unauthenticated,
            "{method}: {status:?}"
        );
        assert_eq!(reason(&status), Reason::CredentialMissing, "{method}");
    }
    assert!(
        call(&nobody, "/grpc.health.v1.Health/Check")
            .await
            .is_none()
    );
}

#[tokio::test]
async fn an_ai_may_run_jobs_but_not_widen_its_rights() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let token = fleet
        .operator()
        .bearer_token(PrincipalKind::Ai, "claude")
        .await;
    assert!(token.starts_with("mst_ai_"), "its kind shows in its prefix");
    let ai = fleet.bearer(&token);
    let who = ai
        .principals()
        .get_caller(GetCallerRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(who.principal.unwrap().name, "claude");
    ai.create(request("web-1", script("true")))
        .await
        .unwrap()
        .succeeds()
        .await;

    let host = || "web-1".to_owned();
    let create = CreateTokenRequest {
        kind: PrincipalKind::Operator.into(),
        name: "eve".to_owned(),
        ..CreateTokenRequest::default()
    };
    let lock = LockHostRequest {
        host: host(),
        note: String::new(),
    };
    let refusals = [
        ai.tokens().create_token(create).await.unwrap_err(),
        ai.hosts().lock_host(lock).await.unwrap_err(),
        ai.hosts()
            .remove_host(RemoveHostRequest { host: host() })
            .await
            .unwrap_err(),
    ];
    for refused in refusals {
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused:?}");
        assert_eq!(reason(&refused), Reason::NotAllowed);
    }
}

#[tokio::test]
async fn a_revoked_token_is_useless_at_once() {
    let fleet = Fleet::start().await;
    let operator = fleet.operator();
    let create = CreateTokenRequest {
        kind: PrincipalKind::Automation.into(),
        name: "nightly".to_owned(),
        ..CreateTokenRequest::default()
    };
    let made = operator
        .tokens()
        .create_token(create)
        .await
        .unwrap()
        .into_inner();
    let caller = fleet.bearer(&made.bearer_token);
    caller
        .hosts()
        .list_hosts(ListHostsRequest::default())
        .await
        .unwrap();
    let token_id = made.token.unwrap().token_id;
    operator
        .tokens()
        .revoke_token(RevokeTokenRequest { token_id })
        .await
        .unwrap();
    let refused = caller
        .hosts()
        .list_hosts(ListHostsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::CredentialInvalid);
}

#[tokio::test]
async fn a_host_may_call_nothing_of_an_operator() {
    let (fleet, host) = Fleet::with_host("web-1").await;
    let channel = host.dial(fleet.address()).await.unwrap();
    let mut hosts = muster_proto::v1::host_service_client::HostServiceClient::new(channel);
    let refused = hosts
        .list_hosts(ListHostsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::NotAllowed);
}

#[tokio::test]
async fn an_instruction_is_replaced_only_by_who_has_read_it() {
    let (fleet, _host) = Fleet::with_host("web-1").await;
    let operator = fleet.operator();
    let set = |text: &str, etag: &str| SetInstructionRequest {
        host: "web-1".to_owned(),
        text: text.to_owned(),
        etag: etag.to_owned(),
    };
    let first = operator
        .hosts()
        .set_instruction(set("Be gentle.", ""))
        .await
        .unwrap();
    let first = first.into_inner().instruction.unwrap();
    assert_eq!(first.version, 1);
    let second = operator
        .hosts()
        .set_instruction(set("Be quick.", &first.etag))
        .await
        .unwrap();
    assert_eq!(second.into_inner().instruction.unwrap().version, 2);
    let refused = operator
        .hosts()
        .set_instruction(set("Too late.", &first.etag))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::EtagMismatch);
    assert_eq!(
        operator.host("web-1").await.instruction.unwrap().text,
        "Be quick."
    );
}
