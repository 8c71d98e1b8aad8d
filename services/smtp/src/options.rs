//! Limits and deadlines of one listener. Every queue, line, list and wait of this room is bounded by a field here.

use std::time::Duration;

/// A client may be as slow as `command_timeout` lets it for so many commands of one envelope.
const ENVELOPE_COMMANDS: u32 = 6;
/// A thousand recipients, one at a time, from the other side of the world.
const ENVELOPE_TIMEOUT_LEAST: Duration = Duration::from_secs(300);

/// What a listener allows. `..Options::new(host_name)` gives the documented defaults.
#[derive(Clone, Debug)]
pub struct Options {
    /// Our name in the banner and in the answer to EHLO.
    pub host_name: String,
    /// Content of one message, octets after dot-unstuffing; announced by SIZE (RFC 1870).
    pub content_bytes_max: u64,
    /// One line of the content, octets without its CRLF. RFC 5321 asks for 998, the world sends more.
    pub content_line_bytes_max: usize,
    /// Turns a bare LF in a content into CRLF instead of refusing the message. For networks of our own whose senders are
    /// broken; the content still ends at CRLF.CRLF only.
    pub bare_lf_normalized: bool,
    /// Turns a bare LF in a content in chunks into CRLF instead of refusing the message: such a
    /// content is counted, so no line end can forge its end. See
    /// `docs/decisions/0009-bare-lf-in-chunks.md`.
    pub chunk_bare_lf_normalized: bool,
    /// `Received` fields in one message before it counts as looping (RFC 5321 section 6.3).
    pub hops_max: u32,
    /// Octets of a message's header with its line ends; one field may be folded, all of it counts.
    pub header_bytes_max: u64,
    /// Octets of one field of it.
    pub header_field_bytes_max: u64,
    /// Fields of it.
    pub header_fields_max: u32,
    /// Chunks that one content may come in (RFC 3030).
    pub chunks_max: u32,
    /// RCPT commands heard out in one transaction; RFC 5321 section 4.5.3.1.8 asks for at least 100. Announced by
    /// LIMITS (RFC 9422).
    pub recipients_max: u32,
    /// Errors after which each further one is answered late, by `error_delay`.
    pub errors_soft_max: u32,
    /// Errors after which the session is closed. A delivered message forgives all.
    pub errors_max: u32,
    /// Commands that do nothing (NOOP, RSET, VRFY, HELP, EHLO again, an empty chunk) before the session is closed.
    pub junk_commands_max: u32,
    /// How late an error is answered beyond `errors_soft_max`.
    pub error_delay: Duration,
    /// For one whole command line to arrive (RFC 5321 section 4.5.3.2.7 asks for at least 5 minutes).
    pub command_timeout: Duration,
    /// For all commands from MAIL to the content together; only time spent waiting for the client counts. Whoever repeats RCPT
    /// in time would else hold a session, and memory, for days.
    pub envelope_timeout: Duration,
    /// For the next octets of the content to arrive.
    pub data_block_timeout: Duration,
    /// Octets a second below which a content is too slow, measured over `data_rate_window`; 0 turns the rule off.
    pub data_rate_min: u64,
    /// Over how much waiting `data_rate_min` is measured.
    pub data_rate_window: Duration,
    /// For the peer to take our replies.
    pub write_timeout: Duration,
    /// For a TLS handshake.
    pub handshake_timeout: Duration,
    /// Silence kept before the banner; a client that speaks into it is a robot. Zero greets at once.
    pub greet_delay: Duration,
}

impl Options {
    /// The documented defaults for a server called `host_name`.
    pub fn new(host_name: impl Into<String>) -> Options {
        Options {
            host_name: host_name.into(),
            content_bytes_max: 50 << 20,
            content_line_bytes_max: 64 << 10,
            bare_lf_normalized: false,
            chunk_bare_lf_normalized: true,
            hops_max: 100,
            header_bytes_max: 256 << 10,
            header_field_bytes_max: 100 << 10,
            header_fields_max: 2000,
            // a chunk for each KiB of the largest message, and some
            chunks_max: (50 << 10) + 1000,
            recipients_max: 1000,
            errors_soft_max: 10,
            errors_max: 20,
            junk_commands_max: 20,
            error_delay: Duration::from_secs(1),
            command_timeout: Duration::from_secs(300),
            envelope_timeout: Duration::from_secs(300) * ENVELOPE_COMMANDS,
            data_block_timeout: Duration::from_secs(180),
            data_rate_min: 500,
            data_rate_window: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(30),
            greet_delay: Duration::ZERO,
        }
    }

    /// With so much time for a command and for the next octets of a content; the other deadlines follow from these.
    #[must_use]
    pub fn with_deadlines(
        self,
        command_timeout: Duration,
        data_block_timeout: Duration,
    ) -> Options {
        Options {
            command_timeout,
            envelope_timeout: (command_timeout * ENVELOPE_COMMANDS).max(ENVELOPE_TIMEOUT_LEAST),
            data_block_timeout,
            data_rate_window: self.data_rate_window.min(data_block_timeout),
            write_timeout: self.write_timeout.min(command_timeout),
            handshake_timeout: self.handshake_timeout.min(command_timeout),
            ..self
        }
    }
}
