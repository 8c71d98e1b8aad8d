//! Blobs as files of one machine: `DIR/ab/<message id>`, written beside and renamed into place.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use hikyaku_mail::id::MessageId;

use crate::{BlobError, BlobReader, BlobWriter, Blobs};

const CHUNK: usize = 64 * 1024;

/// A directory of blobs.
pub struct FileBlobs {
    root: Arc<PathBuf>,
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> BlobError {
    let path = path.to_owned();
    move |error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => BlobError::Full,
        ErrorKind::NotFound => BlobError::Missing,
        _ => BlobError::Unavailable(format!("{}: {error}", path.display())),
    }
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(BlobError::Unavailable("file work was cancelled".into())))
}

fn sync_directory(path: &Path) -> Result<(), BlobError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(failed(path))
}

impl FileBlobs {
    /// Opens the directory `root`, creating it, and removes what unfinished writes left in it.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open(root: &Path) -> Result<FileBlobs, BlobError> {
        let temporary = root.join("tmp");
        match std::fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(failed(&temporary)(error));
            }
            _ => {}
        }
        std::fs::create_dir_all(&temporary).map_err(failed(&temporary))?;
        for shelf in 0..=255u8 {
            let path = root.join(format!("{shelf:02x}"));
            match std::fs::create_dir(&path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(failed(&path)(error));
                }
                _ => {}
            }
        }
        sync_directory(root)?;
        if let Some(parent) = root.parent() {
            sync_directory(parent)?;
        }
        Ok(FileBlobs {
            root: Arc::new(root.to_owned()),
        })
    }

    fn path(root: &Path, id: MessageId) -> PathBuf {
        // the last byte of the id is random
        let [.., shelf] = id.to_bytes();
        root.join(format!("{shelf:02x}")).join(id.to_string())
    }
}

impl Blobs for FileBlobs {
    fn create(&self, id: MessageId) -> BoxFuture<'_, Result<Box<dyn BlobWriter>, BlobError>> {
        let path = FileBlobs::path(&self.root, id);
        let temporary = self.root.join("tmp").join(id.to_string());
        Box::pin(blocking(move || {
            let file = File::options()
                .write(true)
                .create_new(true)
                .open(&temporary)
                .map_err(failed(&temporary))?;
            let temporary = Temporary { path: temporary };
            Ok(Box::new(FileWriter {
                file: Some(file),
                temporary,
                path,
            }) as Box<dyn BlobWriter>)
        }))
    }

    fn open(&self, id: MessageId) -> BoxFuture<'_, Result<Box<dyn BlobReader>, BlobError>> {
        let path = FileBlobs::path(&self.root, id);
        Box::pin(blocking(move || {
            let file = File::open(&path).map_err(failed(&path))?;
            Ok(Box::new(FileReader {
                file: Some(file),
                path,
            }) as Box<dyn BlobReader>)
        }))
    }

    fn delete(&self, id: MessageId) -> BoxFuture<'_, Result<(), BlobError>> {
        let path = FileBlobs::path(&self.root, id);
        Box::pin(blocking(move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => Ok(()),
        }))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<MessageId>, BlobError>> {
        let root = self.root.clone();
        Box::pin(blocking(move || {
            let mut ids = Vec::new();
            for shelf in 0..=255u8 {
                let path = root.join(format!("{shelf:02x}"));
                for entry in std::fs::read_dir(&path).map_err(failed(&path))? {
                    let name = entry.map_err(failed(&path))?.file_name();
                    ids.extend(
                        name.to_str()
                            .and_then(|name| name.parse::<MessageId>().ok()),
                    );
                }
            }
            Ok(ids)
        }))
    }
}

/// Removes the unfinished file unless it was renamed away.
struct Temporary {
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

struct FileWriter {
    file: Option<File>,
    temporary: Temporary,
    path: PathBuf,
}

impl BlobWriter for FileWriter {
    fn write(&mut self, chunk: Bytes) -> BoxFuture<'_, Result<(), BlobError>> {
        Box::pin(async move {
            let Some(mut file) = self.file.take() else {
                return Err(BlobError::Unavailable("an earlier write failed".into()));
            };
            let path = self.temporary.path.clone();
            let file = blocking(move || {
                file.write_all(&chunk).map_err(failed(&path))?;
                Ok(file)
            })
            .await?;
            self.file = Some(file);
            Ok(())
        })
    }

    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<(), BlobError>> {
        Box::pin(async move {
            let Some(file) = self.file.take() else {
                return Err(BlobError::Unavailable("an earlier write failed".into()));
            };
            blocking(move || {
                let FileWriter {
                    temporary, path, ..
                } = *self;
                file.sync_all().map_err(failed(&temporary.path))?;
                std::fs::rename(&temporary.path, &path).map_err(failed(&path))?;
                let Some(shelf) = path.parent() else {
                    return Ok(());
                };
                sync_directory(shelf)
            })
            .await
        })
    }
}

struct FileReader {
    file: Option<File>,
    path: PathBuf,
}

impl BlobReader for FileReader {
    fn read(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, BlobError>> {
        Box::pin(async move {
            let Some(mut file) = self.file.take() else {
                return Ok(None);
            };
            let path = self.path.clone();
            let (file, chunk) = blocking(move || {
                let mut chunk = BytesMut::zeroed(CHUNK);
                let length = file.read(&mut chunk).map_err(failed(&path))?;
                chunk.truncate(length);
                Ok((file, chunk.freeze()))
            })
            .await?;
            if chunk.is_empty() {
                return Ok(None);
            }
            self.file = Some(file);
            Ok(Some(chunk))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hikyaku_mail::id::{Class, MessageId, ShardId};

    use super::FileBlobs;
    use crate::body::{BodyReader, BodyWriter, INLINE_MAX};
    use crate::{Blobs, contract};

    #[tokio::test]
    async fn keeps_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("blobs");
        contract::all(|| Arc::new(FileBlobs::open(&root).unwrap())).await;
        let left = std::fs::read_dir(root.join("tmp")).unwrap().count();
        assert_eq!(left, 0, "unfinished writes left files");
    }

    #[tokio::test]
    async fn bit_rot_is_an_error_not_another_mail() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = Arc::new(FileBlobs::open(directory.path()).unwrap());
        let id = MessageId::new(ShardId::new(Class::Incoming, 0), 1_795_000_000_000, 7);
        let mut writer = BodyWriter::new(blobs.clone(), id);
        writer.write(&vec![b'x'; 2 * INLINE_MAX]).await.unwrap();
        let body = writer.finish().await.unwrap();
        let path = FileBlobs::path(directory.path(), blobs.list().await.unwrap()[0]);
        let mut octets = std::fs::read(&path).unwrap();
        octets[INLINE_MAX] ^= 1;
        std::fs::write(&path, octets).unwrap();
        let mut reader = BodyReader::open(&*blobs, &body).await.unwrap();
        let ended = loop {
            match reader.read().await {
                Ok(Some(_)) => {}
                ended => break ended,
            }
        };
        assert!(ended.is_err());
    }
}
