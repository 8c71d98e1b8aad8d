//! Bounded buffers around one connection's stream. Replies are batched until the client's commands are all answered or the
//! buffer is full; reading and writing have deadlines.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use hikyaku_serve::line::{Line, LineCutter};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::pop3::reply::Reply;

/// Commands read ahead of the one being answered.
const INPUT_BYTES_MAX: usize = 4 << 10;
/// Room made for one read: most clients send one command and wait.
const INPUT_BYTES_STEP: usize = 1 << 10;
/// From here on the output is sent before more is produced; a piece of content makes it longer for a moment.
const OUTPUT_BYTES_FULL: usize = 32 << 10;
/// A waiting connection keeps no larger output buffer than this.
const OUTPUT_BYTES_KEPT_MAX: usize = 512;

/// Why there is no next line, or no way to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The peer hung up, or the connection broke.
    Lost,
    /// No command in time.
    Idle,
    /// The peer does not take our replies.
    Stuck,
    /// The node drains.
    Drained,
}

/// One connection's stream and its buffers.
#[derive(Debug)]
pub struct Wire<S> {
    stream: S,
    input: BytesMut,
    cutter: LineCutter,
    output: Vec<u8>,
    write_timeout: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Around `stream`; each batch of output must be taken within `write_timeout`.
    pub fn new(stream: S, write_timeout: Duration) -> Wire<S> {
        Wire {
            stream,
            input: BytesMut::new(),
            cutter: LineCutter::default(),
            output: Vec::new(),
            write_timeout,
        }
    }

    /// The stream, without what was read ahead.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// Whether the peer sent more than was cut off yet.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Whether a whole line has come that was not cut off yet.
    pub fn has_line(&self) -> bool {
        memchr::memchr(b'\n', &self.input).is_some()
    }

    /// The whole lines that have come and were not cut off yet, as far as they look like lines.
    pub fn lines_ahead(&self) -> impl Iterator<Item = &[u8]> {
        let end = memchr::memrchr(b'\n', &self.input).map_or(0, |end| end + 1);
        let lines = self.input.get(..end).unwrap_or_default();
        let lines = lines.split_inclusive(|octet| *octet == b'\n');
        lines.map_while(|line| line.strip_suffix(b"\r\n"))
    }

    /// The next line of at most `bytes_max`, all of which must come within `idle`; sends what is to be sent before waiting for it.
    /// Once `drain` ends, a line is waited for no longer than `drain_patience`.
    pub async fn line(
        &mut self,
        bytes_max: usize,
        idle: Duration,
        drain: CancellationToken,
        drain_patience: Duration,
    ) -> Result<Line, Closed> {
        if let Some(line) = self.cutter.cut(&mut self.input, bytes_max) {
            return Ok(line);
        }
        self.flush().await?;
        if self.output.capacity() > OUTPUT_BYTES_KEPT_MAX {
            self.output = Vec::new();
        }
        let drained = async {
            drain.cancelled_owned().await;
            sleep(drain_patience).await;
        };
        tokio::select! {
            biased;
            () = drained => Err(Closed::Drained),
            line = timeout(idle, read_line(&mut self.stream, &mut self.input, &mut self.cutter, bytes_max)) => {
                line.unwrap_or(Err(Closed::Idle))
            }
        }
    }

    /// Adds a status line to the output.
    pub fn reply(&mut self, reply: &Reply) {
        reply.write(&mut self.output);
    }

    /// The output, to be added to; see [`Wire::flush_full`].
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Sends the output if there is much of it.
    pub async fn flush_full(&mut self) -> Result<(), Closed> {
        if self.output.len() < OUTPUT_BYTES_FULL {
            return Ok(());
        }
        self.flush().await
    }

    /// Sends the output.
    pub async fn flush(&mut self) -> Result<(), Closed> {
        if self.output.is_empty() {
            return Ok(());
        }
        let sent = async {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await
        };
        match timeout(self.write_timeout, sent).await {
            Ok(Ok(())) => {
                self.output.clear();
                Ok(())
            }
            Ok(Err(_)) => Err(Closed::Lost),
            Err(_) => Err(Closed::Stuck),
        }
    }

    /// Sends what is left and hangs up; a peer that does not take it is left alone.
    pub async fn close(&mut self) {
        if self.flush().await.is_ok() {
            let _ = timeout(self.write_timeout, self.stream.shutdown()).await;
        }
    }
}

async fn read_line<S: AsyncRead + Unpin>(
    stream: &mut S,
    input: &mut BytesMut,
    cutter: &mut LineCutter,
    bytes_max: usize,
) -> Result<Line, Closed> {
    loop {
        input.reserve(INPUT_BYTES_STEP);
        let room = INPUT_BYTES_MAX.saturating_sub(input.len());
        match stream.read_buf(&mut (&mut *input).limit(room)).await {
            Ok(0) | Err(_) => return Err(Closed::Lost),
            Ok(_) => {}
        }
        if let Some(line) = cutter.cut(input, bytes_max) {
            return Ok(line);
        }
    }
}
