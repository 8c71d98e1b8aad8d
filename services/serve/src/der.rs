//! As much of DER (X.690) as it takes to look into certificates and keys. No length is trusted.

/// SEQUENCE.
pub const SEQUENCE: u8 = 0x30;

/// Tag and contents of the element at the start of `input`, and what follows it.
pub fn any(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        let count = usize::from(first & 0x7f);
        // an indefinite length is not DER; more than four octets of it are no certificate
        if count == 0 || count > 4 {
            return None;
        }
        let (octets, after) = rest.split_at_checked(count)?;
        length = octets
            .iter()
            .fold(0, |length, octet| length << 8 | usize::from(*octet));
        rest = after;
    }
    let (contents, after) = rest.split_at_checked(length)?;
    Some((tag, contents, after))
}

/// The contents of the element at the start of `input`, which must have this tag, and what follows
/// it.
pub fn element(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, contents, after) = any(input)?;
    (found == tag).then_some((contents, after))
}

/// What follows the element at the start of `input`.
pub fn skip(input: &[u8]) -> Option<&[u8]> {
    any(input).map(|(_, _, after)| after)
}

/// The fields of the certificate `der` (RFC 5280 section 4.1) from its issuer on.
pub fn from_issuer(der: &[u8]) -> Option<&[u8]> {
    const VERSION: u8 = 0xa0;
    let (certificate, _) = element(der, SEQUENCE)?;
    let (mut fields, _) = element(certificate, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        fields = skip(fields)?;
    }
    // serialNumber, signature
    skip(skip(fields)?)
}
