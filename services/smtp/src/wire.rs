//! The stream under a conversation: input up to one block ahead, output gathered until it is flushed, and a close that does
//! not lose our last reply.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use hikyaku_mail::reply::Reply;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::backend::End;
use crate::input::{Line, LineCutter};

/// Read at once while a content comes in.
pub const BLOCK_BYTES: usize = 32 << 10;
/// Read at once while commands come in.
pub const COMMAND_BYTES: usize = 4 << 10;
/// Replies gathered before they are written in any case.
const OUTPUT_BYTES_MAX: usize = 16 << 10;
/// After our last reply: how long, and for how much, we listen so that the reply is not lost to a connection reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 256 << 10;

/// One stream and its buffers.
pub struct Wire<S> {
    stream: S,
    /// What has been read and not been taken yet.
    pub input: BytesMut,
    /// The input has had room for a block since it was last shrunk.
    grown: bool,
    lines: LineCutter,
    output: Vec<u8>,
    write_timeout: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire<S> {
    /// A wire over `stream`; `write_timeout` is the peer's to take our replies.
    pub fn new(stream: S, write_timeout: Duration) -> Wire<S> {
        Wire {
            stream,
            input: BytesMut::new(),
            grown: false,
            lines: LineCutter::default(),
            output: Vec::new(),
            write_timeout,
        }
    }

    /// The stream, without what was buffered.
    pub fn into_stream(self) -> S {
        self.stream
    }

    /// The next line that has been read, if there is one.
    pub fn cut_line(&mut self) -> Option<Line> {
        self.lines.cut(&mut self.input)
    }

    /// Reads up to `bytes_max` more octets; none at the end of the stream.
    pub async fn fill(&mut self, bytes_max: usize) -> io::Result<usize> {
        self.grown |= bytes_max > COMMAND_BYTES;
        self.input.reserve(bytes_max);
        let mut limited = (&mut self.input).limit(bytes_max);
        self.stream.read_buf(&mut limited).await
    }

    /// Gives the buffer for blocks back after a content. Costs no more than what filled it, however small the content.
    pub fn shrink(&mut self) {
        if std::mem::take(&mut self.grown) {
            self.input = BytesMut::from(&self.input[..]);
        }
    }

    /// True if the peer has sent something that has not been taken. An octet may be lost by asking, so the session must
    /// end then.
    pub async fn has_input(&mut self) -> bool {
        if !self.input.is_empty() {
            return true;
        }
        let mut byte = [0; 1];
        let mut buffer = ReadBuf::new(&mut byte);
        let polled =
            poll_fn(
                |context| match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                    Poll::Ready(Ok(())) => Poll::Ready(true),
                    Poll::Ready(Err(_)) | Poll::Pending => Poll::Ready(false),
                },
            );
        polled.await && !buffer.filled().is_empty()
    }

    /// Gathers a reply. RFC 5321 section 4.2: printable ASCII on one line, whatever its text was made from.
    pub fn gather(&mut self, reply: &Reply) {
        let printable = |byte: u8| {
            if byte == b'\t' || (b' '..=b'~').contains(&byte) {
                byte
            } else {
                b'?'
            }
        };
        self.output.extend(reply.to_string().bytes().map(printable));
        self.output.extend_from_slice(b"\r\n");
    }

    /// Gathers the lines of a 250.
    pub fn gather_lines(&mut self, lines: Vec<String>) {
        let mut lines = lines.into_iter().peekable();
        while let Some(line) = lines.next() {
            let separator = if lines.peek().is_some() { '-' } else { ' ' };
            self.output
                .extend_from_slice(format!("250{separator}{line}\r\n").as_bytes());
        }
    }

    /// True if so much has been gathered that it must be flushed.
    pub fn is_full(&self) -> bool {
        self.output.len() > OUTPUT_BYTES_MAX
    }

    /// Writes what has been gathered.
    pub async fn flush(&mut self) -> Result<(), End> {
        if self.output.is_empty() {
            return Ok(());
        }
        // if this fails, nobody knows how much has been written: it must not be tried again
        let mut output = std::mem::take(&mut self.output);
        let write = async {
            self.stream.write_all(&output).await?;
            self.stream.flush().await
        };
        match timeout(self.write_timeout, write).await {
            Ok(Ok(())) => {
                output.clear();
                self.output = output;
                Ok(())
            }
            Ok(Err(_)) => Err(End::Disconnected),
            Err(_) => Err(End::TimedOut),
        }
    }

    /// Sends what is left to say and closes. Unread input would make the kernel reset the connection and the peer lose our
    /// last reply, so for a moment it is read and thrown away.
    pub async fn close(&mut self) {
        if self.flush().await.is_err() {
            return;
        }
        let linger = async {
            let _ = self.stream.shutdown().await;
            let mut discarded = 0;
            while discarded < LINGER_BYTES_MAX {
                self.input.clear();
                match self.fill(COMMAND_BYTES).await {
                    Ok(count) if count > 0 => discarded += count,
                    _ => return,
                }
            }
        };
        let _ = timeout(LINGER, linger).await;
    }
}
