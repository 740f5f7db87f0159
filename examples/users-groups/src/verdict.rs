//! The verdict: is every user in exactly the right group? Fed with what `Groups.Members`
//! streams (or what the ledger says) and compared with the rule in [`crate::people`].

use crate::{UsersOptions, people};
use std::collections::BTreeMap;
use std::fmt;

/// How the users are distributed, against how they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How many users there are to place.
    pub users: u64,
    /// Users in the right group and in no other.
    pub right: u64,
    /// Users in a wrong group, or in the right one and others as well.
    pub wrong: u64,
    /// Users in no group.
    pub missing: u64,
    /// Members that are not users at all.
    pub strangers: u64,
    /// The first id that is not right, to begin looking at.
    pub first_fault: Option<u64>,
    /// How many users each group should have.
    pub right_sizes: BTreeMap<&'static str, u64>,
}

impl Verdict {
    /// Judges members, which come in the order of their ids (as `Groups.Members` and
    /// `Account::groups_of` have them), against the users that the options make.
    pub fn of<I, G>(options: UsersOptions, members: I) -> Self
    where
        I: IntoIterator<Item = (u64, G)>,
        G: IntoIterator<Item: AsRef<str>>,
    {
        let UsersOptions { count, seed } = options;
        let mut verdict = Self {
            users: count,
            right: 0,
            wrong: 0,
            missing: 0,
            strangers: 0,
            first_fault: None,
            right_sizes: BTreeMap::new(),
        };
        let mut members = members.into_iter().peekable();
        for id in 1..=count {
            let right = people::right_group(&people::user(seed, id));
            *verdict.right_sizes.entry(right).or_default() += 1;
            while let Some((stranger, _)) = members.next_if(|(member, _)| *member < id) {
                verdict.strangers += 1;
                verdict.first_fault.get_or_insert(stranger);
            }
            let groups = members.next_if(|(member, _)| *member == id).map(|(_, groups)| groups);
            let fault = match groups.map(|g| g.into_iter().map(|g| g.as_ref() == right).eq([true]))
            {
                Some(true) => {
                    verdict.right += 1;
                    continue;
                }
                Some(false) => &mut verdict.wrong,
                None => &mut verdict.missing,
            };
            *fault += 1;
            verdict.first_fault.get_or_insert(id);
        }
        for (stranger, _) in members {
            verdict.strangers += 1;
            verdict.first_fault.get_or_insert(stranger);
        }
        verdict
    }

    /// Every user is in exactly the right group, and nobody else is in any.
    pub fn is_right(&self) -> bool {
        self.right == self.users && self.strangers == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { users, right, wrong, missing, strangers, first_fault, .. } = self;
        write!(f, "{right} of {users} users are in exactly the right group")?;
        match first_fault {
            None => Ok(()),
            Some(id) => write!(
                f,
                "; {wrong} wrong, {missing} missing, {strangers} strangers, the first is {id}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: UsersOptions = UsersOptions { count: 100, seed: 1 };

    fn all_right() -> BTreeMap<u64, Vec<&'static str>> {
        (1..=100).map(|id| (id, vec![people::right_group(&people::user(1, id))])).collect()
    }

    #[test]
    fn everybody_in_the_right_group_is_right() {
        let verdict = Verdict::of(OPTIONS, all_right());
        assert!(verdict.is_right());
        assert_eq!(verdict.right_sizes.values().sum::<u64>(), 100);
        assert_eq!(verdict.to_string(), "100 of 100 users are in exactly the right group");
    }

    #[test]
    fn each_fault_is_seen() {
        let mut members = all_right();
        members.remove(&10);
        members.insert(20, vec!["nowhere"]);
        let both = members.get_mut(&30).unwrap();
        both.push("nowhere");
        members.insert(0, vec!["adults"]);
        members.insert(101, vec!["adults"]);
        let verdict = Verdict::of(OPTIONS, members);
        assert!(!verdict.is_right());
        assert_eq!(
            (verdict.right, verdict.wrong, verdict.missing, verdict.strangers),
            (97, 2, 1, 2)
        );
        assert_eq!(verdict.first_fault, Some(0));
    }

    #[test]
    fn strangers_alone_are_a_fault() {
        let mut members = all_right();
        members.insert(500, vec!["adults"]);
        assert!(!Verdict::of(OPTIONS, members).is_right());
        assert!(!Verdict::of(OPTIONS, BTreeMap::<u64, Vec<&str>>::new()).is_right());
    }
}
