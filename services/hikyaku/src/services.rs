//! The services that roles call each other by: generated clients over an in-process transport, so that one machine and a cluster
//! have the same code path.

use hikyaku_mbox::home::HomeService;
use hikyaku_mbox::mailbox::MailboxService;
use hikyaku_mbox::options::MboxOptions;
use hikyaku_proto::transport::{Transport, in_process};
use hikyaku_proto::v1::home_client::HomeClient;
use hikyaku_proto::v1::home_server::HomeServer;
use hikyaku_proto::v1::mailbox_client::MailboxClient;
use hikyaku_proto::v1::mailbox_server::MailboxServer;
use hikyaku_serve::tasks::Tasks;

use crate::budget::IN_FLIGHT_BYTES_MAX;
use crate::shards::Shards;

/// Octets that one inline body needs over gRPC, and room to spare.
pub const GRPC_BYTES_MAX: usize = 4 << 20;

/// Home and the mailboxes of this machine.
pub struct Services {
    /// Who owns an account.
    pub home: HomeService,
    /// Every mailbox shard.
    pub mailboxes: MailboxService,
}

impl Services {
    /// Serves `shards`; what a call has begun is finished in `ground`.
    pub fn new(ground: &Tasks, shards: &Shards) -> Services {
        let home = HomeService::new(ground, shards.home.clone(), MboxOptions::default());
        let mailboxes = MailboxService::new(
            ground,
            shards.mailboxes.iter().cloned(),
            in_process(HomeServer::new(home.clone())),
            // one courier calls, so this is the sum of all shards
            MboxOptions {
                in_flight_bytes_max: IN_FLIGHT_BYTES_MAX,
                ..MboxOptions::default()
            },
        );
        Services { home, mailboxes }
    }

    /// A client of Home.
    pub fn home_client(&self) -> HomeClient<Transport> {
        HomeClient::new(in_process(HomeServer::new(self.home.clone())))
    }

    /// A client of every mailbox shard.
    pub fn mailbox_client(&self) -> MailboxClient<Transport> {
        let transport = in_process(
            MailboxServer::new(self.mailboxes.clone())
                .max_decoding_message_size(GRPC_BYTES_MAX)
                .max_encoding_message_size(GRPC_BYTES_MAX),
        );
        MailboxClient::new(transport).max_decoding_message_size(GRPC_BYTES_MAX)
    }
}
