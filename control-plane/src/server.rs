//! Open, serve, stop.

mod background;
mod certificate;
mod credentials;
mod error;

use std::{io, path::Path, sync::Arc, time::Duration};

use muster_proto::{
    agent::v1::agent_service_server::AgentServiceServer,
    v1::{
        approval_service_server::ApprovalServiceServer, audit_service_server::AuditServiceServer,
        authority_service_server::AuthorityServiceServer,
        enrollment_service_server::EnrollmentServiceServer,
        grant_service_server::GrantServiceServer, host_service_server::HostServiceServer,
        job_service_server::JobServiceServer, policy_service_server::PolicyServiceServer,
        principal_service_server::PrincipalServiceServer, token_service_server::TokenServiceServer,
    },
};
use muster_runtime::tls::{AcceptLimits, Admission, ServerTls, SpiffeId, listen};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower::util::MapRequestLayer;

pub use self::error::ServerError;

use crate::{
    access::Access,
    api::{
        approvals::ApprovalDoor,
        audit::AuditDoor,
        authorities::AuthorityDoor,
        caller::Admit,
        enrollment::EnrollmentDoor,
        former,
        hosts::HostDoor,
        jobs::{JobDoor, attach::AttachSettings},
        policies::PolicyDoor,
        principals::PrincipalDoor,
        tokens::TokenDoor,
    },
    approvals::{Approvals, Webhook, webhook},
    audit::{Audit, Heads},
    authority::Authority,
    config::Config,
    connections::{ConnectionSettings, Receipts, Rooms, Written, door::Agents},
    enrollment::Enrollment,
    hosts::{Inventory, PresenceLimits},
    jobs::Jobs,
    oauth::Oauth,
    orders::Orders,
    output::OutputStore,
    policy::Policy,
    restores::Restores,
    rights::Rights,
    rotation::Rotation,
    seal::Sealer,
    secrets::{self, Secrets},
    sessions::{Dispatcher, Sessions},
    store::{Store, jobs::load_fences},
};

/// What one stream may send before it is read.
const STREAM_WINDOW: u32 = 1 << 20;

/// Streams of one connection.
const STREAMS_MAX: u32 = 200;

/// More than all streams of a connection may send together, so that one that is not read never holds up another.
const CONNECTION_WINDOW: u32 = (STREAMS_MAX + 1) * STREAM_WINDOW;

/// Bytes of a request to enroll, which strangers may make.
const ENROLLMENT_MESSAGE_MAX: usize = 64 << 10;

/// Between signs of life of a connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Without an answer for this long a connection is dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long calls may take to end when the control plane stops.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// A control plane.
pub struct Server {
    config: Config,
    store: Store,
    authority: Arc<Authority>,
    access: Access,
    rights: Rights,
    approvals: Approvals,
    /// Tells people of approvals, if there is a webhook.
    notices: Option<webhook::Sender>,
    enrollment: Enrollment,
    rooms: Rooms,
    oauth: Option<Oauth>,
    heads: Heads,
    secrets: Secrets,
    tls: ServerTls,
}

impl Server {
    /// Opens the listener that the settings name.
    pub fn bind(config: &Config) -> Result<TcpListener, ServerError> {
        listen(config.listen).map_err(|error| ServerError::Listen {
            address: config.listen,
            cause: match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "another program does already; stop that one or choose another --listen"
                        .to_owned()
                }
                io::ErrorKind::AddrNotAvailable => {
                    "this machine has no such address; choose another --listen".to_owned()
                }
                io::ErrorKind::PermissionDenied => {
                    "the system does not allow it; choose a port above 1023 with --listen"
                        .to_owned()
                }
                _ => error.to_string(),
            },
        })
    }

    /// Opens the data directory: ledger, output, authority, keys. Where the listener has chosen its port itself,
    /// `config.listen` must say which, since join strings and credentials carry it.
    pub async fn open(config: Config) -> Result<Self, ServerError> {
        config.check().map_err(ServerError::Config)?;
        let oauth = Oauth::new(&config.oauth).map_err(ServerError::Config)?;
        let store = Store::open(&config.directory).await?;
        let authority = Arc::new(Authority::open(&config.directory, &config.trust_domain)?);
        let inventory = Inventory::load(store.clone(), presence_limits(&config)).await?;
        let sealer = |name| open_key(&config.directory.join(name));
        let rights = open_rights(&config, &store, &inventory).await?;
        let access = rights.access.clone();
        let enrollment = Enrollment::new(
            authority.clone(),
            store.clone(),
            inventory.clone(),
            access.clone(),
            sealer("access.key")?,
            config.certificate_lifetime,
        );
        let written = rights.clone();
        let written =
            Arc::new(move |principal: &Arc<str>, bytes| written.written(principal, bytes));
        let tls = open_tls(&config, &store, &authority, &access)?;
        let rotation = Rotation::load(
            authority.clone(),
            store.clone(),
            inventory.clone(),
            certificate::follow(&config, &authority, &store.control_plane_id, &tls),
        )
        .await?;
        let secrets = Secrets::open(&config.directory).map_err(|error| ServerError::Key {
            path: config.directory.join(secrets::FILE),
            error,
        })?;
        let (rooms, heads) = open_rooms(
            &config,
            &store,
            inventory,
            sealer("seal.key")?,
            secrets.clone(),
            rotation,
            &authority,
            written,
        )
        .await?;
        let (hook, notices) = Webhook::open(&config.webhook)?;
        let approvals = Approvals::load(
            store.clone(),
            rooms.jobs.clone(),
            (rights.grants.clone(), rights.policy.clone()),
            hook,
            config.approval_expires_after,
            |approval| rights.answerers(approval),
        )
        .await?;
        Ok(Self {
            config,
            store,
            authority,
            access,
            rights,
            approvals,
            notices,
            enrollment,
            rooms,
            oauth,
            heads,
            secrets,
            tls,
        })
    }

    /// Where others reach this control plane, as "HOST:PORT": what join strings say.
    pub fn address(&self) -> String {
        certificate::address(&self.config)
    }

    /// Serves until `stop` is cancelled, then ends what is under way.
    pub async fn serve(
        mut self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> Result<(), ServerError> {
        let background = self.start_background(&stop);
        if let Some(notices) = self.notices.take() {
            background.spawn(notices.run(stop.clone()));
        }
        let limits = AcceptLimits {
            connections: self.config.max_connections as usize,
            ..AcceptLimits::default()
        };
        let incoming = self.tls.incoming(listener, limits, stop.clone());
        let (health, health_service) = tonic_health::server::health_reporter();
        let orders = Orders {
            jobs: self.rooms.jobs.clone(),
            inventory: self.rooms.inventory.clone(),
            approvals: self.approvals.clone(),
            rights: self.rights.clone(),
        };
        let approvals = ApprovalDoor {
            approvals: self.approvals.clone(),
            inventory: self.rooms.inventory.clone(),
            rights: self.rights.clone(),
            orders: orders.clone(),
        };
        let router = tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .layer(MapRequestLayer::new(former::under_its_new_name))
            .layer(Admit {
                rights: self.rights.clone(),
                audit: self.rooms.audit.clone(),
            })
            .add_service(health_service)
            .add_service(
                reflection()
                    .build_v1()
                    .expect("the descriptors are our own"),
            )
            .add_service(
                reflection()
                    .build_v1alpha()
                    .expect("the descriptors are our own"),
            )
            .add_service(
                EnrollmentServiceServer::new(EnrollmentDoor::new(
                    self.enrollment.clone(),
                    self.address(),
                ))
                .max_decoding_message_size(ENROLLMENT_MESSAGE_MAX),
            )
            .add_service(PrincipalServiceServer::new(PrincipalDoor {
                access: self.access.clone(),
                jobs: self.rooms.jobs.clone(),
                oauth: self.oauth.clone(),
                control_plane_id: self.store.control_plane_id.clone(),
                trust_domain: self.config.trust_domain.as_str().into(),
            }))
            .add_service(TokenServiceServer::new(TokenDoor {
                access: self.access.clone(),
                oauth: self.oauth.clone(),
            }))
            .add_service(AuthorityServiceServer::new(AuthorityDoor(
                self.rooms.rotation.clone(),
            )))
            .add_service(PolicyServiceServer::new(PolicyDoor {
                inventory: self.rooms.inventory.clone(),
            }))
            .add_service(ApprovalServiceServer::new(approvals.clone()))
            .add_service(GrantServiceServer::new(approvals))
            .add_service(HostServiceServer::new(HostDoor::new(
                self.rooms.inventory.clone(),
                self.rooms.connections.clone(),
                Arc::new(background::load_of(self.rooms.jobs.clone())),
            )))
            .add_service(JobServiceServer::new(JobDoor {
                jobs: self.rooms.jobs.clone(),
                inventory: self.rooms.inventory.clone(),
                output: self.rooms.output.clone(),
                attach: AttachSettings::within(self.config.client_gone_after),
                orders,
            }))
            .add_service(AuditServiceServer::new(AuditDoor {
                store: self.store.clone(),
                jobs: self.rooms.jobs.clone(),
                heads: self.heads.clone(),
                inventory: self.rooms.inventory.clone(),
            }))
            .add_service(AgentServiceServer::new(Agents(self.rooms.clone())));
        tracing::info!(
            address = %self.config.listen,
            "the control plane listens on {}", self.config.listen
        );
        let (stopping, connections) = (stop.clone(), self.rooms.connections.clone());
        let serving = router.serve_with_incoming_shutdown(incoming, async move {
            stopping.cancelled().await;
            health
                .set_service_status("", tonic_health::ServingStatus::NotServing)
                .await;
            connections.stop();
        });
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            outcome = &mut serving => outcome?,
            () = after(&stop, STOP_LIMIT) => {
                // tonic would wait for open streams without limit.
                self.tls.cut_all();
                serving.await?;
            }
        }
        background.wait().await;
        self.close().await
    }
}

fn presence_limits(config: &Config) -> PresenceLimits {
    PresenceLimits {
        suspect_after: config.suspect_after,
        offline_after: config.offline_after,
    }
}

/// Opens what is known of principals, and what policy lets them do.
async fn open_rights(
    config: &Config,
    store: &Store,
    inventory: &Inventory,
) -> Result<Rights, ServerError> {
    let access = Access::load(
        store.clone(),
        inventory.clone(),
        open_key(&config.directory.join("access.key"))?,
        config.trust_domain.as_str().into(),
    )
    .await?;
    Ok(Rights {
        policy: Policy::load(store.clone(), &config.directory).await?,
        access,
        usage: Arc::default(),
        grants: Default::default(),
    })
}

/// Makes the control plane a certificate, and lets in whom `access` knows.
fn open_tls(
    config: &Config,
    store: &Store,
    authority: &Authority,
    access: &Access,
) -> Result<ServerTls, ServerError> {
    let (issued, key) = certificate::issue(config, authority, &store.control_plane_id)?;
    let door = Arc::new(Door(access.clone()));
    let tls = ServerTls::new(issued.chain, key, &authority.trusted(), door)?;
    Ok(tls)
}

/// Opens what jobs need.
#[allow(clippy::too_many_arguments)] // Each is a part of its own, made by whoever knows it.
async fn open_rooms(
    config: &Config,
    store: &Store,
    inventory: Inventory,
    sealer: Sealer,
    secrets: Secrets,
    rotation: Rotation,
    authority: &Arc<Authority>,
    written: Written,
) -> Result<(Rooms, Heads), ServerError> {
    let output =
        OutputStore::open(&config.directory.join("output"), config.output.limits()).await?;
    let connections = Sessions::new(store.starts, load_fences(&store.readers).await?);
    let syncer = store.writer.syncer().clone();
    let sealer = Arc::new(sealer);
    let dispatcher = Dispatcher::new(
        connections.clone(),
        inventory.clone(),
        sealer.clone(),
        secrets,
        store.control_plane_id.clone(),
        syncer.clone(),
    );
    let restores = Restores::load(store, &inventory, sealer).await?;
    let jobs = Jobs::load(store.clone(), output.clone(), dispatcher).await?;
    let (audit, standing) = (Audit::default(), restores.clone());
    let generation = Arc::new(move || standing.generation());
    let heads = Heads::new(store.clone(), audit.clone(), authority.clone(), generation);
    let rooms = Rooms {
        jobs,
        connections,
        inventory,
        output,
        syncer,
        restores,
        receipts: Receipts::new(rotation.clone()),
        rotation,
        head: heads.latest(),
        audit,
        written,
        settings: ConnectionSettings {
            heartbeat_interval: config.heartbeat_interval,
            offline_after: config.offline_after,
        },
    };
    Ok((rooms, heads))
}

fn open_key(path: &Path) -> Result<Sealer, ServerError> {
    Sealer::open(path).map_err(|error| ServerError::Key {
        path: path.to_owned(),
        error,
    })
}

/// Returns so long after `stop` was cancelled.
async fn after(stop: &CancellationToken, limit: Duration) {
    stop.cancelled().await;
    tokio::time::sleep(limit).await;
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(muster_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

/// Lets in whom `Access` knows.
struct Door(Access);

impl Admission for Door {
    fn admits(&self, identity: &SpiffeId) -> bool {
        self.0.admits(identity)
    }
}

#[cfg(test)]
mod tests;
