//! The stream under a conversation: input up to one block ahead, output gathered until it is flushed, and a close that does
//! not lose our last reply.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use hikyaku_mail::reply::Reply;
use hikyaku_serve::line::{Line, LineCutter};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use crate::backend::End;

/// A line this long, CRLF included, is kept whole so that the command grammar can judge it.
const LINE_BYTES_MAX: usize = 1024 + 2;
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
        self.lines.cut(&mut self.input, LINE_BYTES_MAX)
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
                // a connection that has been answered much does not hold on to it
                if output.capacity() <= COMMAND_BYTES {
                    self.output = output;
                }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Buf;
    use hikyaku_mail::reply::Reply;
    use tokio::io::AsyncWriteExt;

    use super::{BLOCK_BYTES, COMMAND_BYTES, OUTPUT_BYTES_MAX, Wire};
    use hikyaku_serve::line::Line;

    /// What `docs/LIMITS.md` states for the input, between commands and in a content.
    const INPUT_IDLE_BYTES: usize = 16 << 10;
    const INPUT_CONTENT_BYTES: usize = 2 * (BLOCK_BYTES + COMMAND_BYTES);

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 11).unwrap() % bound
        }
    }

    /// Octets the input's buffer really has, also in front of what is left of it.
    fn allocated(wire: Wire<tokio::io::DuplexStream>) -> usize {
        Vec::from(wire.input).capacity()
    }

    #[tokio::test]
    async fn a_connection_holds_no_more_than_stated() {
        let mut most = [0; 2];
        for seed in 1..2000_u64 {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let (mut client, server) = tokio::io::duplex(256 << 10);
            let mut wire = Wire::new(server, Duration::from_secs(1));
            let mut in_content = false;
            'dialogue: for _ in 0..random.below(12) {
                let unit =
                    ["NOOP\r\n", "x", &"y".repeat(1000), "BDAT 1\r\nx"][random.below(4)].to_owned();
                let sent = unit
                    .repeat(1 + random.below((128 << 10) / unit.len()) / (1 + random.below(40)));
                client.write_all(sent.as_bytes()).await.unwrap();
                let mut left = sent.len();
                while left > 0 {
                    in_content = random.below(2) == 0;
                    if in_content {
                        left -= wire.fill(BLOCK_BYTES).await.unwrap();
                        // a content takes all there is, or it is over
                        if random.below(3) > 0 {
                            wire.input.clear();
                            continue;
                        }
                        wire.input.advance(random.below(wire.input.len() + 1));
                        in_content = false;
                    }
                    wire.shrink();
                    // as the server does: it reads only when there is no line, and ends when there is none in sight
                    while let Some(line) = wire.cut_line() {
                        if matches!(line, Line::Malformed | Line::Endless) {
                            break 'dialogue;
                        }
                    }
                    if left > 0 {
                        left -= wire.fill(COMMAND_BYTES).await.unwrap();
                    }
                }
            }
            most[usize::from(in_content)] = most[usize::from(in_content)].max(allocated(wire));
        }
        println!("idle {} octets, in a content {} octets", most[0], most[1]);
        // what a content leaves behind for the next command is at most one block, and is used up before more is read
        assert!(
            most[0] <= INPUT_CONTENT_BYTES && most[1] <= INPUT_CONTENT_BYTES,
            "{most:?}"
        );
        assert!(most[1] >= BLOCK_BYTES);
    }

    #[tokio::test]
    async fn an_idle_connection_gives_back_what_it_used() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut wire = Wire::new(server, Duration::from_secs(1));
        client.write_all(&[b'x'; BLOCK_BYTES]).await.unwrap();
        assert_eq!(wire.fill(BLOCK_BYTES).await.unwrap(), BLOCK_BYTES);
        wire.input.clear();
        wire.shrink();
        client.write_all(&b"NOOP\r\n".repeat(100)).await.unwrap();
        wire.fill(COMMAND_BYTES).await.unwrap();
        while wire.cut_line().is_some() {}
        let reply = Reply::new(250, (2, 0, 0), "x".repeat(80));
        let mut output = 0;
        while !wire.is_full() {
            wire.gather(&reply);
            output = output.max(wire.output.capacity());
        }
        assert!(output <= 2 * OUTPUT_BYTES_MAX + 1024, "{output}");
        wire.flush().await.unwrap();
        assert!(wire.output.capacity() <= COMMAND_BYTES);
        assert!(allocated(wire) <= INPUT_IDLE_BYTES);
    }
}
