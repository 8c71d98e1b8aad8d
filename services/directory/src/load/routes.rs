//! Groups, aliases and forwards that lead back to themselves, or to more recipients than one mail
//! can have.

use std::collections::{BTreeMap, BTreeSet};

use crate::explain::{DEPTH_MAX, MEMBERS_MAX, RECIPIENTS_MAX};
use crate::finding::Severity;
use crate::load::Loader;
use crate::table::Table;

/// Entries that are named of a circle.
const NAMED_MAX: usize = 10;

/// Where entries lead: those that are groups, aliases or forwards, and which of these come next.
pub(super) type Routes = BTreeMap<u32, Vec<u32>>;

impl Loader<'_> {
    /// Names circles, and groups whose mail the queue would hold.
    pub(super) fn judge_routes(&mut self, table: &Table, routes: &Routes, lines: &[u32]) {
        for circle in circles(routes) {
            let is_group = |index: &u32| members(table, *index).is_some();
            let consequence = match circle.iter().any(is_group) {
                true => "",
                false => "; no mail for it can be delivered",
            };
            let way = way_of(table, &circle);
            let Some(&first) = circle.first() else {
                continue;
            };
            let what = format!("leads back to itself: {way}{consequence}");
            self.warn_of(table, lines, first, what);
        }
        for &index in routes.keys() {
            let Some(count) = members(table, index) else {
                continue;
            };
            let reached = reached(table, routes, index);
            if count > MEMBERS_MAX {
                let what = format!(
                    "a group of {count} members: mail for it is held, for a group may have {MEMBERS_MAX}; let groups be members"
                );
                self.warn_of(table, lines, index, what);
            } else if reached > RECIPIENTS_MAX {
                let what = format!(
                    "a group that leads to over {RECIPIENTS_MAX} recipients with the groups in it: mail for it is held"
                );
                self.warn_of(table, lines, index, what);
            }
        }
    }

    fn warn_of(&mut self, table: &Table, lines: &[u32], index: u32, what: String) {
        let line = lines.get(index as usize).copied().unwrap_or(0);
        let dn = table.entries.get(index as usize).map(|entry| &*entry.dn);
        self.find(Severity::Warning, line, dn, what);
    }
}

/// How many members a group has; `None` if the entry is no group.
fn members(table: &Table, index: u32) -> Option<usize> {
    let group = table.entries.get(index as usize)?.group.as_deref()?;
    Some(group.members.len())
}

/// Recipients of a mail for the entry, each entry on the way counted once, as far as the queue
/// follows; at least so many if there are too many.
fn reached(table: &Table, routes: &Routes, from: u32) -> usize {
    let mut seen = BTreeSet::from([from]);
    let mut level = vec![from];
    let mut count = 1;
    for _ in 0..=DEPTH_MAX {
        let mut next_level = Vec::new();
        for index in level {
            count += members(table, index).unwrap_or(1);
            if count > RECIPIENTS_MAX {
                return count;
            }
            let next = routes.get(&index).into_iter().flatten();
            next_level.extend(next.filter(|next| seen.insert(**next)));
        }
        level = next_level;
    }
    count
}

/// The DNs on the way, the first one again at its end.
fn way_of(table: &Table, circle: &[u32]) -> String {
    let name = |index: &u32| {
        let entry = table.entries.get(*index as usize);
        entry.map_or("", |entry| &entry.dn)
    };
    let mut names: Vec<&str> = circle.iter().take(NAMED_MAX).map(name).collect();
    if circle.len() > NAMED_MAX {
        names.push("...");
    }
    names.extend(circle.first().map(name));
    names.join(" -> ")
}

/// One circle of each set of entries that lead to one another, in the order of the file.
fn circles(routes: &Routes) -> Vec<Vec<u32>> {
    let mut search = Search::default();
    for &root in routes.keys() {
        search.walk(routes, root);
    }
    let mut circles: Vec<Vec<u32>> = search
        .sets
        .iter()
        .filter_map(|set| circle_in(routes, set))
        .collect();
    circles.sort();
    circles
}

/// A circle among entries that all lead to one another; `None` if there is but one, which does not
/// lead to itself.
fn circle_in(routes: &Routes, set: &BTreeSet<u32>) -> Option<Vec<u32>> {
    let mut way = vec![*set.first()?];
    let mut places = BTreeMap::from([(*set.first()?, 0)]);
    loop {
        let last = way.last()?;
        let next = *routes.get(last)?.iter().find(|next| set.contains(next))?;
        if let Some(&place) = places.get(&next) {
            way.drain(..place);
            return Some(way);
        }
        places.insert(next, way.len());
        way.push(next);
    }
}

/// Tarjan's search for strongly connected components, without recursion: a chain of forwards may be
/// long.
#[derive(Default)]
struct Search {
    /// When an entry was met, and the earliest entry of its set that is known; `u32::MAX` once its
    /// set is complete.
    met: BTreeMap<u32, (u32, u32)>,
    /// Entries whose sets are not complete.
    open: Vec<u32>,
    sets: Vec<BTreeSet<u32>>,
}

impl Search {
    fn walk(&mut self, routes: &Routes, root: u32) {
        // the way from the root, with how many of each entry's routes were taken
        let mut way: Vec<(u32, usize)> = Vec::new();
        if self.meets(root) {
            way.push((root, 0));
        }
        while let Some((entry, taken)) = way.last_mut() {
            let entry = *entry;
            let next = routes
                .get(&entry)
                .and_then(|next| next.get(*taken))
                .copied();
            *taken += 1;
            match next {
                Some(next) if self.meets(next) => way.push((next, 0)),
                Some(next) => self.joins(entry, next),
                None => {
                    way.pop();
                    self.leaves(entry);
                    if let Some((before, _)) = way.last() {
                        self.joins(*before, entry);
                    }
                }
            }
        }
    }

    /// Whether `entry` is met for the first time.
    fn meets(&mut self, entry: u32) -> bool {
        let time = u32::try_from(self.met.len()).unwrap_or(u32::MAX);
        let is_new = !self.met.contains_key(&entry);
        if is_new {
            self.met.insert(entry, (time, time));
            self.open.push(entry);
        }
        is_new
    }

    /// `entry` leads to `next`, which leads to the earliest that it knows.
    fn joins(&mut self, entry: u32, next: u32) {
        let earliest = self
            .met
            .get(&next)
            .map_or(u32::MAX, |(_, earliest)| *earliest);
        if let Some((_, known)) = self.met.get_mut(&entry) {
            *known = earliest.min(*known);
        }
    }

    /// All routes of `entry` were taken: if nothing earlier can be reached, its set is complete.
    fn leaves(&mut self, entry: u32) {
        let is_first = self
            .met
            .get(&entry)
            .is_some_and(|(time, earliest)| time == earliest);
        if !is_first {
            return;
        }
        let mut set = BTreeSet::new();
        while let Some(member) = self.open.pop() {
            set.insert(member);
            if let Some((_, earliest)) = self.met.get_mut(&member) {
                *earliest = u32::MAX;
            }
            if member == entry {
                break;
            }
        }
        self.sets.push(set);
    }
}

#[cfg(test)]
mod tests {
    use super::{Routes, circles};

    #[test]
    fn each_set_has_one_circle() {
        let routes = |edges: &[(u32, &[u32])]| -> Routes {
            edges
                .iter()
                .map(|(from, to)| (*from, to.to_vec()))
                .collect()
        };
        for (edges, found) in [
            (&[][..], vec![]),
            (&[(1, &[2, 3][..]), (2, &[3])], vec![]),
            (&[(1, &[1])], vec![vec![1]]),
            (&[(1, &[2]), (2, &[3]), (3, &[2])], vec![vec![2, 3]]),
            // two circles, one of which leads to the other
            (
                &[(1, &[3, 2]), (2, &[1]), (3, &[4]), (4, &[5, 3]), (5, &[])],
                vec![vec![1, 2], vec![3, 4]],
            ),
            // all lead to all
            (
                &[(1, &[1, 2, 3]), (2, &[1, 2, 3]), (3, &[1, 2, 3])],
                vec![vec![1]],
            ),
        ] {
            assert_eq!(circles(&routes(edges)), found, "{edges:?}");
        }
        let chain: Routes = (0..200_000).map(|n| (n, vec![n + 1])).collect();
        assert!(circles(&chain).is_empty());
        let ring: Routes = (0..200_000).map(|n| (n, vec![(n + 1) % 200_000])).collect();
        assert_eq!(circles(&ring).first().map(Vec::len), Some(200_000));
    }
}
