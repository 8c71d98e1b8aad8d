//! What one LDIF record says, in the words of the inetLocalMailRecipient profile (the Lachman draft).
//!
//! | attribute | values | meaning |
//! |---|---|---|
//! | `entryUUID` | 1 | the account's immutable id; needed by a mailbox, not by an alias, forward or group |
//! | `uid` | many | login names |
//! | `mailLocalAddress` | 1 or more | addresses; the first is the canonical one; `@domain` has all that nobody else has |
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
//! What is wrong with an entry is listed in it, and makes that entry alone unavailable; a member
//! that names nobody is left out with a warning. Next: `load`.

use std::str::FromStr;

use hikyaku_mail::id::AccountId;
use hikyaku_mail::path::{Mailbox, normal_domain};

use crate::AccountState;
use crate::dn::normal_dn;
use crate::ldif::{Attribute, Fault, Problem, Record};
use crate::password;

/// Passwords tried for one account at most.
pub const PASSWORDS_MAX: usize = 8;
/// Stands for a stored password that cannot be read: nobody knows what it would have said.
const UNREADABLE: &str = "{UNREADABLE}";

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
    /// The domains of `mailLocalAddress: @domain`.
    pub catch_alls: Vec<String>,
    /// `mailHost`, in lower case.
    pub mail_host: Option<String>,
    /// `mailRoutingAddress`.
    pub routing: Option<Mailbox>,
    /// `userPassword`, without those that are locked.
    pub passwords: Vec<Box<str>>,
    /// A `userPassword` is locked: it matches nothing.
    pub is_locked: bool,
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
    pub addresses: Vec<(u32, Local)>,
    /// What is wrong.
    pub errors: Vec<(u32, String)>,
}

/// A `mailLocalAddress`.
#[derive(Debug)]
pub enum Local {
    /// An address.
    Address(Mailbox),
    /// `@domain`: every address of the domain that nobody else has.
    CatchAll(String),
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

/// Whether the attribute `name`, in lower case, is read at all.
pub fn is_read(name: &str) -> bool {
    Name::parse(name).is_some()
}

/// A record's attributes that matter here, in its order.
struct Fields<'r, 'a> {
    line: u32,
    dn: &'r str,
    list: Vec<(Name, &'r Attribute<'a>)>,
    faults: &'r [Fault],
}

impl<'r, 'a> Fields<'r, 'a> {
    fn of(record: &'r Record<'a>) -> Fields<'r, 'a> {
        let list = record
            .attributes
            .iter()
            .filter_map(|attribute| Some((Name::parse(&attribute.name)?, attribute)));
        Fields {
            line: record.line,
            dn: &record.dn,
            list: list.collect(),
            faults: &record.faults,
        }
    }

    /// Whether a value of the attribute could not be read.
    fn is_faulty(&self, name: Name) -> bool {
        self.faults
            .iter()
            .any(|fault| Name::parse(&fault.name) == Some(name))
    }

    fn named(&self, name: Name) -> impl Iterator<Item = &'r Attribute<'a>> {
        self.list
            .iter()
            .filter(move |(other, _)| *other == name)
            .map(|(_, attribute)| *attribute)
    }

    fn has(&self, name: Name) -> bool {
        self.named(name).next().is_some() || self.is_faulty(name)
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
    let fields = Fields::of(record);
    // classes that cannot be read may be those of a domain: what it hosts must not become somebody
    // else's
    let may_be_domain = fields.is_faulty(Name::ObjectClass) && fields.has(Name::AssociatedDomain);
    if may_be_domain || fields.is_class(&["domainRelatedObject"]) {
        return Some(Draft::Domains(domains(&fields)));
    }
    let has_address = [
        Name::MailLocalAddress,
        Name::MailRoutingAddress,
        Name::MailHost,
    ]
    .iter()
    .any(|&name| fields.has(name));
    let is_mail_group =
        fields.has(Name::MemberAddress) || fields.is_class(&["inetMailGroup", "mailGroup"]);
    let is_unix_alias = fields.is_class(&["nisMailAlias"]);
    // an alias of a Unix host has no address unless somebody gave it one
    let is_mail_class = fields.is_class(&["inetLocalMailRecipient", "inetMailGroup", "mailGroup"]);
    let is_recipient = has_address || is_mail_class || (is_mail_group && !is_unix_alias);
    if !is_recipient {
        return None;
    }
    let is_group = is_mail_group
        || is_unix_alias
        || fields.is_class(&["groupOfNames", "groupOfUniqueNames", "groupOfMembers"]);
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

fn local(text: &str) -> Result<Local, String> {
    match text.strip_prefix('@') {
        Some(domain) => host(domain).map(Local::CatchAll),
        None => mailbox(text).map(Local::Address),
    }
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
    let mut errors = faults(fields, |fault| {
        is_cut_off(fault)
            || matches!(
                Name::parse(&fault.name),
                None | Some(
                    Name::AssociatedDomain
                        | Name::MailHost
                        | Name::MailLocalAddress
                        | Name::ObjectClass
                        | Name::Organization
                        | Name::OrganizationalUnit
                )
            )
    });
    let domains = values(fields, Name::AssociatedDomain, &mut errors, host);
    let mail_host = one(fields, Name::MailHost, &mut errors, host);
    let addresses = fields
        .named(Name::MailLocalAddress)
        .filter_map(|value| Some((value.line, local(text(value).ok()?).ok()?)))
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

/// What of the record could not be read, where `counts` says that it matters.
fn faults(fields: &Fields<'_, '_>, counts: impl Fn(&Fault) -> bool) -> Complaints {
    let counting = fields.faults.iter().filter(|fault| counts(fault));
    counting
        .map(|fault| (fault.line, format!("{}: {}", fault.name, fault.what)))
        .collect()
}

/// Other values may be missing too.
fn is_cut_off(fault: &Fault) -> bool {
    matches!(fault.what, Problem::TooManyValues | Problem::RecordTooLong)
}

/// A value that names nobody whom anybody could find, as if it were not there.
fn is_nobody(fault: &Fault) -> bool {
    let name = Name::parse(&fault.name);
    matches!(name, Some(Name::Member | Name::MemberAddress))
        && matches!(fault.what, Problem::NotText | Problem::BadBase64)
}

fn recipient(fields: &Fields<'_, '_>, is_group: bool) -> Recipient {
    let mut errors = faults(fields, |fault| {
        let is_elsewhere = matches!(
            Name::parse(&fault.name),
            Some(
                Name::UserPassword
                    | Name::AssociatedDomain
                    | Name::Organization
                    | Name::OrganizationalUnit
            )
        );
        is_cut_off(fault) || !(is_elsewhere || is_nobody(fault))
    });
    let mut warnings = Vec::new();
    let (mut addresses, mut catch_alls) = (Vec::new(), Vec::new());
    for address in values(fields, Name::MailLocalAddress, &mut errors, local) {
        match address {
            Local::Address(address) => addresses.push(address),
            Local::CatchAll(domain) => catch_alls.push(domain),
        }
    }
    if addresses.is_empty() && catch_alls.is_empty() && errors.is_empty() {
        errors.push((
            fields.line,
            "no mailLocalAddress: mail can never reach this entry".to_owned(),
        ));
    }
    let group = is_group.then(|| group(fields, &mut errors, &mut warnings));
    let routing = one(fields, Name::MailRoutingAddress, &mut errors, mailbox);
    if group.is_some() && routing.is_some() {
        errors.push((
            fields.line,
            "both a group and mailRoutingAddress".to_owned(),
        ));
    }
    let (passwords, is_locked) = passwords(fields, &mut errors, &mut warnings);
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
        catch_alls,
        mail_host: one(fields, Name::MailHost, &mut errors, host),
        routing,
        passwords,
        is_locked,
        quota_bytes: one(fields, Name::MailQuotaSize, &mut errors, octets),
        state: one(fields, Name::AccountStatus, &mut errors, state).unwrap_or_default(),
        group,
        errors,
        warnings,
    }
}

/// Stored passwords that may match, and whether one is locked. One that cannot be read stays, for
/// it may be the right one.
fn passwords(
    fields: &Fields<'_, '_>,
    errors: &mut Complaints,
    warnings: &mut Complaints,
) -> (Vec<Box<str>>, bool) {
    let mut passwords: Vec<Box<str>> = Vec::new();
    let mut is_locked = false;
    let unread = fields
        .faults
        .iter()
        .filter(|fault| Name::parse(&fault.name) == Some(Name::UserPassword));
    for fault in unread {
        let what = format!(
            "userPassword: {}; logins that need it are unavailable",
            fault.what
        );
        warnings.push((fault.line, what));
        passwords.push(UNREADABLE.into());
    }
    for attribute in fields.named(Name::UserPassword) {
        let stored = text(attribute);
        if attribute.value.trim_ascii().is_empty() {
            warnings.push((attribute.line, "userPassword: empty".to_owned()));
            continue;
        }
        let stored = stored.unwrap_or(UNREADABLE);
        match password::check(stored) {
            Err(password::Unusable::Locked) => {
                is_locked = true;
                continue;
            }
            // The value itself never appears: it may be the password.
            Err(unusable) => warnings.push((
                attribute.line,
                format!("userPassword: {unusable}; logins that need it are unavailable"),
            )),
            Ok(()) => {}
        }
        passwords.push(stored.into());
    }
    if passwords.len() > PASSWORDS_MAX {
        errors.push((
            fields.line,
            format!("more than {PASSWORDS_MAX} userPassword values"),
        ));
        passwords.clear();
    }
    (passwords, is_locked)
}

fn group(
    fields: &Fields<'_, '_>,
    errors: &mut Complaints,
    warnings: &mut Complaints,
) -> GroupDraft {
    let mut left_out = faults(fields, is_nobody);
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
            Err(what) => left_out.push((attribute.line, what)),
        }
    }
    let left_out = left_out.into_iter();
    warnings.extend(left_out.map(|(line, what)| (line, format!("{what}; left out"))));
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
                "mailLocalAddress: a@x\nmember;range=0-1499: uid=b\n",
                4,
                "member: `;range=` has a part of the values only (Active Directory gives 1,500 at a time); export all of them",
            ),
            (
                "mailLocalAddress: a@x\nmailHost:< file:///host\n",
                4,
                "mailhost: values from files or URLs (`:<`) are not read",
            ),
            (
                "mailLocalAddress: @a b\n",
                3,
                "maillocaladdress: @a b: not a host name",
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
    fn a_member_that_names_nobody_is_left_out() {
        let text = "dn: cn=g\nobjectClass: groupOfNames\nmailLocalAddress: g@x\nmember: uid=a\nmember:\nmember:: ***\nrfc822MailMember: b\n\
            rfc822MailMember: |/bin/x\nrfc822MailMember: c@x\n";
        let Some(Draft::Recipient(recipient)) = one(text) else {
            panic!()
        };
        assert_eq!(recipient.errors, []);
        let warnings: Vec<&str> = recipient
            .warnings
            .iter()
            .map(|(_, it)| it.as_str())
            .collect();
        assert_eq!(
            warnings,
            [
                "member: not base64 after `::`; left out",
                "member: empty, or with control characters; left out",
                "rfc822mailmember: b: not a mailbox address; left out",
                "rfc822mailmember: |/bin/x: not a mailbox address; left out",
            ]
        );
        assert_eq!(recipient.group.unwrap().members.len(), 2);
    }

    #[test]
    fn a_unix_alias_without_an_address_is_not_mail() {
        let alias = "dn: cn=staff\nobjectClass: nisMailAlias\ncn: staff\nrfc822MailMember: bob\n";
        assert!(one(alias).is_none());
        for more in [
            "mailLocalAddress: a@x\n",
            "objectClass: inetLocalMailRecipient\n",
        ] {
            let Some(Draft::Recipient(recipient)) = one(&format!("{alias}{more}")) else {
                panic!("{more}")
            };
            assert!(recipient.group.is_some(), "{more}");
        }
    }

    #[test]
    fn passwords_that_cannot_be_read_are_kept_and_locked_ones_are_not() {
        let text = "dn: uid=a\nmailLocalAddress: a@x\nuserPassword:< file:///pw\nuserPassword:: //8=\nuserPassword: {CRYPT}!!\nuserPassword: \n";
        let Some(Draft::Recipient(recipient)) = one(text) else {
            panic!()
        };
        let kept: Vec<&str> = recipient.passwords.iter().map(|it| &**it).collect();
        assert_eq!(kept, ["{UNREADABLE}", "{UNREADABLE}"]);
        assert!(recipient.is_locked && recipient.errors.is_empty());
        assert_eq!(recipient.warnings.len(), 3, "{:?}", recipient.warnings);
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
