//! What a POP3 listener allows. Every wait of this room is bounded by a field here, every list by one here or in
//! [`crate::mailboxes::MailboxesOptions`].

use std::time::Duration;

use tokio_rustls::TlsAcceptor;

/// Limits and deadlines of one listener; [`Default`] gives the documented ones.
#[derive(Clone, Debug)]
pub struct Pop3Options {
    /// Whether passwords are taken without TLS.
    pub login: Login,
    /// For one whole command to arrive. RFC 1939 section 3 asks for at least 10 minutes.
    pub idle_timeout: Duration,
    /// From the banner to a login, whatever is said in between. The ten minutes are a user's, so that a pause loses no session; a
    /// stranger has none to lose, and must not hold a place that users wait for.
    pub login_timeout: Duration,
    /// For the peer to take one batch of output, some 64 KiB at most.
    pub write_timeout: Duration,
    /// For a TLS handshake.
    pub handshake_timeout: Duration,
    /// For the directory to answer a login.
    pub directory_timeout: Duration,
    /// For the next piece of a large mail.
    pub content_timeout: Duration,
    /// How late the first failed login is answered; doubled for each further one.
    pub login_delay: Duration,
    /// The longest such delay.
    pub login_delay_max: Duration,
    /// Failed logins before the connection is closed.
    pub login_failures_max: u32,
    /// Lines that are no commands before the connection is closed.
    pub errors_max: u32,
    /// How long a logged-in client may be silent once the node drains; one that goes on working is let finish.
    pub drain_patience: Duration,
}

/// Whether passwords are taken without TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Login {
    /// Never (RFC 2595 section 2.3).
    #[default]
    TlsOnly,
    /// Yes: for a listener on loopback or behind something that ends TLS.
    Cleartext,
}

impl Default for Pop3Options {
    fn default() -> Pop3Options {
        Pop3Options {
            login: Login::TlsOnly,
            idle_timeout: Duration::from_secs(600),
            login_timeout: Duration::from_secs(180),
            write_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(30),
            directory_timeout: Duration::from_secs(15),
            content_timeout: Duration::from_secs(30),
            login_delay: Duration::from_secs(1),
            login_delay_max: Duration::from_secs(8),
            login_failures_max: 4,
            errors_max: 20,
            drain_patience: Duration::from_secs(2),
        }
    }
}

impl Pop3Options {
    /// With so much time until the login and for a command; the other deadlines of the peer are no later than these.
    #[must_use]
    pub fn with_deadlines(self, login_timeout: Duration, idle_timeout: Duration) -> Pop3Options {
        Pop3Options {
            login_timeout,
            idle_timeout,
            write_timeout: self.write_timeout.min(idle_timeout),
            handshake_timeout: self.handshake_timeout.min(login_timeout),
            ..self
        }
    }
}

/// How a listener does TLS.
#[derive(Clone)]
pub enum Tls {
    /// Not at all.
    Off,
    /// When the client says STLS.
    StartTls(TlsAcceptor),
    /// From the first octet.
    Implicit(TlsAcceptor),
}
