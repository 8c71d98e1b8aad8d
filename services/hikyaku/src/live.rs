//! What new connections are served with. A reload replaces it as a whole; connections that are there keep what they began with.

use std::sync::Arc;

use arc_swap::ArcSwap;
use hikyaku_access::pop3::options::{Login, Pop3Options};
use hikyaku_serve::listen::{Gate, ListenLimits};
use hikyaku_serve::tls::Material;
use hikyaku_smtp::options::Options as SmtpOptions;

use crate::config::{BareLf, Config};

/// One state of it.
#[derive(Clone)]
pub struct Serving {
    /// The configuration behind it.
    pub config: Arc<Config>,
    /// SMTP.
    pub smtp: Arc<SmtpOptions>,
    /// POP3.
    pub pop3: Arc<Pop3Options>,
    /// STARTTLS, STLS and TLS from the first byte.
    pub tls: Option<Material>,
}

impl Serving {
    /// What `config` asks for.
    pub fn new(config: Arc<Config>, tls: Option<Material>) -> Serving {
        let smtp = SmtpOptions {
            content_bytes_max: config.smtp.message_bytes_max.0,
            recipients_max: config.smtp.recipients_max,
            greet_delay: config.smtp.greet_delay.0,
            chunk_bare_lf_normalized: config.smtp.bare_lf_in_chunks == BareLf::Crlf,
            ..SmtpOptions::new(config.node.hostname.0.clone())
        }
        .with_deadlines(config.smtp.command_timeout.0, config.smtp.data_timeout.0);
        let login = if config.pop3.cleartext_login {
            Login::Cleartext
        } else {
            Login::TlsOnly
        };
        let pop3 = Pop3Options {
            login,
            ..Pop3Options::default()
        }
        .with_deadlines(config.pop3.login_timeout.0, config.pop3.idle_timeout.0);
        Serving {
            config,
            smtp: Arc::new(smtp),
            pop3: Arc::new(pop3),
            tls,
        }
    }
}

/// The state that holds now.
pub struct Live {
    serving: ArcSwap<Serving>,
    /// All SMTP connections, by their clients.
    pub smtp_gate: Gate,
    /// SMTP connections by the load balancers they come from.
    pub balancers_gate: Gate,
    /// All POP3 connections.
    pub pop3_gate: Gate,
}

impl Live {
    /// Begins with `serving`.
    pub fn new(serving: Serving) -> Live {
        let config = serving.config.clone();
        Live {
            smtp_gate: smtp_limits(&config).into(),
            balancers_gate: balancers_limits(&config).into(),
            pop3_gate: pop3_limits(&config).into(),
            serving: ArcSwap::from_pointee(serving),
        }
    }

    /// For the next connection.
    pub fn serving(&self) -> Arc<Serving> {
        self.serving.load_full()
    }

    /// From now on `serving` holds.
    pub fn replace(&self, serving: Serving) {
        self.smtp_gate.set_limits(smtp_limits(&serving.config));
        self.balancers_gate
            .set_limits(balancers_limits(&serving.config));
        self.pop3_gate.set_limits(pop3_limits(&serving.config));
        self.serving.store(Arc::new(serving));
    }
}

fn smtp_limits(config: &Config) -> ListenLimits {
    ListenLimits {
        connections_max: config.smtp.connections_max as usize,
        connections_per_source_max: config.smtp.connections_per_source_max as usize,
    }
}

/// A load balancer has as many clients as there may be.
fn balancers_limits(config: &Config) -> ListenLimits {
    ListenLimits {
        connections_per_source_max: config.smtp.connections_max as usize,
        ..smtp_limits(config)
    }
}

fn pop3_limits(config: &Config) -> ListenLimits {
    ListenLimits {
        connections_max: config.pop3.connections_max as usize,
        connections_per_source_max: config.pop3.connections_per_source_max as usize,
    }
}
