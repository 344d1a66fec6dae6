//! An agent and supervisors of another version. The other one is a real supervisor behind a listener that stands in its
//! place and changes what it says.

use std::{os::unix::net::UnixListener as StdListener, path::Path, path::PathBuf};

use bytes::{BufMut as _, BytesMut};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::supervision::protocol::{self, News, OLDEST, ToAgent, VERSION};

/// A field that nobody knows yet: number 1000, with three bytes.
const UNKNOWN: [u8; 6] = [0xc2, 0x3e, 3, 1, 2, 3];

/// Stands in the place of a supervisor's socket, and says that it speaks `version`. A version of the future says things
/// that this build does not know.
struct Impostor {
    socket: PathBuf,
    /// Whether an agent has been told the version.
    asked: watch::Receiver<bool>,
    _serving: AbortOnDropHandle<()>,
}

impl Impostor {
    fn stand_for(supervisor: i32, directory: &Path, version: u32) -> Self {
        let entries = fs::read_dir(directory).unwrap();
        let socket = entries
            .map(|entry| entry.unwrap().path())
            .find(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                name.starts_with(&format!("{supervisor}-"))
            })
            .unwrap();
        // Beside the directory: nobody sweeps there.
        let real = directory.with_file_name("real");
        fs::rename(&socket, &real).unwrap();
        let listener = StdListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = UnixListener::from_std(listener).unwrap();
        let (told, asked) = watch::channel(false);
        let serving = tokio::spawn(async move {
            while let Ok((agent, _)) = listener.accept().await {
                let supervisor = UnixStream::connect(&real).await.unwrap();
                tokio::spawn(pass_on(agent, supervisor, version, told.clone()));
            }
        });
        Self {
            socket,
            asked,
            _serving: AbortOnDropHandle::new(serving),
        }
    }
}

async fn pass_on(
    agent: UnixStream,
    supervisor: UnixStream,
    version: u32,
    told: watch::Sender<bool>,
) {
    let (mut from_agent, mut to_agent) = agent.into_split();
    let (mut from_supervisor, mut to_supervisor) = supervisor.into_split();
    let up = async {
        let _ = tokio::io::copy(&mut from_agent, &mut to_supervisor).await;
    };
    let down = async {
        let mut inbox = BytesMut::new();
        while from_supervisor
            .read_buf(&mut inbox)
            .await
            .is_ok_and(|read| read > 0)
        {
            while let Some(mut message) = protocol::take::<ToAgent>(&mut inbox).unwrap() {
                if let Some(News::Hello(hello)) = &mut message.news {
                    hello.version = version;
                    told.send_replace(true);
                }
                let mut bytes = BytesMut::new();
                if version > VERSION {
                    bytes.put_u32_le(UNKNOWN.len() as u32);
                    bytes.put_slice(&UNKNOWN);
                    // The last field of a message, and the last of what is in it.
                    let message = message.encode_to_vec();
                    let inner = 1
                        + message[1..]
                            .iter()
                            .take_while(|byte| **byte >= 0x80)
                            .count()
                        + 1;
                    let mut body = vec![message[0]];
                    let mut content = message[inner..].to_vec();
                    content.extend(UNKNOWN);
                    prost::encoding::encode_varint(content.len() as u64, &mut body);
                    body.extend(content);
                    body.extend(UNKNOWN);
                    bytes.put_u32_le(body.len() as u32);
                    bytes.put_slice(&body);
                } else {
                    protocol::put(&mut bytes, &message);
                }
                if to_agent.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// A task that says its supervisor's process id, waits for a file, and writes more than a supervisor keeps in memory.
fn writer(go_on: &Path) -> Command {
    waiter("echo $PPID", go_on, "seq 1 300000; exit 6")
}

fn written() -> String {
    (1..=300_000).map(|number| format!("{number}\n")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_of_the_future_is_understood() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let go_on = host.path("go-on");
    let task_id = control_plane.offer(writer(&go_on)).await;
    let task = control_plane
        .task(&task_id, |task| !task.stdout.is_empty())
        .await;
    let supervisor = task.out().trim().parse().unwrap();
    host.die();
    let directory = host.path("agent/supervisors");
    let impostor = Impostor::stand_for(supervisor, &directory, VERSION + 1);
    host.start_agent().await;
    fs::write(go_on, "").unwrap();
    let ended = control_plane.settled(&task_id).await;
    assert_eq!(ended.ended.as_ref().unwrap().exit_code, Some(6));
    assert!(ended.out() == task.out() + &written());
    assert!(*impostor.asked.borrow());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_that_is_too_old_is_waited_for() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let go_on = host.path("go-on");
    let task_id = control_plane.offer(writer(&go_on)).await;
    let task = control_plane
        .task(&task_id, |task| !task.stdout.is_empty())
        .await;
    let supervisor = task.out().trim().parse().unwrap();
    host.die();
    let directory = host.path("agent/supervisors");
    let mut impostor = Impostor::stand_for(supervisor, &directory, OLDEST - 1);
    host.start_agent().await;
    impostor.asked.wait_for(|asked| *asked).await.unwrap();
    // The host is of use meanwhile.
    control_plane.attached(2).await;
    let other = control_plane.offer(command(&["true"])).await;
    control_plane.settled(&other).await;
    fs::write(go_on, "").unwrap();
    let record = directory.join(format!("{task_id}.ended"));
    until("the record", || record.exists()).await;
    // As it does by itself a minute later.
    kill(supervisor);
    let ended = control_plane.settled(&task_id).await;
    assert_eq!(ended.ended.as_ref().unwrap().exit_code, Some(6));
    assert!(ended.out() == task.out() + &written());
    assert_eq!(ended.missing, [0, 0]);
    let _ = fs::remove_file(&impostor.socket);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_below_a_supervisor_that_is_too_old_can_be_cancelled() {
    let control_plane = FakeControlPlane::start().await;
    let mut host = Host::start(&control_plane).await;
    let task_id = control_plane.offer(writer(&host.path("never"))).await;
    let task = control_plane
        .task(&task_id, |task| !task.stdout.is_empty())
        .await;
    let supervisor = task.out().trim().parse().unwrap();
    host.die();
    let directory = host.path("agent/supervisors");
    let mut impostor = Impostor::stand_for(supervisor, &directory, OLDEST - 1);
    host.start_agent().await;
    impostor.asked.wait_for(|asked| *asked).await.unwrap();
    control_plane.attached(2).await;
    control_plane
        .cancel(&task_id, Some(Duration::from_secs(5)))
        .await;
    let record = directory.join(format!("{task_id}.ended"));
    until("the record", || record.exists()).await;
    kill(supervisor);
    let ended = control_plane.settled(&task_id).await;
    assert_eq!(ended.state(), State::Cancelled);
}
