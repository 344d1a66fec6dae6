//! Somebody's chat: a server that takes what is posted to it, and shows it.

use std::{net::SocketAddr, sync::Arc};

use aws_lc_rs::hmac;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// What was posted.
#[derive(Debug, Clone)]
pub struct Post {
    /// The first line and the headers, each as it came.
    pub head: Vec<String>,
    /// The body as it came.
    pub body: String,
}

impl Post {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The body.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Whether it is signed with this secret, as "t=SECONDS,v1=HEX".
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let signed = || {
            let (time, tag) = self.header("muster-signature")?.split_once(',')?;
            let (time, tag) = (time.strip_prefix("t=")?, tag.strip_prefix("v1=")?);
            let pairs = tag.as_bytes().chunks(2);
            let tag =
                pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
            let tag: Vec<u8> = tag.collect::<Option<_>>()?;
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
            let text = format!("{time}.{}", self.body);
            hmac::verify(&key, text.as_bytes(), &tag).ok()
        };
        signed().is_some()
    }
}

/// The server.
#[derive(Debug, Clone)]
pub struct Webhook {
    address: SocketAddr,
    posts: Arc<Mutex<Vec<Post>>>,
}

impl Webhook {
    /// Listens; fails so many times first.
    pub async fn start(failures: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let posts: Arc<Mutex<Vec<Post>>> = Arc::default();
        let kept = Arc::clone(&posts);
        tokio::spawn(async move {
            let mut left = failures;
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let Some(post) = read(&mut stream).await else {
                    continue;
                };
                kept.lock().push(post);
                let status = match left {
                    0 => "204 No Content",
                    _ => "503 Service Unavailable",
                };
                left = left.saturating_sub(1);
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                // Who posted may have gone.
                let _ = stream.get_mut().write_all(answer.as_bytes()).await;
            }
        });
        Self { address, posts }
    }

    /// The webhook's address.
    pub fn url(&self) -> String {
        format!("http://{}/hooks/muster", self.address)
    }

    /// What came so far.
    pub fn posts(&self) -> Vec<Post> {
        self.posts.lock().clone()
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Post> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let mut post = Post {
        head,
        body: String::new(),
    };
    let length: usize = post.header("content-length")?.parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    post.body = String::from_utf8(body).ok()?;
    Some(post)
}
