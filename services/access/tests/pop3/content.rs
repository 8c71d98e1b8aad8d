//! Mail on its way out: exact, bounded, never half.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hikyaku_blob::body::BodyWriter;
use hikyaku_blob::memory::MemoryBlobs;
use hikyaku_blob::{BlobError, BlobReader, BlobWriter, Blobs};
use hikyaku_mail::id::{Class, MessageId, ShardId};
use hikyaku_proto::v1::body::Content;
use hikyaku_proto::v1::{BlobRef, Body};
use proptest::prelude::{any, prop, prop_oneof};
use proptest::strategy::{Just, Strategy};
use proptest::test_runner::{Config, TestRunner};
use tokio::time::Instant;

use crate::support::{Mail, Site};

fn message_id() -> MessageId {
    MessageId::new(ShardId::new(Class::Incoming, 0), 1, 2)
}

fn give(site: &Site, prefix: &'static [u8], body: Body) {
    let mail = Mail {
        uid: 1,
        email_id: "M".into(),
        prefix: Bytes::from_static(prefix),
        body,
    };
    site.peers
        .state()
        .inboxes
        .insert((1, "id-alice".into()), vec![mail]);
}

fn blob_of(size: u64) -> Body {
    let id = Bytes::copy_from_slice(&message_id().to_bytes());
    Body {
        size,
        blake3: Bytes::new(),
        content: Some(Content::Blob(BlobRef { id })),
    }
}

/// `lines` lines of many lengths, some beginning with dots.
fn long_mail(lines: usize) -> Vec<u8> {
    let mut content = b"Subject: long\r\n\r\n".to_vec();
    for line in 0..lines {
        content.extend(std::iter::repeat_n(b'.', line % 3));
        content.extend(std::iter::repeat_n(b'x', line % 211));
        content.extend_from_slice(b"\r\n");
    }
    content
}

#[tokio::test(start_paused = true)]
async fn b224_mail_of_any_size_arrives_octet_by_octet_as_announced() {
    let site = Site::new();
    for lines in [0, 1, 100, 1100, 50_000] {
        let content = long_mail(lines);
        let mut writer = BodyWriter::new(site.blobs.clone(), message_id());
        for piece in content.chunks(70_000) {
            writer.write(piece).await.unwrap();
        }
        let body = writer.finish().await.unwrap();
        assert_eq!(
            matches!(body.content, Some(Content::Blob(_))),
            content.len() > 128 << 10
        );
        give(&site, b"Return-Path: <>\r\n", body);
        let expected = [b"Return-Path: <>\r\n", &content[..]].concat();
        let mut client = site.log_in().await;
        client
            .send(b"RETR 1\r\nLIST 1\r\nTOP 1 7\r\nQUIT\r\n")
            .await;
        let (status, received) = client.multiline().await.unwrap();
        assert!(received == expected, "{lines} lines differ");
        assert_eq!(status, format!("+OK {} octets\r\n", received.len()));
        client.play(&format!("S: +OK 1 {}", received.len())).await;
        let (_, top) = client.multiline().await.unwrap();
        assert!(expected.starts_with(&top));
        assert_eq!(
            top.iter().filter(|octet| **octet == b'\n').count(),
            3 + lines.min(7)
        );
        client.play("S: +OK*\nS: ~").await;
        site.blobs.delete(message_id()).await.unwrap();
    }
}

/// A blob of any size that nobody stores; it may break off.
#[derive(Clone)]
struct Endless {
    size: u64,
    breaks_at: u64,
    /// Octets read of it by all readers.
    read: Arc<AtomicU64>,
}

const PIECE: u64 = 64 << 10;
const GIGABYTE: u64 = 1 << 30;

impl Blobs for Endless {
    fn create(&self, _: MessageId) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, BlobError>> {
        Box::pin(async { Err(BlobError::Full) })
    }

    fn open(&self, _: MessageId) -> BoxFuture<'_, Result<Box<dyn BlobReader>, BlobError>> {
        let reader = EndlessReader {
            blob: self.clone(),
            position: 0,
        };
        Box::pin(async { Ok(Box::new(reader) as Box<dyn BlobReader>) })
    }

    fn delete(&self, _: MessageId) -> BoxFuture<'_, Result<(), BlobError>> {
        Box::pin(async { Ok(()) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<MessageId>, BlobError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

struct EndlessReader {
    blob: Endless,
    position: u64,
}

impl BlobReader for EndlessReader {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, BlobError>> {
        let mut piece = b"0123456789abcd\r\n".repeat(PIECE as usize / 16);
        if self.position == 0 {
            piece[..16].copy_from_slice(b"A: b\r\n\r\nbody..\r\n");
        }
        let position = self.position;
        self.position += PIECE;
        self.blob.read.fetch_add(PIECE, Ordering::SeqCst);
        let ended = position >= self.blob.size;
        let broken = position >= self.blob.breaks_at;
        Box::pin(async move {
            match (broken, ended) {
                (true, _) => Err(BlobError::Unavailable("disk is gone".into())),
                (false, true) => Ok(None),
                (false, false) => Ok(Some(Bytes::from(piece))),
            }
        })
    }
}

/// Alice's only mail, announced with `announced` octets, is a blob of `size` that breaks off at `breaks_at`.
fn endless(announced: u64, size: u64, breaks_at: u64) -> (Site, Arc<AtomicU64>) {
    let read = Arc::<AtomicU64>::default();
    let mut site = Site::new();
    site.blobs = Arc::new(Endless {
        size,
        breaks_at,
        read: read.clone(),
    });
    give(&site, b"", blob_of(announced));
    (site, read)
}

#[tokio::test(start_paused = true)]
async fn b224_top_reads_no_more_than_it_sends() {
    let (site, read) = endless(GIGABYTE, GIGABYTE, u64::MAX);
    let mut client = site.log_in().await;
    client.send(b"TOP 1 0\r\nTOP 1 1\r\n").await;
    assert_eq!(client.multiline().await.unwrap().1, b"A: b\r\n\r\n");
    let (status, content) = client.multiline().await.unwrap();
    assert_eq!(status, format!("+OK {GIGABYTE} octets\r\n"));
    assert_eq!(content, b"A: b\r\n\r\nbody..\r\n");
    assert_eq!(read.load(Ordering::SeqCst), 2 * PIECE);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_holds_little_and_is_cut_off() {
    let (site, read) = endless(GIGABYTE, GIGABYTE, u64::MAX);
    let mut client = site.log_in().await;
    let begun = Instant::now();
    client.send(b"TOP 1 4294967295\r\n").await;
    client.ended().await;
    assert_eq!(begun.elapsed(), site.options.write_timeout);
    // what the network took, and one piece
    assert!(read.load(Ordering::SeqCst) <= 2 * PIECE);
}

#[tokio::test(start_paused = true)]
async fn half_a_mail_is_never_taken_for_a_whole_one() {
    // the disk fails, or the blob is shorter or longer than it should be
    for (announced, size, breaks_at) in [
        (16 * PIECE, 16 * PIECE, 8 * PIECE),
        (16 * PIECE, 15 * PIECE, u64::MAX),
        (15 * PIECE, 16 * PIECE, u64::MAX),
    ] {
        let (site, _) = endless(announced, size, breaks_at);
        let mut client = site.log_in().await;
        client.send(b"RETR 1\r\nDELE 1\r\nQUIT\r\n").await;
        assert_eq!(client.multiline().await, None);
        client.ended().await;
        assert!(site.peers.state().expunges.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn content_that_cannot_be_had_is_an_error_and_the_session_goes_on() {
    let site = Site::new();
    give(&site, b"", blob_of(200_000));
    site.log_in()
        .await
        .play("C: RETR 1\nS: -ERR [SYS/PERM]*\nC: NOOP\nS: +OK*")
        .await;
    let (site, _) = endless(PIECE, PIECE, 0);
    site.log_in()
        .await
        .play("C: RETR 1\nS: -ERR [SYS/TEMP]*\nC: NOOP\nS: +OK*")
        .await;
    give(
        &site,
        b"",
        Body {
            content: Some(Content::Zstd(Bytes::from_static(b"no zstd"))),
            size: 7,
            blake3: Bytes::new(),
        },
    );
    site.log_in()
        .await
        .play("C: RETR 1\nS: -ERR [SYS/TEMP]*\nC: NOOP\nS: +OK*")
        .await;
    let mut client = site.log_in().await;
    site.peers.state().shards_down = true;
    client
        .play("C: RETR 1\nS: -ERR [SYS/TEMP]*\nC: NOOP\nS: +OK*")
        .await;
}

/// Ten mails, each with its number in it.
fn ten(site: &Site) {
    let mails =
        (1..=10).map(|uid| Mail::new(uid, &format!("M{uid}"), "", &format!("mail {uid}\r\n")));
    let mut state = site.peers.state();
    state
        .inboxes
        .insert((1, "id-alice".into()), mails.collect());
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_together_is_fetched_together() {
    let site = Site::new();
    ten(&site);
    let mut client = site.log_in().await;
    let commands: String = (1..=10)
        .map(|number| format!("RETR {number}\r\nDELE {number}\r\n"))
        .collect();
    client.send(commands.as_bytes()).await;
    for number in 1..=10 {
        let (_, content) = client.multiline().await.unwrap();
        assert_eq!(content, format!("mail {number}\r\n").as_bytes());
        client.play("S: +OK*").await;
    }
    // one and three ahead: 1 to 4, 5 to 8, 9 and 10
    assert_eq!(site.peers.state().fetches, 3);
    // one at a time: nothing is known to be wanted next
    client.play("C: RSET\nS: +OK*").await;
    for number in 1..=10 {
        client.send(format!("RETR {number}\r\n").as_bytes()).await;
        assert!(client.multiline().await.is_some());
    }
    assert_eq!(site.peers.state().fetches, 13);
}

#[tokio::test(start_paused = true)]
async fn in_whatever_order_mails_are_asked_for_each_answer_is_its_own() {
    let site = Site::new();
    ten(&site);
    // 3 is gone since the maildrop was opened, 5 is marked before its turn
    let mut client = site.log_in().await;
    let mails = site
        .peers
        .state()
        .inboxes
        .remove(&(1, "id-alice".into()))
        .unwrap();
    let left = mails.into_iter().filter(|mail| mail.uid != 3).collect();
    site.peers
        .state()
        .inboxes
        .insert((1, "id-alice".into()), left);
    let commands = "RETR 2\r\nRETR 1\r\nRETR 3\r\nDELE 5\r\nRETR 5\r\nTOP 6 9\r\nRETR 11\r\nRETR 2\r\nRETR 4\r\n";
    client.send(commands.as_bytes()).await;
    for expected in [
        "+OK 2",
        "+OK 1",
        "-ERR",
        "+OK marked",
        "-ERR",
        "+OK 6",
        "-ERR",
        "+OK 2",
        "+OK 4",
    ] {
        match expected.strip_prefix("+OK ").map(str::parse::<u32>) {
            Some(Ok(number)) => {
                let (_, content) = client.multiline().await.unwrap();
                assert_eq!(content, format!("mail {number}\r\n").as_bytes());
            }
            Some(Err(_)) => client.play("S: +OK*").await,
            None => client.play("S: -ERR*").await,
        }
    }
    client
        .play("C: QUIT\nS: +OK 1 messages deleted*\nS: ~")
        .await;
}

/// Bytes that come close to a session.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => Just(b"\r\n".to_vec()),
        4 => prop_oneof![
            Just("USER alice\r\n"), Just("PASS secret alice\r\n"), Just("USER "), Just("PASS "), Just("TOP 1 "), Just("RETR "),
            Just("DELE 1\r\n"), Just("LIST"), Just("UIDL\r\n"), Just("RSET\r\n"), Just("CAPA\r\n"), Just("STLS\r\n"), Just("1"),
            Just("4294967296"), Just("\n"), Just("\r"),
        ].prop_map(|text| text.as_bytes().to_vec()),
        2 => prop::collection::vec(any::<u8>(), 0..400),
    ];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

#[test]
fn any_bytes_end_in_an_ended_session_that_deletes_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let mut runner = TestRunner::new(Config {
        cases: 300,
        ..Config::default()
    });
    let result = runner.run(&(hostile(), any::<bool>()), |(octets, logged_in)| {
        runtime.block_on(async {
            let mut site = Site::new();
            site.network_bytes = 1 << 20;
            site.blobs = Arc::new(MemoryBlobs::new());
            let mut client = if logged_in {
                site.log_in().await
            } else {
                site.connect()
            };
            client.send(&octets).await;
            client.hang_up().await;
            assert_eq!(site.mails(), [3, 8]);
        });
        Ok(())
    });
    result.unwrap();
}
