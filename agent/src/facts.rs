//! What this host is, as it says itself.

use std::{fs, io, net::IpAddr, sync::Arc};

use muster_proto::v1::Facts;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::utsname::uname};

use crate::{policy::Policy, process::User};

/// Looks at the host.
pub(crate) struct Source {
    user: User,
    boot_id: String,
    policy: Arc<Policy>,
    last: Option<Facts>,
    audit_conflict: String,
}

impl Source {
    /// For a host whose commands run as this user by default.
    pub(crate) fn new(user: User, policy: Arc<Policy>) -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self {
            user,
            boot_id: boot_id.trim().to_owned(),
            policy,
            last: None,
            audit_conflict: String::new(),
        })
    }

    /// Random id of this boot of the host.
    pub(crate) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// What contradicts the heads of the audit log that this agent keeps, in words.
    pub(crate) fn set_audit_conflict(&mut self, words: String) {
        self.audit_conflict = words;
    }

    /// The facts as they are now.
    pub(crate) fn look(&mut self) -> Facts {
        let facts = self.read();
        self.last = Some(facts.clone());
        facts
    }

    /// The facts, if they differ from those of the last look.
    pub(crate) fn look_for_change(&mut self) -> Option<Facts> {
        let facts = self.read();
        if self.last.as_ref() == Some(&facts) {
            return None;
        }
        self.last = Some(facts.clone());
        Some(facts)
    }

    fn read(&self) -> Facts {
        let release = fs::read_to_string("/etc/os-release")
            .or_else(|_| fs::read_to_string("/usr/lib/os-release"))
            .unwrap_or_default();
        let system = uname().ok();
        let text = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
        Facts {
            os: std::env::consts::OS.to_owned(),
            distro: os_release(&release, "ID").unwrap_or_default(),
            distro_version: os_release(&release, "VERSION_ID").unwrap_or_default(),
            kernel: system
                .as_ref()
                .map(|system| text(system.release()))
                .unwrap_or_default(),
            arch: std::env::consts::ARCH.to_owned(),
            cpus: std::thread::available_parallelism()
                .ok()
                .and_then(|cpus| i32::try_from(cpus.get()).ok())
                .unwrap_or(0),
            memory_bytes: memory_bytes().unwrap_or(0),
            shell: self.user.shell.display().to_string(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            addresses: addresses(),
            hostname: hostname(),
            user: self.user.name.clone(),
            boot_id: self.boot_id.clone(),
            ceiling: Some(self.policy.report()),
            audit_conflict: self.audit_conflict.clone(),
        }
    }
}

/// The host's own name for itself.
pub(crate) fn hostname() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// A value of os-release, which is written as for a shell.
fn os_release(text: &str, key: &str) -> Option<String> {
    let value = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

fn memory_bytes() -> Option<i64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn addresses() -> Vec<String> {
    let Ok(interfaces) = getifaddrs() else {
        return Vec::new();
    };
    let mut addresses: Vec<IpAddr> = interfaces
        .filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP))
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address
                .as_sockaddr_in()
                .map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| {
                address
                    .as_sockaddr_in6()
                    .map(|address| IpAddr::V6(address.ip()))
            })
        })
        .filter(|address| match address {
            IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
            IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.iter().map(IpAddr::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_is_read_with_and_without_quotes() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\nID=debian\n";
        assert_eq!(os_release(text, "ID").as_deref(), Some("debian"));
        assert_eq!(os_release(text, "VERSION_ID").as_deref(), Some("12"));
        assert_eq!(os_release(text, "VERSION"), None);
    }

    #[test]
    fn this_host_knows_itself() {
        let host = crate::process::Host::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let policy = Policy::load(None, path, path, host.user(), None).unwrap();
        let mut source = Source::new(host.user().clone(), Arc::new(policy)).unwrap();
        let facts = source.look();
        assert_eq!(facts.os, "linux");
        assert!(facts.memory_bytes > 0 && facts.cpus > 0);
        assert!(!facts.kernel.is_empty() && !facts.boot_id.is_empty());
        assert_eq!(
            facts.ceiling.unwrap().mode(),
            muster_proto::v1::Mode::Unrestricted
        );
        assert_eq!(source.look_for_change(), None);
    }
}
