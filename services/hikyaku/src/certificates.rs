//! Certificate and key of this node: what may be served, and when an operator is to be warned.

use std::path::Path;
use std::time::UNIX_EPOCH;

use hikyaku_directory::ldif_directory::Stamp;
use hikyaku_mail::date;
use hikyaku_serve::tls::{self, Material};

use crate::config::Tls;

/// How long before its end a certificate is an alarm.
const WARNING_S: i64 = 14 * DAY_S;
const DAY_S: i64 = 86_400;
/// The stamp of files that cannot be looked at.
const NEVER: Stamp = Stamp {
    size: 0,
    modified_ns: 0,
};

/// Reads the pair that `files` names, for a node that has `served` until now. One that is not valid at `now_s` is refused
/// unless what is served is no better.
///
/// # Errors
/// What is wrong, with the file.
pub fn load(files: &Tls, served: Option<&Material>, now_s: i64) -> Result<Material, String> {
    let (certificate, key) = (files.certificate.get_ref(), files.key.get_ref());
    let material = tls::material(certificate, key).map_err(|error| error.to_string())?;
    let is_better = served.is_some_and(|served| invalid(certificate, served, now_s).is_none());
    match invalid(certificate, &material, now_s) {
        Some(why) if is_better => Err(why),
        _ => Ok(material),
    }
}

/// Why `material` is not valid at `now_s`.
pub fn invalid(certificate: &Path, material: &Material, now_s: i64) -> Option<String> {
    let file = certificate.display();
    if now_s >= material.not_after_s {
        Some(format!("{file}: expired at {}", time(material.not_after_s)))
    } else if now_s < material.not_before_s {
        Some(format!(
            "{file}: not valid before {}",
            time(material.not_before_s)
        ))
    } else {
        None
    }
}

/// What an operator must be told of what is served at `now_s`.
pub fn warning(certificate: &Path, material: &Material, now_s: i64) -> Option<String> {
    let left_s = material.not_after_s - now_s;
    invalid(certificate, material, now_s).or_else(|| {
        (left_s < WARNING_S).then(|| {
            format!(
                "{}: expires in {} days, at {}",
                certificate.display(),
                left_s / DAY_S,
                time(material.not_after_s)
            )
        })
    })
}

/// What is to be said of a chain that is broken; clients that know the issuers by themselves do not
/// mind.
pub fn gap(certificate: &Path, material: &Material) -> Option<String> {
    let number = material.gap?;
    Some(format!(
        "warning: {}: certificate {} has not issued certificate {number}; clients may find no way to a root",
        certificate.display(),
        number + 1
    ))
}

fn time(seconds: i64) -> String {
    date::rfc5322(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}

/// Both files as one: at rest when neither changes.
pub fn stamp(files: Option<&Tls>) -> Stamp {
    let Some(files) = files else { return NEVER };
    let certificate = stamp_of(files.certificate.get_ref());
    let key = stamp_of(files.key.get_ref());
    Stamp {
        size: certificate.size ^ key.size.rotate_left(32),
        modified_ns: certificate.modified_ns ^ key.modified_ns.rotate_left(64),
    }
}

fn stamp_of(file: &Path) -> Stamp {
    let look = || {
        let metadata = std::fs::metadata(file).ok()?;
        let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(Stamp {
            size: metadata.len(),
            modified_ns: modified.as_nanos(),
        })
    };
    look().unwrap_or(NEVER)
}
