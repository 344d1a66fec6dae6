//! The roles that one binary can play. Each opens what it needs, binds, says so, and serves until SIGTERM,
//! SIGINT or SIGHUP.

pub(crate) mod agent;
pub(crate) mod backup;
pub(crate) mod control_plane;
pub(crate) mod gateway;
pub(crate) mod mcp;
mod service;
pub(crate) mod up;

use std::{io, net::SocketAddr, path::PathBuf};

use muster_client::enrollment::EnrollmentError;
use muster_runtime::{config::DataDir, shutdown, tls};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, exit};

/// Takes an address without listening yet; `flag` is what names another.
fn bind(address: SocketAddr, flag: &str) -> Result<TcpSocket, Failure> {
    tls::bind(address).map_err(|error| taken(address, flag, &error))
}

/// Listens on an address that was taken.
fn listen(socket: TcpSocket, flag: &str) -> Result<TcpListener, Failure> {
    let address = local_address(&socket)?;
    socket
        .listen(tls::BACKLOG)
        .map_err(|error| taken(address, flag, &error))
}

fn local_address(socket: &TcpSocket) -> Result<SocketAddr, Failure> {
    let address = socket.local_addr();
    address.map_err(|error| Failure::internal(error.to_string()))
}

fn taken(address: SocketAddr, flag: &str, error: &io::Error) -> Failure {
    let message = format!("cannot listen on {address}: {error}");
    let failure = Failure::new(exit::UNAVAILABLE, message);
    match error.kind() {
        io::ErrorKind::AddrInUse => failure.next(format!(
            "stop what listens there (another `muster up`?), or choose another with {flag}"
        )),
        io::ErrorKind::PermissionDenied => {
            failure.next(format!("choose a port above 1023 with {flag}"))
        }
        _ => failure.next(format!("choose another with {flag}")),
    }
}

fn path(data_dir: &DataDir) -> Result<PathBuf, Failure> {
    let path = data_dir.path();
    path.map_err(|error| Failure::usage(error.to_string()))
}

fn stop_on_signal() -> Result<CancellationToken, Failure> {
    shutdown::on_signal().map_err(|error| Failure::internal(format!("no signals: {error}")))
}

/// Why a machine did not join, with what to do about it.
fn not_joined(error: EnrollmentError) -> Failure {
    let message = error.to_string();
    let known = match error {
        EnrollmentError::Connect(error) => Failure::from(muster_client::ClientError::from(error)),
        EnrollmentError::Refused { reason, .. } => Failure {
            reason: Some(reason),
            ..Failure::new(exit::NOT_ALLOWED, message.clone())
                .next("make a new join token where the control plane runs: `muster token create`")
        },
        EnrollmentError::Interrupted(_) => {
            Failure::new(exit::UNAVAILABLE, message.clone()).next("try again: it is safe")
        }
        _ => Failure::internal(message.clone()),
    };
    Failure { message, ..known }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_names_the_way_out() {
        let first = bind("127.0.0.1:0".parse().unwrap(), "--listen").unwrap();
        let first = listen(first, "--listen").unwrap();
        let taken = bind(first.local_addr().unwrap(), "--listen").unwrap_err();
        assert_eq!(taken.code, exit::UNAVAILABLE);
        assert!(taken.to_string().contains("--listen"), "{taken}");
    }
}
