//! Whole files into memory, as large as the caller allows. A FIFO is refused: reading one waits for
//! whoever writes it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

/// The octets of the regular file at `path`, of which there may be `bytes_max`.
///
/// # Errors
/// When it cannot be read, is no regular file, or is larger.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // without NONBLOCK opening a FIFO waits for a writer
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    let too_large = |size: u64| {
        let what = format!("has {size} octets, there may be {bytes_max}");
        io::Error::new(io::ErrorKind::FileTooLarge, what)
    };
    if metadata.len() > bytes_max {
        return Err(too_large(metadata.len()));
    }
    let mut octets = Vec::new();
    // it may have grown since
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut octets)?;
    match octets.len() as u64 {
        size if size > bytes_max => Err(too_large(size)),
        _ => Ok(octets),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::read;

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let size = std::fs::metadata(&own).unwrap().len();
        assert_eq!(read(&own, size).unwrap(), std::fs::read(&own).unwrap());
        let why = |path: &Path, max| read(path, max).unwrap_err().to_string();
        assert!(why(&own, size - 1).contains("there may be"));
        assert_eq!(why(Path::new("/"), 10), "is not a regular file");
        assert_eq!(why(Path::new("/dev/zero"), 10), "is not a regular file");
        assert!(why(Path::new("/none"), 10).contains("No such file"));
    }
}
