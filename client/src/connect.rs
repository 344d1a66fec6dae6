//! The way to the control plane, and who speaks.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_proto::v1::{
    approval_service_client::ApprovalServiceClient, audit_service_client::AuditServiceClient,
    authority_service_client::AuthorityServiceClient,
    enrollment_service_client::EnrollmentServiceClient, grant_service_client::GrantServiceClient,
    host_service_client::HostServiceClient, job_service_client::JobServiceClient,
    policy_service_client::PolicyServiceClient, principal_service_client::PrincipalServiceClient,
    token_service_client::TokenServiceClient,
};
use muster_runtime::{
    telemetry::trace,
    tls::{ClientTls, connect, connect_lazily},
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use crate::{
    error::ClientError,
    identity::{Identity, load_authorities},
    lines::{LONG_STREAMS_MAX, Lines, Seat},
};

/// The largest answer that is taken: a full page of hosts with their instructions.
const ANSWER_MAX: usize = 32 << 20;

/// Who speaks, and whom to trust.
#[derive(Clone)]
pub enum Credentials {
    /// The certificate in a directory, as `muster up` makes one for the operator.
    Directory(PathBuf),
    /// A bearer token, and the authority's certificate (PEM) that the control plane must have.
    Token {
        /// The token: `mst_…`.
        token: String,
        /// File with the authority's certificate.
        authority: PathBuf,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "certificate in {}", path.display()),
            Self::Token { .. } => f.write_str("token"),
        }
    }
}

/// The channel with a credential on each call.
pub type Service = InterceptedService<Channel, Credential>;

/// A control plane, spoken to by one principal. Clones share the connection, which is made again by itself. Watches and
/// attachments that find no room on it get further ones.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    lines: Arc<Lines>,
    credential: Credential,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// Connects to the control plane at `address` ("HOST:PORT").
    pub async fn connect(address: &str, credentials: &Credentials) -> Result<Self, ClientError> {
        let (tls, credential) = open(credentials)?;
        let channel = connect(address, &tls).await?;
        Ok(Self::over(channel, Some((address, &tls)), credential))
    }

    /// Like [`Client::connect`], but connects at the first call.
    pub fn connect_lazily(address: &str, credentials: &Credentials) -> Result<Self, ClientError> {
        let (tls, credential) = open(credentials)?;
        let channel = connect_lazily(address, &tls);
        Ok(Self::over(channel, Some((address, &tls)), credential))
    }

    /// Connects with the certificate of a directory to the control plane that issued it.
    pub async fn from_directory(directory: &Path) -> Result<Self, ClientError> {
        let identity = Identity::load(directory)?;
        let (address, tls) = (identity.address(), identity.client_tls()?);
        let channel = connect(address, &tls).await?;
        Ok(Self::over(
            channel,
            Some((address, &tls)),
            Credential::default(),
        ))
    }

    /// Connects at the first call, with the certificate that `tls` has.
    pub fn with_tls(address: &str, tls: &ClientTls) -> Self {
        let channel = connect_lazily(address, tls);
        Self::over(channel, Some((address, tls)), Credential::default())
    }

    /// Speaks over a channel that is already there, with the certificate that it has. It makes no further connection:
    /// watches and attachments beyond what one takes are refused.
    pub fn from_channel(channel: Channel) -> Self {
        Self::over(channel, None, Credential::default())
    }

    fn over(channel: Channel, dial: Option<(&str, &ClientTls)>, credential: Credential) -> Self {
        let dial = dial.map(|(address, tls)| (address.to_owned(), tls.clone()));
        let lines = Lines::new(channel.clone(), dial, LONG_STREAMS_MAX);
        Self {
            channel,
            lines: Arc::new(lines),
            credential,
        }
    }

    /// The same connection with a bearer token on each call: then it decides who speaks.
    pub fn with_token(&self, token: &str) -> Result<Self, ClientError> {
        Ok(Self {
            credential: Credential::bearer(token)?,
            ..self.clone()
        })
    }

    /// The same with a W3C trace context ("traceparent", "tracestate") that came from elsewhere: calls made
    /// outside of any trace of this process carry it on.
    pub fn with_trace(&self, context: HashMap<String, String>) -> Self {
        let mut client = self.clone();
        client.credential.trace = Some(Arc::new(context));
        client
    }

    /// The channel, without a token.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The inventory.
    pub fn hosts(&self) -> HostServiceClient<Service> {
        HostServiceClient::with_interceptor(self.channel(), self.credential.clone())
            .max_decoding_message_size(ANSWER_MAX)
    }

    /// Jobs, tasks and output.
    pub fn jobs(&self) -> JobServiceClient<Service> {
        JobServiceClient::with_interceptor(self.channel(), self.credential.clone())
            .max_decoding_message_size(ANSWER_MAX)
    }

    /// Room for a stream that is held for long.
    pub(crate) fn seat(&self) -> Result<Seat, ClientError> {
        self.lines.seat()
    }

    /// Jobs, tasks and output, over the connection that has the room.
    pub(crate) fn jobs_on(&self, seat: &Seat) -> JobServiceClient<Service> {
        JobServiceClient::with_interceptor(seat.channel(), self.credential.clone())
            .max_decoding_message_size(ANSWER_MAX)
    }

    /// Join tokens.
    pub fn enrollment(&self) -> EnrollmentServiceClient<Service> {
        EnrollmentServiceClient::with_interceptor(self.channel(), self.credential.clone())
    }

    /// The audit log.
    pub fn audit(&self) -> AuditServiceClient<Service> {
        AuditServiceClient::with_interceptor(self.channel(), self.credential.clone())
            .max_decoding_message_size(ANSWER_MAX)
    }

    /// Principals, and who the caller is.
    pub fn principals(&self) -> PrincipalServiceClient<Service> {
        PrincipalServiceClient::with_interceptor(self.channel(), self.credential.clone())
    }

    /// Bearer tokens.
    pub fn tokens(&self) -> TokenServiceClient<Service> {
        TokenServiceClient::with_interceptor(self.channel(), self.credential.clone())
    }

    /// The authority behind certificates.
    pub fn authorities(&self) -> AuthorityServiceClient<Service> {
        AuthorityServiceClient::with_interceptor(self.channel(), self.credential.clone())
    }

    /// Policies.
    pub fn policy(&self) -> PolicyServiceClient<Service> {
        PolicyServiceClient::with_interceptor(self.channel(), self.credential.clone())
    }

    /// Approvals.
    pub fn approvals(&self) -> ApprovalServiceClient<Service> {
        ApprovalServiceClient::with_interceptor(self.channel(), self.credential.clone())
    }

    /// Grants.
    pub fn grants(&self) -> GrantServiceClient<Service> {
        GrantServiceClient::with_interceptor(self.channel(), self.credential.clone())
    }
}

fn open(credentials: &Credentials) -> Result<(ClientTls, Credential), ClientError> {
    match credentials {
        Credentials::Directory(directory) => {
            let tls = Identity::load(directory)?.client_tls()?;
            Ok((tls, Credential::default()))
        }
        Credentials::Token { token, authority } => {
            let tls = ClientTls::new(&load_authorities(authority)?)?;
            Ok((tls, Credential::bearer(token)?))
        }
    }
}

/// Puts the token, if there is one, and the current trace on each call.
#[derive(Clone, Default)]
pub struct Credential {
    bearer: Option<MetadataValue<Ascii>>,
    trace: Option<Arc<HashMap<String, String>>>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

impl Credential {
    fn bearer(token: &str) -> Result<Self, ClientError> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| ClientError::Token)?;
        value.set_sensitive(true);
        Ok(Self {
            bearer: Some(value),
            trace: None,
        })
    }
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        if let Some(bearer) = &self.bearer {
            metadata.insert("authorization", bearer.clone());
        }
        trace::inject(metadata);
        if let (Some(context), None) = (&self.trace, metadata.get("traceparent")) {
            for (key, value) in context.iter() {
                trace::Carrier::set(metadata, key, value.clone());
            }
        }
        Ok(request)
    }
}
