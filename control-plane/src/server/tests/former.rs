//! Callers that know methods by their former names.

use muster_proto::v1::{
    ListAuditRequest, access_service_client::AccessServiceClient,
    audit_service_client::AuditServiceClient,
};

use super::{viewers::Raw, *};

/// What an empty request is answered, as code and words.
async fn asked_nothing(plane: &Plane, method: &str) -> (Code, String) {
    let mut grpc = tonic::client::Grpc::new(plane.operator.clone());
    grpc.ready().await.unwrap();
    let path = format!("/{method}").parse().unwrap();
    let answer = grpc.unary(Request::new(Vec::new()), path, Raw).await;
    let status = answer.map_or_else(|status| status, |_| Status::new(Code::Ok, ""));
    (status.code(), status.message().to_owned())
}

#[tokio::test]
async fn every_method_is_answered_by_its_former_name_too() {
    let plane = Plane::start().await;
    let current = crate::api::methods();
    for former in crate::api::deprecated() {
        let name = former.rsplit('/').next().unwrap();
        let ends = |method: &&String| method.rsplit('/').next() == Some(name);
        let method = current.iter().find(ends).unwrap();
        let answer = asked_nothing(&plane, &former).await;
        assert_ne!(answer.0, Code::Unimplemented, "{former}");
        assert_eq!(answer, asked_nothing(&plane, method).await, "{former}");
    }
    plane.stop().await;
}

#[tokio::test]
async fn a_client_of_the_former_service_works_and_is_recorded_by_the_new_names() {
    let plane = Plane::start().await;
    let mut access = AccessServiceClient::new(plane.operator.clone());
    let caller = access.get_caller(GetCallerRequest {}).await.unwrap();
    assert_eq!(caller.into_inner().principal.unwrap().name, "ada");
    let create = CreateTokenRequest {
        kind: PrincipalKind::Ai.into(),
        name: "claude".to_owned(),
        ..CreateTokenRequest::default()
    };
    let created = access.create_token(create).await.unwrap().into_inner();
    let bearer = Some(created.bearer_token.as_str());
    assert_eq!(caller_of(&plane, bearer).await, "Ai/claude");
    let mut audit = AuditServiceClient::new(plane.operator.clone());
    let entries = audit.list_audit(ListAuditRequest::default()).await;
    let entries = entries.unwrap().into_inner().entries;
    let named = |name: &str| entries.iter().any(|entry| entry.entry.contains(name));
    assert!(named("muster.v1.TokenService/CreateToken"), "{entries:?}");
    assert!(!named("AccessService"), "{entries:?}");
    plane.stop().await;
}

async fn caller_of(plane: &Plane, bearer: Option<&str>) -> String {
    caller(plane.operator.clone(), bearer).await.unwrap()
}
