//! What can be said only of all entries together: whether a decision can be made for each, and whether the role addresses reach
//! somebody.

use hikyaku_mail::path::Mailbox;

use crate::finding::Severity;
use crate::load::Loader;
use crate::load::routes::Routes;
use crate::table::{ROLES, Table};
use crate::{Decision, Rule};

impl Loader<'_> {
    /// A mailbox needs an id, and a target of ours should lead somewhere. Answers where entries
    /// lead.
    pub(super) fn judge_decisions(&mut self, table: &mut Table, lines: &[u32]) -> Routes {
        let mut routes = Routes::new();
        for index in table.indices() {
            let Some(entry) = table.entries.get(index as usize) else {
                break;
            };
            let probe = || self.probes.get(&index).cloned();
            let address = entry.address.clone().or_else(probe);
            let Some(address) = address.filter(|_| !table.broken.contains_key(&index)) else {
                continue;
            };
            let (line, dn) = (
                lines.get(index as usize).copied().unwrap_or(0),
                entry.dn.clone(),
            );
            let (targets, errors_to) = match table
                .decide(index, &address)
                .map(|resolution| resolution.decision)
            {
                Err(error) => {
                    self.find(Severity::Error, line, Some(&dn), error.reason.as_str());
                    table.ids_in_doubt |= entry.id.is_none();
                    table.broken.insert(index, error.reason.into());
                    continue;
                }
                Ok(Decision::Forward { to }) => (vec![to], None),
                Ok(Decision::Group { members, errors_to }) => (members, errors_to),
                Ok(_) => continue,
            };
            let mut next: Vec<u32> = Vec::new();
            for target in &targets {
                match table.leads_on(target) {
                    Some(entry) => next.push(entry),
                    None => self.judge_target(table, line, &dn, target),
                }
            }
            next.sort_unstable();
            next.dedup();
            routes.insert(index, next);
            if let Some(errors_to) = errors_to {
                self.judge_target(table, line, &dn, &errors_to);
            }
        }
        routes
    }

    fn judge_target(&mut self, table: &Table, line: u32, dn: &str, target: &Mailbox) {
        let is_nobody = table
            .resolve(target)
            .is_ok_and(|resolution| resolution.decision == Decision::NoSuchUser);
        if is_nobody {
            let what = format!("{target}: no entry has this address");
            self.find(Severity::Warning, line, Some(dn), what);
        }
    }

    /// RFC 5321 section 4.5.1: mail for postmaster must reach somebody.
    pub(super) fn judge_roles(&mut self, table: &Table) {
        if let Some(postmaster) = &self.settings.postmaster {
            let is_nobody = match table.resolve(postmaster) {
                Ok(found) => {
                    found.decision == Decision::NoSuchUser || found.rule == Rule::RoleAddress
                }
                Err(_) => false,
            };
            if is_nobody {
                self.find(
                    Severity::Error,
                    0,
                    None,
                    format!("postmaster {postmaster}: no entry has this address"),
                );
            }
            return;
        }
        for domain in table.domains.keys() {
            let Some(Ok(address)) = ROLES.first().map(|role| format!("{role}@{domain}").parse())
            else {
                continue;
            };
            if table
                .resolve(&address)
                .is_ok_and(|found| found.decision == Decision::NoSuchUser)
            {
                let what = format!("nobody is {address}: add an entry, or set who is postmaster");
                self.find(Severity::Error, 0, None, what);
            }
        }
    }
}
