//! What edges ask so that mail for a full mailbox is refused at RCPT: which accounts are nearly full, and what one of them
//! holds now. From local state: an edge that hears nothing, or too little, takes the mail.

use hikyaku_proto::v1::{NearlyFullReply, NearlyFullRequest, UsageReply, UsageRequest};
use hikyaku_store::read::{self, Account};
use tonic::Status;

use crate::mailbox::MailboxService;
use crate::status;

impl MailboxService {
    pub(crate) fn nearly_full_in(
        &self,
        request: &NearlyFullRequest,
    ) -> Result<NearlyFullReply, Status> {
        let served = self.served(request.shard)?;
        let accounts = served.local.shard.read(|machine| {
            let accounts = machine.nearly_full().accounts();
            accounts.map(str::to_owned).collect()
        });
        Ok(NearlyFullReply { accounts })
    }

    pub(crate) fn usage_of(&self, request: &UsageRequest) -> Result<UsageReply, Status> {
        let served = self.served(request.shard)?;
        let account = read::account(&*served.local.engine.snapshot(), &request.account)
            .map_err(|error| status::of_store(&error))?;
        Ok(match account {
            Account::Open(account) => UsageReply {
                found: true,
                used_bytes: account.used_bytes,
                quota_bytes: account.quota_bytes,
            },
            Account::Absent | Account::Busy => UsageReply::default(),
        })
    }
}
