//! Files of an operator that other users of the machine may read or change, and should not.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::config::Config;

/// Others may read.
const READ: u32 = 0o004;
/// Others may write.
const WRITE: u32 = 0o002;

/// One line for each of the configuration `file` and what it names.
pub fn open_to_others(file: &Path, config: &Config) -> Vec<String> {
    let mut files = vec![
        (file, WRITE),
        (config.directory.ldif.get_ref(), READ | WRITE),
    ];
    if let Some(tls) = &config.tls {
        files.push((tls.certificate.get_ref(), WRITE));
        files.push((tls.key.get_ref(), READ | WRITE));
    }
    let found = files.into_iter().filter_map(|(path, unwanted)| {
        let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
        let may = match mode & unwanted {
            0 => return None,
            READ => "read",
            WRITE => "change",
            _ => "read and change",
        };
        let path = path.display();
        Some(format!(
            "{path}: others may {may} it (mode {mode:04o}); chmod o-rw"
        ))
    });
    found.collect()
}
