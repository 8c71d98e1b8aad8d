//! A peer double: Home and mailbox shards that keep a few mails in memory and fail on demand; and an access node on top.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hikyaku_access::mailboxes::{Mailboxes, MailboxesOptions};
use hikyaku_access::pop3::options::{Login, Pop3Options, Tls};
use hikyaku_access::pop3::server::{Pop3Deps, serve_pop3};
use hikyaku_blob::Blobs;
use hikyaku_blob::body::inline_body;
use hikyaku_blob::memory::MemoryBlobs;
use hikyaku_directory::throttle::{Throttle, ThrottleLimits};
use hikyaku_directory::{Account, AccountState, Directory, LoginError, Resolution, Unavailable};
use hikyaku_mail::id::AccountId;
use hikyaku_mail::path::Mailbox as Address;
use hikyaku_proto::transport::in_process;
use hikyaku_proto::v1::home_client::HomeClient;
use hikyaku_proto::v1::home_server::{Home, HomeServer};
use hikyaku_proto::v1::mailbox_client::MailboxClient;
use hikyaku_proto::v1::mailbox_server::{Mailbox, MailboxServer};
use hikyaku_proto::v1::{
    Body, ClaimReply, ClaimRequest, DeliverReply, DeliverRequest, ExpungeReply, ExpungeRequest,
    FetchReply, FetchRequest, FetchedAhead, LookupReply, LookupRequest, MaildropMessage,
    MaildropPage, NearlyFullReply, NearlyFullRequest, NotOwner, OpenMaildropRequest, UsageReply,
    UsageRequest, VoidReply, VoidRequest,
};
use hikyaku_shard::ambient::Ambient;
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::client::{Client, LOG_IN};

/// UIDVALIDITY of every INBOX here.
const UID_VALIDITY: u32 = 77;

#[derive(Clone)]
pub struct Mail {
    pub uid: u32,
    pub email_id: String,
    pub prefix: Bytes,
    pub body: Body,
}

impl Mail {
    pub fn new(uid: u32, email_id: &str, prefix: &str, content: &str) -> Mail {
        let body = inline_body(content.as_bytes()).unwrap();
        Mail {
            uid,
            email_id: email_id.into(),
            prefix: Bytes::copy_from_slice(prefix.as_bytes()),
            body,
        }
    }
}

/// Everything the peers know, and how they are ill.
#[derive(Default)]
pub struct State {
    pub owners: BTreeMap<String, u32>,
    /// By shard and account.
    pub inboxes: BTreeMap<(u32, String), Vec<Mail>>,
    pub closed: BTreeSet<String>,
    /// What a shard that does not own an account says about it.
    pub hints: BTreeMap<u32, Option<u32>>,
    pub home_down: bool,
    pub shards_down: bool,
    /// So many expunges fail before they are applied, so many after.
    pub expunges_refused: usize,
    pub expunge_answers_lost: usize,
    pub expunges: Vec<ExpungeRequest>,
    pub applied: BTreeSet<Bytes>,
    pub opened_at: Vec<u32>,
    pub fetches: usize,
}

#[derive(Clone, Default)]
pub struct Peers(Arc<Mutex<State>>);

impl Peers {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

#[tonic::async_trait]
impl Home for Peers {
    async fn claim(&self, _: Request<ClaimRequest>) -> Result<Response<ClaimReply>, Status> {
        Err(Status::unimplemented("access claims nothing"))
    }

    async fn lookup(
        &self,
        request: Request<LookupRequest>,
    ) -> Result<Response<LookupReply>, Status> {
        let state = self.state();
        if state.home_down {
            return Err(Status::unavailable("home is down"));
        }
        let request = request.into_inner();
        // a replica that lags knows nobody yet
        let shard = state
            .owners
            .get(&request.account)
            .copied()
            .filter(|_| request.linearizable);
        Ok(Response::new(LookupReply {
            shard,
            generation: 1,
        }))
    }
}

#[tonic::async_trait]
impl Mailbox for Peers {
    type OpenMaildropStream = tokio_stream::Iter<std::vec::IntoIter<Result<MaildropPage, Status>>>;

    async fn deliver(&self, _: Request<DeliverRequest>) -> Result<Response<DeliverReply>, Status> {
        Err(Status::unimplemented("access delivers nothing"))
    }

    async fn void(&self, _: Request<VoidRequest>) -> Result<Response<VoidReply>, Status> {
        Err(Status::unimplemented("access voids nothing"))
    }

    async fn nearly_full(
        &self,
        _: Request<NearlyFullRequest>,
    ) -> Result<Response<NearlyFullReply>, Status> {
        Err(Status::unimplemented("access refuses no mail"))
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<UsageReply>, Status> {
        Err(Status::unimplemented("access asks for no usage"))
    }

    async fn open_maildrop(
        &self,
        request: Request<OpenMaildropRequest>,
    ) -> Result<Response<Self::OpenMaildropStream>, Status> {
        let mut state = self.state();
        if state.shards_down {
            return Err(Status::unavailable("shard is down"));
        }
        let OpenMaildropRequest { shard, account } = request.into_inner();
        state.opened_at.push(shard);
        let page = MaildropPage {
            mailbox_id: 5,
            uid_validity: UID_VALIDITY,
            ..MaildropPage::default()
        };
        let pages = if let Some(hint) = state.hints.get(&shard) {
            vec![MaildropPage {
                not_owner: Some(NotOwner {
                    shard: *hint,
                    generation: 1,
                }),
                ..MaildropPage::default()
            }]
        } else if state.closed.contains(&account) {
            vec![MaildropPage {
                closed: true,
                ..MaildropPage::default()
            }]
        } else {
            match state.inboxes.get(&(shard, account)) {
                None => vec![MaildropPage {
                    absent: true,
                    ..MaildropPage::default()
                }],
                Some(mails) if mails.is_empty() => vec![page],
                Some(mails) => mails
                    .chunks(2)
                    .enumerate()
                    .map(|(number, some)| MaildropPage {
                        messages: some.iter().map(listed).collect(),
                        exists: if number == 0 { mails.len() as u64 } else { 0 },
                        ..page.clone()
                    })
                    .collect(),
            }
        };
        Ok(Response::new(tokio_stream::iter(
            pages.into_iter().map(Ok).collect::<Vec<_>>(),
        )))
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<FetchReply>, Status> {
        let mut state = self.state();
        if state.shards_down {
            return Err(Status::unavailable("shard is down"));
        }
        state.fetches += 1;
        let request = request.into_inner();
        assert_eq!(
            (request.mailbox_id, request.uid_validity),
            (5, UID_VALIDITY)
        );
        let mails = state
            .inboxes
            .get(&(request.shard, request.account))
            .map(Vec::as_slice)
            .unwrap_or_default();
        let find = |uid: u32| mails.iter().find(|mail| mail.uid == uid);
        let ahead = request.ahead.iter().filter_map(|uid| find(*uid));
        let reply = find(request.uid).map(|mail| FetchReply {
            found: true,
            prefix: mail.prefix.clone(),
            body: Some(mail.body.clone()),
            // a shard answers with as many as it likes
            ahead: ahead.take(3).map(fetched_ahead).collect(),
        });
        Ok(Response::new(reply.unwrap_or_default()))
    }

    async fn expunge(
        &self,
        request: Request<ExpungeRequest>,
    ) -> Result<Response<ExpungeReply>, Status> {
        let mut state = self.state();
        let request = request.into_inner();
        state.expunges.push(request.clone());
        if state.expunges_refused > 0 {
            state.expunges_refused -= 1;
            return Err(Status::unavailable("log is down"));
        }
        let expunge = request.expunge.unwrap();
        if state.applied.insert(request.cmd_id) {
            let mails = state
                .inboxes
                .get_mut(&(request.shard, expunge.account))
                .unwrap();
            let gone: BTreeSet<u32> = expunge.uids.iter().copied().collect();
            mails.retain(|mail| !gone.contains(&mail.uid));
        }
        if state.expunge_answers_lost > 0 {
            state.expunge_answers_lost -= 1;
            return Err(Status::deadline_exceeded("answer lost"));
        }
        Ok(Response::new(ExpungeReply {
            expunged: expunge.uids.len() as u32,
        }))
    }
}

fn fetched_ahead(mail: &Mail) -> FetchedAhead {
    FetchedAhead {
        uid: mail.uid,
        prefix: mail.prefix.clone(),
        body: Some(mail.body.clone()),
    }
}

fn listed(mail: &Mail) -> MaildropMessage {
    let size = mail.prefix.len() as u64 + mail.body.size;
    MaildropMessage {
        uid: mail.uid,
        size,
        email_id: mail.email_id.clone(),
    }
}

/// alice and carol log in with "secret" followed by their name, disabled may not; a login "ill" finds the directory down.
#[derive(Default)]
pub struct Staff {
    pub asked: AtomicUsize,
}

impl Directory for Staff {
    fn resolve<'a>(&'a self, _: &'a Address) -> BoxFuture<'a, Result<Resolution, Unavailable>> {
        Box::pin(async { Err(Unavailable::new("access resolves nothing")) })
    }

    fn authenticate<'a>(
        &'a self,
        login: &'a str,
        password: &'a [u8],
    ) -> BoxFuture<'a, Result<Account, LoginError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            match login {
                "ill" => return Err(Unavailable::new("no server answers").into()),
                "slow" => std::future::pending().await,
                "alice" | "carol" | "disabled"
                    if password == format!("secret {login}").as_bytes() => {}
                _ => return Err(LoginError::Wrong),
            }
            if login == "disabled" {
                return Err(LoginError::Disabled);
            }
            Ok(Account {
                id: format!("id-{login}").parse().unwrap(),
                tenant: "example.jp".into(),
                mbox: "mbox1".into(),
                address: format!("{login}@example.jp").parse().unwrap(),
                quota_bytes: None,
                state: AccountState::Active,
            })
        })
    }

    fn account<'a>(
        &'a self,
        _: &'a AccountId,
    ) -> BoxFuture<'a, Result<Option<Account>, Unavailable>> {
        Box::pin(async { Err(Unavailable::new("access asks for no account")) })
    }

    fn postmaster(&self) -> Address {
        "postmaster@example.jp".parse().unwrap()
    }
}

#[derive(Default)]
pub struct Counter(AtomicU64);

impl Ambient for Counter {
    fn now_ms(&self) -> u64 {
        0
    }

    fn random(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// One access node and its peers.
pub struct Site {
    pub peers: Peers,
    pub staff: Arc<Staff>,
    pub throttle: Arc<Throttle>,
    pub blobs: Arc<dyn Blobs>,
    pub options: Pop3Options,
    pub mailboxes: MailboxesOptions,
    pub tls: Tls,
    pub drain: CancellationToken,
    /// How much the network holds of what a client has not read.
    pub network_bytes: usize,
    /// What all its sessions share, from the first one on.
    node: OnceLock<Mailboxes>,
}

/// The two mails alice has at first. "Ma" is 42 octets, "Mb" 29.
pub fn alices_mails() -> Vec<Mail> {
    vec![
        Mail::new(
            3,
            "Ma",
            "Return-Path: <>\r\n",
            "Subject: a\r\n\r\n.dot\r\nend\r\n",
        ),
        Mail::new(8, "Mb", "", "Subject: b\r\n\r\none\r\ntwo\r\nthree"),
    ]
}

impl Site {
    /// Alice's account is on shard 1, cleartext logins are allowed.
    pub fn new() -> Site {
        let peers = Peers::default();
        peers.state().owners.insert("id-alice".into(), 1);
        peers
            .state()
            .inboxes
            .insert((1, "id-alice".into()), alices_mails());
        Site {
            peers,
            staff: Arc::default(),
            throttle: Arc::new(Throttle::new(ThrottleLimits::default(), [9; 32])),
            blobs: Arc::new(MemoryBlobs::new()),
            options: Pop3Options {
                login: Login::Cleartext,
                ..Pop3Options::default()
            },
            mailboxes: MailboxesOptions::default(),
            tls: Tls::Off,
            drain: CancellationToken::new(),
            network_bytes: 64 << 10,
            node: OnceLock::new(),
        }
    }

    pub fn connect(&self) -> Client<DuplexStream> {
        self.connect_from("127.0.0.1")
    }

    pub fn connect_from(&self, address: &str) -> Client<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(self.network_bytes);
        let deps = Pop3Deps {
            directory: self.staff.clone(),
            throttle: self.throttle.clone(),
            mailboxes: self.node.get_or_init(|| self.reach()).clone(),
            blobs: self.blobs.clone(),
        };
        let served = serve_pop3(
            theirs,
            (address.parse::<std::net::IpAddr>().unwrap(), 50000).into(),
            Arc::new(deps),
            Arc::new(self.options.clone()),
            self.tls.clone(),
            self.drain.clone(),
        );
        let task = tokio::spawn(served);
        Client::new(ours, task)
    }

    /// The way to the peers.
    fn reach(&self) -> Mailboxes {
        Mailboxes::new(
            HomeClient::new(in_process(HomeServer::new(self.peers.clone()))),
            MailboxClient::new(in_process(MailboxServer::new(self.peers.clone()))),
            Arc::new(Counter::default()),
            self.mailboxes,
        )
    }

    pub fn mails(&self) -> Vec<u32> {
        self.peers.state().inboxes[&(1, "id-alice".into())]
            .iter()
            .map(|mail| mail.uid)
            .collect()
    }

    /// Plays a dialogue on a new connection: `C: ` lines are sent, `S: ` lines must come; one that ends with `*` may go on in
    /// any way; `S: ~` is the end of the connection, and `C: ~` hangs up.
    pub async fn play(&self, dialogue: &str) {
        let mut client = self.connect();
        client.play(dialogue).await;
    }

    pub async fn log_in(&self) -> Client<DuplexStream> {
        let mut client = self.connect();
        client.play(LOG_IN).await;
        client
    }
}
