//! What one LDIF record says, in the words of the inetLocalMailRecipient profile (the Lachman draft).
//!
//! | attribute | values | meaning |
//! |---|---|---|
//! | `entryUUID` | 1 | the account's immutable id; needed by a mailbox, not by an alias, forward or group |
//! | `uid` | many | login names |
//! | `mailLocalAddress` | 1 or more | addresses; the first is the canonical one |
//! | `mailHost` | 0 or 1 | the mbox (ours) or mail server (foreign) |
//! | `mailRoutingAddress` | 0 or 1 | where mail goes instead |
//! | `userPassword` | many | `{SSHA}` and so on, see [`crate::password`] |
//! | `mailQuotaSize` | 0 or 1 | octets, 0 is unlimited |
//! | `accountStatus` | 0 or 1 | `active`, `suspended` (`nopop`, `noaccess`), `disabled` (`inactive`), `deleted` |
//! | `mgrpRFC822MailMember`, `rfc822MailMember` | many | members of a group, by address |
//! | `member`, `uniqueMember` | many | members of a group, by DN |
//! | `mgrpErrorsTo` | 0 or 1 | who hears of failing members |
//!
//! An entry with objectClass `domainRelatedObject` names hosted domains: `associatedDomain`, for the tenant `o`, else `ou`,
//! else its first domain; its `mailHost` is the tenant's default mbox (a server's schema allows it there with the class
//! `inetLocalMailRecipient`). It is no mailbox: an address in it is in doubt, not unknown. Other entries (people, units) are passed over.
//! What is wrong with an entry is listed in it, and makes that entry alone unavailable. Next: `load`.

use std::str::FromStr;

use hikyaku_mail::id::AccountId;
use hikyaku_mail::path::{Mailbox, normal_domain};

use crate::AccountState;
use crate::dn::normal_dn;
use crate::ldif::{Attribute, Record};
use crate::password;

/// Passwords tried for one account at most.
pub const PASSWORDS_MAX: usize = 8;

/// What a record is for us.
#[derive(Debug)]
pub enum Draft {
    /// Mailbox, alias, forward or group.
    Recipient(Box<Recipient>),
    /// Hosted domains.
    Domains(Domains),
}

/// A mailbox, alias, forward or group as the file has it, not yet compared with other entries.
#[derive(Debug, Default)]
pub struct Recipient {
    /// Line of the `dn:`.
    pub line: u32,
    /// Printable DN.
    pub dn: Box<str>,
    /// `entryUUID`.
    pub id: Option<AccountId>,
    /// `uid`, in lower case.
    pub logins: Vec<String>,
    /// `mailLocalAddress`, the canonical one first.
    pub addresses: Vec<Mailbox>,
    /// `mailHost`, in lower case.
    pub mail_host: Option<String>,
    /// `mailRoutingAddress`.
    pub routing: Option<Mailbox>,
    /// `userPassword`.
    pub passwords: Vec<Box<str>>,
    /// `mailQuotaSize`.
    pub quota_bytes: Option<u64>,
    /// `accountStatus`.
    pub state: AccountState,
    /// Set for a group.
    pub group: Option<GroupDraft>,
    /// What makes the entry unusable.
    pub errors: Vec<(u32, String)>,
    /// What an operator should look at; the entry works.
    pub warnings: Vec<(u32, String)>,
}

/// Members as the file has them.
#[derive(Debug, Default)]
pub struct GroupDraft {
    /// In the order of the entry.
    pub members: Vec<MemberDraft>,
    /// `mgrpErrorsTo`.
    pub errors_to: Option<Mailbox>,
}

/// One member.
#[derive(Debug)]
pub enum MemberDraft {
    /// By address.
    Address(Mailbox),
    /// By normalised DN, and the line that says so.
    Dn(u32, String),
}

/// Hosted domains and whose they are.
#[derive(Debug, Default)]
pub struct Domains {
    /// Line of the `dn:`.
    pub line: u32,
    /// Printable DN.
    pub dn: Box<str>,
    /// The tenant.
    pub tenant: String,
    /// The domains, normalised.
    pub domains: Vec<String>,
    /// The tenant's default mbox.
    pub mail_host: Option<String>,
    /// Each `mailLocalAddress`, with its line: a mailbox's, and this is no mailbox.
    pub addresses: Vec<(u32, Mailbox)>,
    /// What is wrong.
    pub errors: Vec<(u32, String)>,
}

/// The attributes of the profile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    AccountStatus,
    AssociatedDomain,
    EntryUuid,
    MailHost,
    MailLocalAddress,
    MailQuotaSize,
    MailRoutingAddress,
    Member,
    MemberAddress,
    MemberErrorsTo,
    ObjectClass,
    Organization,
    OrganizationalUnit,
    Uid,
    UserPassword,
}

impl Name {
    /// The attribute with this name, in lower case; `None` for those that do not matter here.
    fn parse(name: &str) -> Option<Name> {
        Some(match name {
            "accountstatus" => Name::AccountStatus,
            "associateddomain" => Name::AssociatedDomain,
            "entryuuid" => Name::EntryUuid,
            "mailhost" => Name::MailHost,
            "maillocaladdress" => Name::MailLocalAddress,
            "mailquotasize" => Name::MailQuotaSize,
            "mailroutingaddress" => Name::MailRoutingAddress,
            "member" | "uniquemember" => Name::Member,
            "mgrprfc822mailmember" | "rfc822mailmember" => Name::MemberAddress,
            "mgrperrorsto" => Name::MemberErrorsTo,
            "objectclass" => Name::ObjectClass,
            "o" | "organizationname" => Name::Organization,
            "ou" | "organizationalunitname" => Name::OrganizationalUnit,
            "uid" | "userid" => Name::Uid,
            "userpassword" => Name::UserPassword,
            _ => return None,
        })
    }
}

/// A record's attributes that matter here, in its order.
struct Fields<'r, 'a> {
    line: u32,
    dn: &'r str,
    list: Vec<(Name, &'r Attribute<'a>)>,
}

impl<'r, 'a> Fields<'r, 'a> {
    fn named(&self, name: Name) -> impl Iterator<Item = &'r Attribute<'a>> {
        self.list
            .iter()
            .filter(move |(other, _)| *other == name)
            .map(|(_, attribute)| *attribute)
    }

    fn has(&self, name: Name) -> bool {
        self.named(name).next().is_some()
    }

    fn is_class(&self, classes: &[&str]) -> bool {
        let is_one = |value: &[u8]| {
            classes
                .iter()
                .any(|class| value.eq_ignore_ascii_case(class.as_bytes()))
        };
        self.named(Name::ObjectClass)
            .any(|class| is_one(class.value.trim_ascii()))
    }
}

/// What `record` is for us; `None` if it is nothing to do with mail.
pub fn draft(record: &Record<'_>) -> Option<Draft> {
    let list = record
        .attributes
        .iter()
        .filter_map(|attribute| Some((Name::parse(&attribute.name)?, attribute)));
    let fields = Fields {
        line: record.line,
        dn: &record.dn,
        list: list.collect(),
    };
    if fields.is_class(&["domainRelatedObject"]) {
        return Some(Draft::Domains(domains(&fields)));
    }
    let is_mail_group = fields.has(Name::MemberAddress)
        || fields.is_class(&["inetMailGroup", "mailGroup", "nisMailAlias"]);
    let is_recipient = is_mail_group
        || [
            Name::MailLocalAddress,
            Name::MailRoutingAddress,
            Name::MailHost,
        ]
        .iter()
        .any(|&name| fields.has(name))
        || fields.is_class(&["inetLocalMailRecipient"]);
    if !is_recipient {
        return None;
    }
    let is_group =
        is_mail_group || fields.is_class(&["groupOfNames", "groupOfUniqueNames", "groupOfMembers"]);
    Some(Draft::Recipient(Box::new(recipient(&fields, is_group))))
}

/// The trimmed text of a value, which must not be empty, binary or have control characters.
fn text<'r>(attribute: &'r Attribute<'_>) -> Result<&'r str, String> {
    let text = std::str::from_utf8(&attribute.value)
        .map_err(|_| format!("{}: not text", attribute.name))?
        .trim();
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(format!(
            "{}: empty, or with control characters",
            attribute.name
        ));
    }
    Ok(text)
}

type Complaints = Vec<(u32, String)>;

/// The good values among `names`; the bad ones are complaints.
fn values<T>(
    fields: &Fields<'_, '_>,
    name: Name,
    complaints: &mut Complaints,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let mut good = Vec::new();
    for attribute in fields.named(name) {
        let value = text(attribute).and_then(|text| {
            parse(text).map_err(|what| format!("{}: {}: {what}", attribute.name, printable(text)))
        });
        match value {
            Ok(value) => good.push(value),
            Err(what) => complaints.push((attribute.line, what)),
        }
    }
    good
}

/// The value of an attribute that may be there once.
fn one<T>(
    fields: &Fields<'_, '_>,
    name: Name,
    complaints: &mut Complaints,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    if let Some(second) = fields.named(name).nth(1) {
        complaints.push((
            second.line,
            format!("{}: a second value, where one is allowed", second.name),
        ));
        return None;
    }
    values(fields, name, complaints, parse).pop()
}

fn mailbox(text: &str) -> Result<Mailbox, String> {
    Mailbox::from_str(text).map_err(|error| error.to_string())
}

fn host(text: &str) -> Result<String, String> {
    normal_domain(text).map_err(|_| "not a host name".to_owned())
}

/// RFC 4517 section 3.3.16 has digits alone; `parse` would take a `+`.
fn octets(text: &str) -> Result<u64, String> {
    let digits = Some(text).filter(|text| text.bytes().all(|octet| octet.is_ascii_digit()));
    digits
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| "expected a number of octets".to_owned())
}

fn state(text: &str) -> Result<AccountState, String> {
    match text.to_ascii_lowercase().as_str() {
        "active" => Ok(AccountState::Active),
        "suspended" | "nopop" | "noaccess" => Ok(AccountState::Suspended),
        "disabled" | "inactive" => Ok(AccountState::Disabled),
        "deleted" => Ok(AccountState::Deleted),
        _ => Err("expected active, suspended, disabled or deleted".to_owned()),
    }
}

/// RFC 4524 section 2: `associatedDomain`; the tenant is the organisation.
fn domains(fields: &Fields<'_, '_>) -> Domains {
    let mut errors = Vec::new();
    let domains = values(fields, Name::AssociatedDomain, &mut errors, host);
    let mail_host = one(fields, Name::MailHost, &mut errors, host);
    let addresses = fields
        .named(Name::MailLocalAddress)
        .filter_map(|value| Some((value.line, text(value).ok()?.parse().ok()?)))
        .collect();
    let text_of = |name: Name| {
        fields
            .named(name)
            .find_map(|value| text(value).ok().map(printable))
    };
    let tenant = text_of(Name::Organization)
        .or_else(|| text_of(Name::OrganizationalUnit))
        .or_else(|| domains.first().cloned())
        .unwrap_or_default();
    if domains.is_empty() {
        errors.push((
            fields.line,
            "domainRelatedObject without associatedDomain".to_owned(),
        ));
    }
    Domains {
        line: fields.line,
        dn: printable(fields.dn).into(),
        tenant,
        domains,
        mail_host,
        addresses,
        errors,
    }
}

fn recipient(fields: &Fields<'_, '_>, is_group: bool) -> Recipient {
    let mut errors = Vec::new();
    let mut warnings = Vec::new();
    let addresses = values(fields, Name::MailLocalAddress, &mut errors, mailbox);
    if addresses.is_empty() && errors.is_empty() {
        errors.push((
            fields.line,
            "no mailLocalAddress: mail can never reach this entry".to_owned(),
        ));
    }
    let group = is_group.then(|| group(fields, &mut errors));
    let routing = one(fields, Name::MailRoutingAddress, &mut errors, mailbox);
    if group.is_some() && routing.is_some() {
        errors.push((
            fields.line,
            "both a group and mailRoutingAddress".to_owned(),
        ));
    }
    let mut passwords = values(fields, Name::UserPassword, &mut warnings, |text| {
        Ok(text.into())
    });
    for attribute in fields.named(Name::UserPassword) {
        let stored = std::str::from_utf8(&attribute.value)
            .unwrap_or_default()
            .trim();
        if let Err(unusable) = password::check(stored)
            && unusable != password::Unusable::Locked
        {
            // The value itself never appears: it may be the password.
            warnings.push((
                attribute.line,
                format!("userPassword: {unusable}; logins that need it are unavailable"),
            ));
        }
    }
    let is_locked =
        |stored: &str| password::check(stored) == Err(password::Unusable::Locked);
    passwords.retain(|stored: &Box<str>| !is_locked(stored));
    if passwords.len() > PASSWORDS_MAX {
        errors.push((
            fields.line,
            format!("more than {PASSWORDS_MAX} userPassword values"),
        ));
        passwords.clear();
    }
    Recipient {
        line: fields.line,
        dn: printable(fields.dn).into(),
        id: one(fields, Name::EntryUuid, &mut errors, |text| {
            AccountId::from_str(&text.to_ascii_lowercase()).map_err(|error| error.to_string())
        }),
        logins: values(fields, Name::Uid, &mut errors, |text| {
            Ok(text.to_ascii_lowercase())
        }),
        addresses,
        mail_host: one(fields, Name::MailHost, &mut errors, host),
        routing,
        passwords,
        quota_bytes: one(fields, Name::MailQuotaSize, &mut errors, octets),
        state: one(fields, Name::AccountStatus, &mut errors, state).unwrap_or_default(),
        group,
        errors,
        warnings,
    }
}

fn group(fields: &Fields<'_, '_>, errors: &mut Complaints) -> GroupDraft {
    let mut members = Vec::new();
    for &(name, attribute) in &fields.list {
        let is_dn = name == Name::Member;
        if !is_dn && name != Name::MemberAddress {
            continue;
        }
        let member = text(attribute).and_then(|text| {
            if is_dn {
                return Ok(MemberDraft::Dn(attribute.line, normal_dn(text)));
            }
            let parsed = mailbox(text)
                .map_err(|what| format!("{}: {}: {what}", attribute.name, printable(text)))?;
            Ok(MemberDraft::Address(parsed))
        });
        match member {
            Ok(member) => members.push(member),
            Err(what) => errors.push((attribute.line, what)),
        }
    }
    let errors_to = one(fields, Name::MemberErrorsTo, errors, |text| {
        mailbox(text.strip_prefix("mailto:").unwrap_or(text))
    });
    GroupDraft { members, errors_to }
}

/// `text` on one line for logs: control and direction characters become `?`.
pub fn printable(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars()
        .map(|c| if is_hidden(c) { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Draft, MemberDraft, draft, printable};
    use crate::ldif::{Limits, records};

    fn one(text: &str) -> Option<Draft> {
        draft(
            &records(text.as_bytes(), Limits::default())
                .next()
                .unwrap()
                .unwrap(),
        )
    }

    fn errors(attributes: &str) -> Vec<(u32, String)> {
        match one(&format!(
            "dn: uid=a\nobjectClass: inetLocalMailRecipient\n{attributes}"
        )) {
            Some(Draft::Recipient(recipient)) => recipient.errors,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_mail_is_passed_over() {
        assert!(one("dn: ou=people\nobjectClass: organizationalUnit\nou: people\n").is_none());
        assert!(one("dn: cn=admins\nobjectClass: groupOfNames\nmember: uid=a\n").is_none());
        assert!(one("dn: uid=a\nobjectClass: inetOrgPerson\nuid: a\nmail: a@x.jp\nuserPassword: {SSHA}x\n").is_none());
    }

    #[test]
    fn errors_name_line_attribute_and_what_is_expected() {
        for (attributes, line, what) in [
            (
                "uid: a\n",
                1,
                "no mailLocalAddress: mail can never reach this entry",
            ),
            (
                "mailLocalAddress: a@@x\n",
                3,
                "maillocaladdress: a@@x: not a mailbox address",
            ),
            (
                "mailLocalAddress:: YUB4CmI=\n",
                3,
                "maillocaladdress: empty, or with control characters",
            ),
            (
                "mailLocalAddress: a@x\nmailHost: m\nmailHost: n\n",
                5,
                "mailhost: a second value, where one is allowed",
            ),
            (
                "mailLocalAddress: a@x\nmailHost: -\n",
                4,
                "mailhost: -: not a host name",
            ),
            (
                "mailLocalAddress: a@x\nmailRoutingAddress: a\n",
                4,
                "mailroutingaddress: a: not a mailbox address",
            ),
            (
                "mailLocalAddress: a@x\nmailQuotaSize: 1G\n",
                4,
                "mailquotasize: 1G: expected a number of octets",
            ),
            (
                "mailLocalAddress: a@x\nmailQuotaSize: +1\n",
                4,
                "mailquotasize: +1: expected a number of octets",
            ),
            (
                "mailLocalAddress: a@x\nmailQuotaSize: 18446744073709551616\n",
                4,
                "mailquotasize: 18446744073709551616: expected a number of octets",
            ),
            (
                "mailLocalAddress: a@x\nentryUUID: a b\n",
                4,
                "entryuuid: a b: not a valid account id",
            ),
            (
                "mailLocalAddress: a@x\naccountStatus: gone\n",
                4,
                "accountstatus: gone: expected active, suspended, disabled or deleted",
            ),
            (
                "mailLocalAddress: a@x\nrfc822MailMember: b\n",
                4,
                "rfc822mailmember: b: not a mailbox address",
            ),
        ] {
            assert_eq!(
                errors(attributes),
                vec![(line, what.to_owned())],
                "{attributes:?}"
            );
        }
        assert_eq!(
            errors("mailLocalAddress: a@x\nmailHost: mbox1\nuid: a\n"),
            vec![]
        );
    }

    #[test]
    fn a_password_never_stands_in_a_finding() {
        let text = "dn: uid=a\nmailLocalAddress: a@x\nuserPassword: hunter2\nuserPassword: {PLAIN}hunter2\nuserPassword: {MD5}hunter2\n";
        let Some(Draft::Recipient(recipient)) = one(text) else {
            panic!()
        };
        assert_eq!(recipient.warnings.len(), 3);
        assert!(recipient.errors.is_empty());
        assert!(!format!("{:?}", recipient.warnings).contains("hunter2"));
    }

    #[test]
    fn groups_keep_the_order_of_their_members() {
        let text = "dn: cn=g\nobjectClass: groupOfNames\nmailLocalAddress: g@x\nmember: UID=b, DC=jp\nmgrpRFC822MailMember: c@y\n\
            mgrpErrorsTo: mailto:boss@x\n";
        let Some(Draft::Recipient(recipient)) = one(text) else {
            panic!()
        };
        let group = recipient.group.unwrap();
        assert!(matches!(&group.members[0], MemberDraft::Dn(4, dn) if dn == "uid=b,dc=jp"));
        assert!(
            matches!(&group.members[1], MemberDraft::Address(address) if address.as_str() == "c@y")
        );
        assert_eq!(group.errors_to.unwrap().as_str(), "boss@x");
    }

    #[test]
    fn domains_name_their_tenant() {
        let Some(Draft::Domains(domains)) = one(
            "dn: dc=x\nobjectClass: domainRelatedObject\nou: two\no: One\nassociatedDomain: X.jp.\nassociatedDomain: y.jp\nmailHost: MBOX1\n",
        ) else {
            panic!()
        };
        assert_eq!(
            (domains.tenant.as_str(), domains.domains),
            ("One", vec!["x.jp".to_owned(), "y.jp".to_owned()])
        );
        assert_eq!(domains.mail_host.as_deref(), Some("mbox1"));
    }

    #[test]
    fn logs_stay_on_one_line() {
        assert_eq!(printable("a\r\nb\u{202e}c\u{1b}[1m é"), "a??b?c?[1m é");
    }
}
