//! Attempts at sockets, the network and what processes share.

use std::{
    mem::{size_of, zeroed},
    ptr::null,
};

use nix::libc::{self, c_int};

use crate::{number, ok, past, text, var};

/// Tries this one; `None` if it is none of these. Says whether it came through.
pub(crate) fn attempt(name: &str) -> Option<bool> {
    unsafe fn unix(name: &[u8]) -> (libc::sockaddr_un, u32) {
        let mut address: libc::sockaddr_un = unsafe { zeroed() };
        address.sun_family = libc::AF_UNIX as u16;
        for (to, from) in address.sun_path.iter_mut().zip(name) {
            *to = *from as libc::c_char;
        }
        let length = 2 + name.len() as u32;
        (address, length)
    }
    unsafe fn internet(port: i32) -> libc::sockaddr_in {
        let mut address: libc::sockaddr_in = unsafe { zeroed() };
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = (port as u16).to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
        address
    }
    let connect = |kind: c_int, name: &[u8]| unsafe {
        let (address, length) = unix(name);
        let socket = libc::socket(libc::AF_UNIX, kind, 0);
        ok(libc::connect(socket, (&raw const address).cast(), length))
    };
    let path = |name: &str| format!("{}/{name}\0", var("OUT")).into_bytes();
    let inet = size_of::<libc::sockaddr_in>() as u32;
    Some(unsafe {
        match name {
            "abstract-socket" => {
                let name = format!("\0{}", var("NAME"));
                connect(libc::SOCK_STREAM, name.as_bytes())
            }
            "path-socket" => connect(libc::SOCK_STREAM, &path("daemon.sock")),
            "datagram-socket" => connect(libc::SOCK_DGRAM, &path("datagram.sock")),
            "pair-of-datagrams" => {
                let mut ends = [0; 2];
                libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, ends.as_mut_ptr());
                let (address, length) = unix(&path("datagram.sock"));
                ok(libc::sendto(
                    ends[0],
                    c"escaped".as_ptr().cast(),
                    7,
                    0,
                    (&raw const address).cast(),
                    length,
                ) as i64)
            }
            "pair-of-packets" => {
                let mut ends = [0; 2];
                let made =
                    libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, ends.as_mut_ptr());
                let (address, length) = unix(&path("datagram.sock"));
                // The address is not looked at: what is sent goes to the other end.
                let sent = libc::sendto(
                    ends[0],
                    c"escaped".as_ptr().cast(),
                    7,
                    0,
                    (&raw const address).cast(),
                    length,
                );
                let mut word = [0u8; 8];
                let came = libc::recv(ends[1], word.as_mut_ptr().cast(), 8, libc::MSG_DONTWAIT);
                ok(made) && sent == 7 && came != 7
            }
            "pair-reconnected" => {
                let mut ends = [0; 2];
                libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr());
                let (address, length) = unix(&path("daemon.sock"));
                ok(libc::connect(ends[0], (&raw const address).cast(), length))
            }
            "agent-socket" => {
                let path = format!("{}/agent/status.sock\0", var("DATA")).into_bytes();
                connect(libc::SOCK_STREAM, &path)
            }
            "tcp" => {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
                let address = internet(number("TCP"));
                ok(libc::connect(socket, (&raw const address).cast(), inet))
            }
            "tcp-fast-open" => {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
                let address = internet(number("TCP"));
                ok(libc::sendto(
                    socket,
                    c"escaped".as_ptr().cast(),
                    7,
                    libc::MSG_FASTOPEN,
                    (&raw const address).cast(),
                    inet,
                ) as i64)
            }
            "multipath-tcp" => {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 262);
                let address = internet(number("TCP"));
                ok(libc::connect(socket, (&raw const address).cast(), inet))
            }
            "udp" => {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
                let address = internet(number("UDP"));
                ok(libc::sendto(
                    socket,
                    c"escaped".as_ptr().cast(),
                    7,
                    0,
                    (&raw const address).cast(),
                    inet,
                ) as i64)
            }
            "listen" => {
                let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
                ok(libc::listen(socket, 1))
            }
            "raw-socket" => ok(libc::socket(
                libc::AF_INET,
                libc::SOCK_RAW,
                libc::IPPROTO_RAW,
            )),
            "packet-socket" => past(
                libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0),
                &[libc::EAFNOSUPPORT],
            ),
            "netlink-uevent" => ok(libc::socket(libc::AF_NETLINK, libc::SOCK_DGRAM, 15)),
            "netlink-netfilter" => past(
                libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 12),
                &[libc::EPROTONOSUPPORT],
            ),
            "netlink-add-address" => {
                let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0);
                // RTM_SETLINK of the loopback, acknowledged: nothing is changed by it.
                let mut message = [0u8; 32];
                message[0] = 32;
                message[4] = 19;
                message[6] = 5;
                message[20] = 1;
                libc::send(socket, message.as_ptr().cast(), 32, 0);
                let mut answer = [0u8; 64];
                let length = libc::recv(socket, answer.as_mut_ptr().cast(), 64, libc::MSG_DONTWAIT);
                length >= 20 && answer[16..20] == [0; 4]
            }
            "crypto-socket" => past(
                libc::socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
                &[libc::EAFNOSUPPORT],
            ),
            "vsock" => past(
                libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
                &[libc::EAFNOSUPPORT],
            ),
            "bluetooth" => past(
                libc::socket(libc::AF_BLUETOOTH, libc::SOCK_RAW, 1),
                &[libc::EAFNOSUPPORT],
            ),
            "xdp" => past(libc::socket(44, libc::SOCK_RAW, 0), &[libc::EAFNOSUPPORT]),
            "sysv-memory" => {
                let id = libc::shmget(number("SHARED"), 0, 0);
                let memory = libc::shmat(id, null(), 0);
                memory as isize != -1 && {
                    *memory.cast::<u8>() = b'X';
                    true
                }
            }
            "sysv-semaphore" => {
                let id = libc::semget(number("SHARED"), 0, 0);
                ok(id) && ok(libc::semctl(id, 0, 16, 7)) // SETVAL
            }
            "sysv-queue" => {
                let id = libc::msgget(number("SHARED"), 0);
                ok(id) && {
                    let message = [1u64, 0x78];
                    ok(libc::msgsnd(
                        id,
                        message.as_ptr().cast(),
                        1,
                        libc::IPC_NOWAIT,
                    ))
                }
            }
            "message-queue" => {
                let name = text(format!("/{}", var("NAME")));
                let queue = libc::mq_open(name.as_ptr(), libc::O_WRONLY);
                ok(queue) && ok(libc::mq_send(queue, c"x".as_ptr(), 1, 0))
            }
            _ => return None,
        }
    })
}
