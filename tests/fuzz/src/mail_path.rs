//! Addresses (RFC 5321 section 4.1.2): what is taken is in the normal form, and the normal form is taken as it is.

use hikyaku_mail::path::{Mailbox, ReversePath, cut_path, normal_domain};

use crate::memory::bounded;

/// `data` is an address, a path and a domain.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    mailbox(text);
    domain(text);
    // the domains of a source route are read like any other, see below
    if let Ok((inside, after)) = bounded(text.len(), 64, || cut_path(text)) {
        assert!(text.ends_with(&format!("{inside}>{after}")));
        assert!(inside.len() <= 254);
        mailbox(inside);
        if let Ok(path) = ReversePath::parse(inside) {
            let written = path.to_string();
            assert_eq!(cut_path(&written), Ok((path.as_str(), "")), "{written}");
            assert_eq!(ReversePath::parse(path.as_str()), Ok(path));
        }
    }
}

fn mailbox(text: &str) {
    // NFC and UTS 46 need tables of their own and several copies
    let Ok(mailbox) = bounded(text.len(), 64, || text.parse::<Mailbox>()) else {
        return;
    };
    let written = mailbox.to_string();
    assert_eq!(written.parse::<Mailbox>().as_ref(), Ok(&mailbox));
    assert_eq!(
        written,
        format!("{}@{}", mailbox.local_part(), mailbox.domain())
    );
    assert!(written.len() <= 254);
    // it may stand in a header and between angle brackets
    assert!(!written.chars().any(char::is_control), "{written:?}");
    assert!(mailbox.domain().is_ascii());
    assert!(
        !mailbox
            .domain()
            .contains(['@', '<', '>', ' ', '"', '\\', ',', ';'])
    );
    if !mailbox.local_part().starts_with('"') {
        assert!(
            !mailbox
                .local_part()
                .contains(['@', '<', '>', ' ', '"', '\\', ',', ';', ':'])
        );
    }
    assert_eq!(
        cut_path(&format!("<{written}>")),
        Ok((written.as_str(), ""))
    );
}

fn domain(text: &str) {
    if let Ok(domain) = bounded(text.len(), 64, || normal_domain(text)) {
        assert_eq!(normal_domain(&domain).as_ref(), Ok(&domain), "{text:?}");
        assert!(domain.is_ascii() && domain.len() <= 253 && !domain.is_empty());
    }
}
