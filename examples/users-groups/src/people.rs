//! Makes users up. Any user can be made alone from the seed and the id, so a list of a
//! million takes no memory, and two processes with one seed agree on everybody.
//!
//! Called by the Users service, which shows users, and by the verdict, which needs to know
//! where each of them belongs.

use crate::pb::User;

const FIRST_NAMES: [&str; 16] = [
    "Ada",
    "Alan",
    "Barbara",
    "Claude",
    "Donald",
    "Edsger",
    "Frances",
    "Grace",
    "Hedy",
    "John",
    "Katherine",
    "Leslie",
    "Margaret",
    "Niklaus",
    "Radia",
    "Tony",
];
const LAST_NAMES: [&str; 16] = [
    "Allen", "Backus", "Dijkstra", "Hamilton", "Hoare", "Hopper", "Johnson", "Knuth", "Lamarr",
    "Lamport", "Liskov", "Lovelace", "Perlman", "Shannon", "Turing", "Wirth",
];
const COUNTRIES: [&str; 8] = ["BR", "DE", "FR", "IN", "JP", "KE", "UA", "US"];

/// Below this age, in years, a user is a minor.
const ADULT_AGE: u32 = 18;
/// From this age on, in years, a user is a senior.
const SENIOR_AGE: u32 = 65;
/// Ages are spread evenly below this, in years.
const AGE_LIMIT: u64 = 100;

/// The rule of [`right_group`] as an expression over `users`, in the language of pipelines.
pub const GROUP_EXPRESSION: &str =
    "'minors' if users.age < 18 else ('seniors' if users.age >= 65 else 'adults')";

/// The user with this id under this seed: always the same one.
pub fn user(seed: u64, id: u64) -> User {
    let mut dice = Dice(seed ^ id.wrapping_mul(0xD134_2543_DE82_EF95));
    let first = dice.pick(&FIRST_NAMES);
    let last = dice.pick(&LAST_NAMES);
    let country = dice.pick(&COUNTRIES);
    let age = dice.below(AGE_LIMIT) as u32;
    // Six of ten are free, three pay for a team, one for an enterprise.
    let plan = match dice.below(10) {
        0..6 => "free",
        6..9 => "team",
        _ => "enterprise",
    };
    User {
        id,
        name: format!("{first} {last}"),
        email: format!("{}.{}.{id}@example.com", first.to_lowercase(), last.to_lowercase()),
        country: country.to_owned(),
        age,
        plan: plan.to_owned(),
    }
}

/// The group this user belongs to. What a pipeline does is right when it agrees with this.
pub fn right_group(user: &User) -> &'static str {
    match user.age {
        age if age < ADULT_AGE => "minors",
        age if age >= SENIOR_AGE => "seniors",
        _ => "adults",
    }
}

/// SplitMix64: small, even, and the same on every machine.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<const N: usize>(&mut self, from: &[&'static str; N]) -> &'static str {
        from[self.below(N as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_user_depends_on_seed_and_id_alone() {
        assert_eq!(user(7, 42), user(7, 42));
        assert_ne!(user(7, 42).name, user(7, 43).name);
        assert!((1..100).any(|id| user(7, id).age != user(8, id).age));
        // One user written down: a change of the recipe would change what every ledger means.
        let known = user(1, 1);
        assert_eq!((known.id, known.email.as_str()), (1, KNOWN_EMAIL));
    }
    const KNOWN_EMAIL: &str = "alan.johnson.1@example.com";

    #[test]
    fn every_group_gets_its_share() {
        let mut sizes = BTreeMap::<&str, u32>::new();
        for id in 1..=10_000 {
            *sizes.entry(right_group(&user(1, id))).or_default() += 1;
        }
        // 18, 47 and 35 years of a hundred.
        for (group, share) in [("minors", 1_800), ("adults", 4_700), ("seniors", 3_500)] {
            assert!(sizes[group].abs_diff(share) < 300, "{group}: {} of 10,000", sizes[group]);
        }
    }

    #[test]
    fn the_expression_says_what_the_rule_says() {
        let environment = minijinja::Environment::new();
        let expression = environment.compile_expression(GROUP_EXPRESSION).unwrap();
        for age in 0..120 {
            let user = User { age, ..User::default() };
            let said = expression
                .eval(minijinja::context! { users => minijinja::context! { age } })
                .unwrap();
            assert_eq!(said.as_str(), Some(right_group(&user)), "at {age}");
        }
    }
}
