//! What a configuration leaves out that a node in earnest has: it starts without, and `hikyaku
//! check` says so.

use crate::config::Config;

/// One line for each.
pub fn advice(config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    let hostname = &config.node.hostname.0;
    if !hostname.contains('.') {
        lines.push(format!(
            "node.hostname: {hostname:?} is what peers hear and look up; set the full name of this host"
        ));
    }
    let (smtp, pop3) = (&config.smtp, &config.pop3);
    if smtp.listen.is_empty() && smtp.listen_tls.get_ref().is_empty() {
        lines.push("smtp.listen: no address is set, so no mail is taken".into());
    }
    if pop3.listen.is_empty() && pop3.listen_tls.get_ref().is_empty() {
        lines.push("pop3.listen: no address is set, so nobody reads mail".into());
    }
    lines
}
