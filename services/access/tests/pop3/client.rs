//! A POP3 client that plays dialogues.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub const LOG_IN: &str = "
    S: +OK*
    C: USER alice
    S: +OK*
    C: PASS secret alice
    S: +OK*
";

pub struct Client<S> {
    stream: S,
    received: Vec<u8>,
    task: Option<JoinHandle<()>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Over `stream`, whose other side `task` serves.
    pub fn new(stream: S, task: JoinHandle<()>) -> Client<S> {
        Client {
            stream,
            received: Vec::new(),
            task: Some(task),
        }
    }

    /// Puts TLS around the stream, or whatever `around` does.
    pub async fn around<T, F: Future<Output = T>>(self, around: impl FnOnce(S) -> F) -> Client<T> {
        assert_eq!(self.received, b"", "something was sent ahead");
        Client {
            stream: around(self.stream).await,
            received: Vec::new(),
            task: self.task,
        }
    }

    pub async fn send(&mut self, octets: &[u8]) {
        self.stream.write_all(octets).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// One read; false at the end of the connection.
    async fn receive(&mut self) -> bool {
        let read = timeout(
            Duration::from_secs(3600),
            self.stream.read_buf(&mut self.received),
        )
        .await;
        // a TLS peer that goes without a word is an end, too
        read.expect("the server says nothing").unwrap_or(0) > 0
    }

    /// The next line with its CRLF; `None` at the end.
    pub async fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self
                .received
                .windows(2)
                .position(|window| window == b"\r\n")
            {
                return Some(self.received.drain(..at + 2).collect());
            }
            if !self.receive().await {
                assert_eq!(
                    String::from_utf8_lossy(&self.received),
                    "",
                    "half a line at the end"
                );
                return None;
            }
        }
    }

    /// A multi-line reply's status line and content, unstuffed; `None` if the connection ends before the closing dot.
    pub async fn multiline(&mut self) -> Option<(String, Vec<u8>)> {
        let status = String::from_utf8(self.line().await?).unwrap();
        assert!(status.starts_with("+OK"), "{status}");
        let mut content = Vec::new();
        loop {
            while let Some(at) = memchr::memchr(b'\n', &self.received) {
                let line: Vec<u8> = self.received.drain(..=at).collect();
                if line == b".\r\n" {
                    return Some((status, content));
                }
                content.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
            }
            if !self.receive().await {
                return None;
            }
        }
    }

    /// Waits until the server's side is over.
    pub async fn ended(&mut self) {
        self.task.take().unwrap().await.unwrap();
    }

    /// Hangs up without a word and waits until the server has noticed.
    pub async fn hang_up(self) {
        drop(self.stream);
        self.task.unwrap().await.unwrap();
    }

    pub async fn play(&mut self, dialogue: &str) {
        for (at, line) in dialogue.lines().map(str::trim_start).enumerate() {
            if let Some(command) = line.strip_prefix("C: ") {
                self.send(format!("{command}\r\n").as_bytes()).await;
            } else if line == "S: ~" {
                assert_eq!(
                    self.line()
                        .await
                        .map(|line| String::from_utf8(line).unwrap()),
                    None,
                    "line {at}"
                );
                self.ended().await;
            } else if let Some(expected) = line.strip_prefix("S: ") {
                let got = self
                    .line()
                    .await
                    .unwrap_or_else(|| panic!("line {at}: {expected:?} wanted, connection ended"));
                let got = String::from_utf8(got).unwrap();
                let got = got.trim_end_matches("\r\n");
                let fits = match expected.strip_suffix('*') {
                    Some(beginning) => got.starts_with(beginning),
                    None => got == expected,
                };
                assert!(fits, "line {at}: {expected:?} wanted, {got:?} came");
            } else {
                assert_eq!(line, "", "line {at} of the dialogue");
            }
        }
    }
}
