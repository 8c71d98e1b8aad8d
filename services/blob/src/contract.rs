//! What every blob store must do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use hikyaku_mail::id::{Class, MessageId, ShardId};
use hikyaku_proto::v1::body::Content;

use crate::body::{BodyReader, BodyWriter, INLINE_MAX};
use crate::{BlobError, Blobs};

/// Runs all tests; `open` opens the same store again, as after a restart.
///
/// # Panics
/// When the store breaks the contract.
pub async fn all<B: Blobs>(open: impl Fn() -> Arc<B>) {
    bodies_read_back_as_written(&open).await;
    an_uncommitted_blob_does_not_exist(&open).await;
    deleted_blobs_are_gone(&open).await;
}

fn id(random: u64) -> MessageId {
    MessageId::new(ShardId::new(Class::Incoming, 0), 1_795_000_000_000, random)
}

async fn read_all(blobs: &dyn Blobs, body: &hikyaku_proto::v1::Body) -> Result<Vec<u8>, BlobError> {
    let mut reader = BodyReader::open(blobs, body).await?;
    let mut content = Vec::new();
    while let Some(chunk) = reader.read().await? {
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}

async fn bodies_read_back_as_written<B: Blobs>(open: impl Fn() -> Arc<B>) {
    for (random, size) in [
        0,
        1,
        77,
        INLINE_MAX - 1,
        INLINE_MAX,
        INLINE_MAX + 1,
        3 << 20,
    ]
    .into_iter()
    .enumerate()
    {
        let content: Vec<u8> = (0..size).map(|index| (index * 31 % 251) as u8).collect();
        let blobs = open();
        let mut writer = BodyWriter::new(blobs, id(random as u64));
        for chunk in content.chunks(7001) {
            writer.write(chunk).await.unwrap();
        }
        let body = writer.finish().await.unwrap();
        assert_eq!(body.size, size as u64);
        assert_eq!(body.blake3.as_ref(), blake3::hash(&content).as_bytes());
        assert_eq!(
            matches!(body.content, Some(Content::Blob(_))),
            size > INLINE_MAX,
            "size {size}"
        );
        let reopened = open();
        assert!(
            read_all(&*reopened, &body).await.unwrap() == content,
            "size {size}"
        );
        let mut lying = body.clone();
        lying.size += 1;
        assert!(read_all(&*reopened, &lying).await.is_err());
        if size > INLINE_MAX {
            lying.size = body.size - 1;
            assert!(read_all(&*reopened, &lying).await.is_err());
            lying.size = body.size;
            lying.blake3 = vec![0; blake3::OUT_LEN].into();
            assert!(read_all(&*reopened, &lying).await.is_err());
        }
    }
    assert_eq!(open().list().await.unwrap().len(), 2);
}

async fn an_uncommitted_blob_does_not_exist<B: Blobs>(open: impl Fn() -> Arc<B>) {
    let blobs = open();
    let before = blobs.list().await.unwrap().len();
    let mut writer = blobs.create(id(100)).await.unwrap();
    writer.write(vec![1; 1000].into()).await.unwrap();
    assert!(matches!(blobs.open(id(100)).await, Err(BlobError::Missing)));
    drop(writer);
    let reopened = open();
    assert!(matches!(
        reopened.open(id(100)).await,
        Err(BlobError::Missing)
    ));
    assert_eq!(reopened.list().await.unwrap().len(), before);
}

async fn deleted_blobs_are_gone<B: Blobs>(open: impl Fn() -> Arc<B>) {
    let blobs = open();
    let mut writer = blobs.create(id(200)).await.unwrap();
    writer.write(vec![2; 1000].into()).await.unwrap();
    writer.commit().await.unwrap();
    assert!(blobs.open(id(200)).await.is_ok());
    blobs.delete(id(200)).await.unwrap();
    blobs.delete(id(200)).await.unwrap();
    assert!(matches!(
        open().open(id(200)).await,
        Err(BlobError::Missing)
    ));
}
