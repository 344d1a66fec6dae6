mod approvals;
mod attach;
mod clients;
mod fake_host;
mod former;
mod joining;
mod kinds;
mod policy;
mod sight;
mod viewers;

use std::time::Instant;

use muster_client::{enrollment, identity::Identity, join::JoinString};
use muster_proto::v1::{
    self, CreateJoinTokenRequest, CreateTokenRequest, ExchangeTokenRequest, GetCallerRequest,
    JoinKind as WireJoinKind, PrincipalKind, Reason, exchange_token_request::Subject,
    host_service_client::HostServiceClient, job_service_client::JobServiceClient,
    principal_service_client::PrincipalServiceClient, token_service_client::TokenServiceClient,
};
use muster_runtime::tls::{ClientTls, ConnectError, connect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt as _;

use super::*;

/// A control plane that serves, and its operator.
struct Plane {
    directory: tempfile::TempDir,
    inventory: Inventory,
    store: Store,
    rights: Rights,
    stop: CancellationToken,
    operator: Channel,
    identity: Identity,
    serving: tokio::task::JoinHandle<Result<(), ServerError>>,
}

impl Plane {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_at(tempfile::tempdir().unwrap(), change).await
    }

    /// Starts over what stands in a directory.
    async fn start_at(directory: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(directory.path().join("control-plane"));
        config.listen = "127.0.0.1:0".parse().unwrap();
        change(&mut config);
        let listener = Server::bind(&config).unwrap();
        config.listen = listener.local_addr().unwrap();
        let server = Server::open(config).await.unwrap();
        let operator = directory.path().join("operator");
        server.bootstrap_operator("ada", &operator).await.unwrap();
        let inventory = server.rooms.inventory.clone();
        let (store, rights) = (server.store.clone(), server.rights.clone());
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server.serve(listener, stop.clone()));
        let identity = Identity::load(&operator).unwrap();
        let tls = identity.client_tls().unwrap();
        let operator = connect(identity.address(), &tls).await.unwrap();
        Self {
            directory,
            inventory,
            store,
            rights,
            stop,
            operator,
            identity,
            serving,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    async fn join_string(&self, request: CreateJoinTokenRequest) -> JoinString {
        let answer = self.enrollment().create_join_token(request).await.unwrap();
        answer.into_inner().join_string.parse().unwrap()
    }

    async fn host(&self, name: &str) -> Identity {
        let join = self.join_string(host(name)).await;
        enrollment::join(&self.path(name), &join, "").await.unwrap()
    }

    async fn anonymous(&self) -> Channel {
        let tls = self.identity.anonymous_tls().unwrap();
        connect(self.identity.address(), &tls).await.unwrap()
    }

    async fn stop(self) {
        self.end().await;
    }

    /// Stops, and leaves what was written.
    async fn end(self) -> tempfile::TempDir {
        self.stop.cancel();
        self.serving.await.unwrap().unwrap();
        self.directory
    }
}

fn host(name: &str) -> CreateJoinTokenRequest {
    CreateJoinTokenRequest {
        kind: WireJoinKind::Host.into(),
        name: name.to_owned(),
        labels: [("env".to_owned(), "prod".to_owned())].into(),
        ..Default::default()
    }
}

async fn dial(identity: &Identity) -> Result<Channel, ConnectError> {
    connect(identity.address(), &identity.client_tls().unwrap()).await
}

async fn caller(channel: Channel, bearer: Option<&str>) -> Result<String, Status> {
    let mut request = Request::new(GetCallerRequest {});
    if let Some(token) = bearer {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    let answer = PrincipalServiceClient::new(channel)
        .get_caller(request)
        .await?;
    let principal = answer.into_inner().principal.unwrap();
    Ok(format!("{:?}/{}", principal.kind(), principal.name))
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

#[tokio::test]
async fn without_a_credential_every_other_method_is_refused() {
    let plane = Plane::start().await;
    let channel = plane.anonymous().await;
    let open = [
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "muster.v1.EnrollmentService/Enroll",
    ];
    for method in crate::api::methods().union(&crate::api::deprecated()) {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let path = format!("/{method}").parse().unwrap();
        let codec =
            tonic_prost::ProstCodec::<v1::GetCallerRequest, v1::RevokeTokenResponse>::default();
        // As a stream: some of them are, and the refusal comes before the first message.
        let answer = grpc
            .server_streaming(Request::new(v1::GetCallerRequest {}), path, codec)
            .await;
        if open.contains(&method.as_str()) {
            let code = answer.err().map(|status| status.code());
            assert_ne!(code, Some(Code::Unauthenticated), "{method}");
        } else {
            let status = answer.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{method}");
            assert_eq!(reason(&status), "CREDENTIAL_MISSING", "{method}");
        }
    }
    plane.stop().await;
}

#[tokio::test]
async fn a_bearer_token_decides_who_calls_until_it_is_revoked() {
    let plane = Plane::start().await;
    let created = plane
        .tokens()
        .create_token(CreateTokenRequest {
            kind: PrincipalKind::Ai.into(),
            name: "claude".to_owned(),
            ..CreateTokenRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    let token = created.bearer_token.as_str();
    for channel in [plane.anonymous().await, plane.operator.clone()] {
        assert_eq!(caller(channel, Some(token)).await.unwrap(), "Ai/claude");
    }
    assert_eq!(
        caller(plane.operator.clone(), None).await.unwrap(),
        "Operator/ada"
    );
    let mut request = Request::new(CreateJoinTokenRequest::default());
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    let refused = plane.enrollment().create_join_token(request).await;
    assert_eq!(reason(&refused.unwrap_err()), "NOT_ALLOWED");

    let token_id = created.token.unwrap().token_id;
    plane
        .tokens()
        .revoke_token(v1::RevokeTokenRequest { token_id })
        .await
        .unwrap();
    let revoked = caller(plane.operator.clone(), Some(token)).await;
    assert_eq!(reason(&revoked.unwrap_err()), "CREDENTIAL_INVALID");
    plane.stop().await;
}

#[tokio::test]
async fn a_gateway_acts_for_its_caller_and_for_nobody_else() {
    let plane = Plane::start().await;
    let mut request = host("local");
    request.kind = WireJoinKind::Gateway.into();
    request.labels.clear();
    let join = plane.join_string(request).await;
    let gateway = enrollment::join(&plane.path("gateway"), &join, "")
        .await
        .unwrap();
    let channel = dial(&gateway).await.unwrap();
    assert_eq!(
        caller(channel.clone(), None).await.unwrap(),
        "Gateway/local"
    );
    let mut tokens = TokenServiceClient::new(channel.clone());
    let refused = tokens.list_tokens(v1::ListTokensRequest::default()).await;
    assert_eq!(reason(&refused.unwrap_err()), "NOT_ALLOWED");

    let created = plane
        .tokens()
        .create_token(CreateTokenRequest {
            kind: PrincipalKind::Automation.into(),
            name: "nightly".to_owned(),
            ..CreateTokenRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    let exchanged = tokens
        .exchange_token(ExchangeTokenRequest {
            subject: Some(Subject::BearerToken(created.bearer_token)),
        })
        .await
        .unwrap()
        .into_inner()
        .bearer_token;
    assert_eq!(
        caller(channel.clone(), Some(&exchanged)).await.unwrap(),
        "Automation/nightly"
    );
    for elsewhere in [plane.anonymous().await, plane.operator.clone()] {
        let refused = caller(elsewhere, Some(&exchanged)).await.unwrap_err();
        assert_eq!(reason(&refused), "CREDENTIAL_INVALID");
    }
    let token_id = created.token.unwrap().token_id;
    plane
        .tokens()
        .revoke_token(v1::RevokeTokenRequest { token_id })
        .await
        .unwrap();
    let revoked = caller(channel, Some(&exchanged)).await.unwrap_err();
    assert_eq!(reason(&revoked), "CREDENTIAL_INVALID");
    plane.stop().await;
}

#[tokio::test]
async fn a_second_start_finds_what_the_first_one_made() {
    let directory = tempfile::tempdir().unwrap();
    let open = || async {
        let mut config = Config::new(directory.path().join("control-plane"));
        config.listen = "127.0.0.1:1".parse().unwrap();
        Server::open(config).await
    };
    let operator = directory.path().join("operator");
    let token = directory.path().join("mcp-token");
    let mut seen = Vec::new();
    for _ in 0..2 {
        let server = open().await.unwrap();
        assert!(matches!(
            open().await,
            Err(ServerError::Open(crate::store::OpenError::Held(_)))
        ));
        server.bootstrap_operator("ada", &operator).await.unwrap();
        server.ensure_ai_token("mcp", &token).await.unwrap();
        seen.push((
            std::fs::read_to_string(operator.join("cert.pem")).unwrap(),
            std::fs::read_to_string(&token).unwrap(),
            server.authority.pin(),
        ));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        server.serve(listener, stop).await.unwrap();
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn a_taken_port_is_said_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = Config::new("nowhere".into());
    config.listen = taken.local_addr().unwrap();
    let error = Server::bind(&config).unwrap_err().to_string();
    assert!(error.contains("choose another --listen"), "{error}");
    assert!(!error.contains('\n'));
}

/// The first bytes of a handshake, as our own client sends them.
async fn client_hello(plane: &Plane) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tls = plane.identity.anonymous_tls().unwrap();
    let dialling = tokio::spawn(async move { connect(&address, &tls).await.map(drop) });
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut hello = vec![0; 5];
    socket.read_exact(&mut hello).await.unwrap();
    let length = usize::from(u16::from_be_bytes([hello[3], hello[4]]));
    hello.resize(5 + length, 0);
    socket.read_exact(&mut hello[5..]).await.unwrap();
    dialling.abort();
    hello
}

#[tokio::test]
async fn strangers_who_say_hello_and_nothing_more_keep_nobody_out() {
    let plane = Plane::start().await;
    let hello = client_hello(&plane).await;
    let mut strangers = Vec::new();
    for _ in 0..2 * AcceptLimits::default().handshakes {
        let mut socket = tokio::net::TcpStream::connect(plane.identity.address())
            .await
            .unwrap();
        socket.write_all(&hello).await.unwrap();
        strangers.push(socket);
    }
    let since = Instant::now();
    plane.anonymous().await;
    let waited = since.elapsed();
    assert!(waited < Duration::from_secs(6), "{waited:?}");
    drop(strangers);
    plane.stop().await;
}

#[tokio::test]
async fn a_call_that_waits_ends_with_its_token() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    let token = async |ttl: Option<prost_types::Duration>| {
        let created = plane
            .tokens()
            .create_token(CreateTokenRequest {
                kind: PrincipalKind::Ai.into(),
                name: "claude".to_owned(),
                ttl,
                ..CreateTokenRequest::default()
            })
            .await
            .unwrap()
            .into_inner();
        let bearer: tonic::metadata::MetadataValue<_> =
            format!("Bearer {}", created.bearer_token).parse().unwrap();
        (bearer, created.token.unwrap().token_id)
    };

    let soon = prost_types::Duration {
        seconds: 4,
        nanos: 0,
    };
    let (bearer, _) = token(Some(soon)).await;
    let mut request = Request::new(v1::WatchHostsRequest::default());
    request.metadata_mut().insert("authorization", bearer);
    let mut hosts = HostServiceClient::new(plane.operator.clone())
        .watch_hosts(request)
        .await
        .unwrap()
        .into_inner();
    let ended = loop {
        match hosts.message().await {
            Ok(update) => assert!(update.is_some(), "it says why it ends"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), "CREDENTIAL_EXPIRED");

    let (bearer, token_id) = token(None).await;
    let mut jobs = JobServiceClient::new(plane.operator.clone());
    let command = v1::Command {
        argv: vec!["true".to_owned()],
        ..Default::default()
    };
    // It is its own job that it waits for: others it would not see.
    let as_ai = |create| {
        let mut request = Request::new(create);
        request
            .metadata_mut()
            .insert("authorization", bearer.clone());
        request
    };
    let job = jobs
        .create_job(as_ai(v1::CreateJobRequest {
            request_id: "one".to_owned(),
            selector: "web-1".to_owned(),
            action: Some(v1::Action {
                kind: Some(v1::action::Kind::Command(command)),
            }),
            ..Default::default()
        }))
        .await
        .unwrap()
        .into_inner()
        .job
        .unwrap();
    let tasks = jobs
        .list_tasks(v1::ListTasksRequest {
            job_id: job.job_id,
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner()
        .tasks;
    let mut request = Request::new(v1::ReadOutputRequest {
        task_id: tasks[0].task_id.clone(),
        wait: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
        ..Default::default()
    });
    request.metadata_mut().insert("authorization", bearer);
    let reading = tokio::spawn(async move { jobs.read_output(request).await });
    // The token counts as used once the call was let in.
    let used = async || {
        let mut tokens = plane.tokens();
        let tokens = tokens.list_tokens(v1::ListTokensRequest::default());
        let tokens = tokens.await.unwrap().into_inner().tokens;
        let token = tokens.iter().find(|token| token.token_id == token_id);
        token.unwrap().last_used_time.is_some()
    };
    let since = Instant::now();
    while !used().await {
        assert!(since.elapsed() < Duration::from_secs(10));
    }
    let revoke = v1::RevokeTokenRequest {
        token_id: token_id.clone(),
    };
    plane.tokens().revoke_token(revoke).await.unwrap();
    let since = Instant::now();
    let ended = reading.await.unwrap().unwrap_err();
    assert_eq!(reason(&ended), "LOCKED");
    assert!(since.elapsed() < Duration::from_secs(5));
    plane.stop().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_change_half_done() {
    let plane = Plane::start().await;
    plane.host("web-1").await;
    let mut hosts = HostServiceClient::new(plane.operator.clone());
    let set = || v1::SetInstructionRequest {
        host: "web-1".to_owned(),
        text: "be kind".to_owned(),
        ..Default::default()
    };
    // Some of them go away between the commit and what follows it.
    for step in 0..60 {
        let patience = Duration::from_micros(100 * step);
        let _ = tokio::time::timeout(patience, hosts.set_instruction(set())).await;
    }
    let last = hosts.set_instruction(set()).await;
    assert!(last.is_ok(), "{last:?}");
    plane.stop().await;
}
