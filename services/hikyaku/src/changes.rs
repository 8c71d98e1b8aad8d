//! What differs between two configurations, and whether a running node can take it up.
//!
//! Every key is named here, so that a new one does not compile before somebody has decided.

use crate::config::{Blobs, Config, Directory, Log, Node, Pop3, Queue, Smtp, Store, Telemetry};

/// The keys that differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Taken up by a running node.
    pub live: Vec<String>,
    /// Need a restart.
    pub restart: Vec<String>,
}

impl Changes {
    /// What differs between `old` and `new`.
    pub fn between(old: &Config, new: &Config) -> Changes {
        let Config {
            node,
            directory,
            mbox: _,
            smtp,
            pop3,
            tls,
            queue,
            log,
            store,
            blobs,
            telemetry,
        } = old;
        let mut changes = Changes::default();
        changes.node(node, &new.node);
        changes.directory(directory, &new.directory);
        changes.mboxes(old, new);
        changes.smtp(smtp, &new.smtp);
        changes.pop3(pop3, &new.pop3);
        changes.live("tls", tls, &new.tls);
        changes.queue(queue, &new.queue);
        changes.log(log, &new.log);
        changes.store(store, &new.store);
        changes.blobs(blobs, &new.blobs);
        changes.telemetry(telemetry, &new.telemetry);
        changes
    }

    fn live<T: PartialEq>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.live.push(key.to_owned());
        }
    }

    fn restart<T: PartialEq>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.restart.push(key.to_owned());
        }
    }

    fn node(&mut self, old: &Node, new: &Node) {
        let Node {
            hostname,
            data_dir,
            drain_timeout,
        } = old;
        self.restart("node.hostname", hostname, &new.hostname);
        self.restart("node.data_dir", data_dir, &new.data_dir);
        self.live("node.drain_timeout", drain_timeout, &new.drain_timeout);
    }

    fn directory(&mut self, old: &Directory, new: &Directory) {
        let Directory {
            ldif,
            default_domain,
            postmaster,
            recipient_delimiter,
            quota_bytes_default,
        } = old;
        self.restart("directory.ldif", ldif, &new.ldif);
        self.live(
            "directory.default_domain",
            default_domain,
            &new.default_domain,
        );
        self.live("directory.postmaster", postmaster, &new.postmaster);
        self.live(
            "directory.recipient_delimiter",
            recipient_delimiter,
            &new.recipient_delimiter,
        );
        self.live(
            "directory.quota_bytes_default",
            quota_bytes_default,
            &new.quota_bytes_default,
        );
    }

    fn mboxes(&mut self, old: &Config, new: &Config) {
        let names: std::collections::BTreeSet<_> = old.mbox.keys().chain(new.mbox.keys()).collect();
        for name in names {
            self.restart(
                &format!("mbox.{name}"),
                &old.mbox.get(name),
                &new.mbox.get(name),
            );
        }
    }

    fn smtp(&mut self, old: &Smtp, new: &Smtp) {
        let Smtp {
            listen,
            listen_tls,
            proxy_protocol,
            proxy_networks,
            message_bytes_max,
            recipients_max,
            connections_max,
            connections_per_source_max,
            memory_bytes_max,
            command_timeout,
            data_timeout,
            greet_delay,
            bare_lf_in_chunks,
        } = old;
        self.restart("smtp.listen", listen, &new.listen);
        self.restart("smtp.listen_tls", listen_tls, &new.listen_tls);
        self.restart("smtp.proxy_protocol", proxy_protocol, &new.proxy_protocol);
        self.live("smtp.proxy_networks", proxy_networks, &new.proxy_networks);
        self.live(
            "smtp.message_bytes_max",
            message_bytes_max,
            &new.message_bytes_max,
        );
        self.live("smtp.recipients_max", recipients_max, &new.recipients_max);
        self.live(
            "smtp.connections_max",
            connections_max,
            &new.connections_max,
        );
        self.live(
            "smtp.connections_per_source_max",
            connections_per_source_max,
            &new.connections_per_source_max,
        );
        self.restart(
            "smtp.memory_bytes_max",
            memory_bytes_max,
            &new.memory_bytes_max,
        );
        self.live(
            "smtp.command_timeout",
            command_timeout,
            &new.command_timeout,
        );
        self.live("smtp.data_timeout", data_timeout, &new.data_timeout);
        self.live("smtp.greet_delay", greet_delay, &new.greet_delay);
        self.live(
            "smtp.bare_lf_in_chunks",
            bare_lf_in_chunks,
            &new.bare_lf_in_chunks,
        );
    }

    fn pop3(&mut self, old: &Pop3, new: &Pop3) {
        let Pop3 {
            listen,
            listen_tls,
            cleartext_login,
            connections_max,
            connections_per_source_max,
            memory_bytes_max,
            login_timeout,
            idle_timeout,
        } = old;
        self.restart("pop3.listen", listen, &new.listen);
        self.restart("pop3.listen_tls", listen_tls, &new.listen_tls);
        self.live(
            "pop3.cleartext_login",
            cleartext_login,
            &new.cleartext_login,
        );
        self.live(
            "pop3.connections_max",
            connections_max,
            &new.connections_max,
        );
        self.live(
            "pop3.connections_per_source_max",
            connections_per_source_max,
            &new.connections_per_source_max,
        );
        self.restart(
            "pop3.memory_bytes_max",
            memory_bytes_max,
            &new.memory_bytes_max,
        );
        self.live("pop3.login_timeout", login_timeout, &new.login_timeout);
        self.live("pop3.idle_timeout", idle_timeout, &new.idle_timeout);
    }

    fn queue(&mut self, old: &Queue, new: &Queue) {
        let Queue {
            messages_max,
            bytes_max,
            body_cache_bytes_max,
            expire_after,
            expire_bounces_after,
            report_delay_after,
        } = old;
        self.restart("queue.messages_max", messages_max, &new.messages_max);
        self.restart("queue.bytes_max", bytes_max, &new.bytes_max);
        self.restart(
            "queue.body_cache_bytes_max",
            body_cache_bytes_max,
            &new.body_cache_bytes_max,
        );
        self.restart("queue.expire_after", expire_after, &new.expire_after);
        self.restart(
            "queue.expire_bounces_after",
            expire_bounces_after,
            &new.expire_bounces_after,
        );
        self.restart(
            "queue.report_delay_after",
            report_delay_after,
            &new.report_delay_after,
        );
    }

    fn log(&mut self, old: &Log, new: &Log) {
        let Log {
            bytes_max,
            segment_bytes,
            cache_bytes_max,
        } = old;
        self.restart("log.bytes_max", bytes_max, &new.bytes_max);
        self.restart("log.segment_bytes", segment_bytes, &new.segment_bytes);
        self.restart("log.cache_bytes_max", cache_bytes_max, &new.cache_bytes_max);
    }

    fn store(&mut self, old: &Store, new: &Store) {
        let Store {
            memtable_bytes_max,
            cache_bytes_max,
            flush_interval,
        } = old;
        self.restart(
            "store.memtable_bytes_max",
            memtable_bytes_max,
            &new.memtable_bytes_max,
        );
        self.restart(
            "store.cache_bytes_max",
            cache_bytes_max,
            &new.cache_bytes_max,
        );
        self.restart("store.flush_interval", flush_interval, &new.flush_interval);
    }

    fn blobs(&mut self, old: &Blobs, new: &Blobs) {
        let Blobs {
            sweep_interval,
            keep_unnamed,
        } = old;
        self.restart("blobs.sweep_interval", sweep_interval, &new.sweep_interval);
        self.restart("blobs.keep_unnamed", keep_unnamed, &new.keep_unnamed);
    }

    fn telemetry(&mut self, old: &Telemetry, new: &Telemetry) {
        let Telemetry {
            log_format,
            log_filter,
            metrics_listen,
            otlp_endpoint,
            otlp_ratio,
        } = old;
        self.restart("telemetry.log_format", log_format, &new.log_format);
        self.live("telemetry.log_filter", log_filter, &new.log_filter);
        self.restart(
            "telemetry.metrics_listen",
            metrics_listen,
            &new.metrics_listen,
        );
        self.restart("telemetry.otlp_endpoint", otlp_endpoint, &new.otlp_endpoint);
        self.restart("telemetry.otlp_ratio", otlp_ratio, &new.otlp_ratio);
    }
}
