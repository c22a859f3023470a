//! The user name of somebody whom a provider vouches for: made from what the provider says, and never one that means
//! somebody else already.

use hoop_access::RuleSet;
use tokio_postgres::types::Type;

use crate::StoreError;
use crate::change::Change;
use crate::identities::Vouched;
use crate::random;

/// Characters of a derived name, before a number is put behind it.
const NAME_MAX_CHARS: usize = 64;
/// Numbers that are tried, from 2.
const NUMBER_MAX: usize = 20;

/// A name that no user has or had, and that no access rule speaks of: both would hand on what was meant for another.
pub(crate) async fn free(change: &Change<'_>, rules: &RuleSet, vouched: &Vouched) -> Result<String, StoreError> {
    let wanted = derived(vouched);
    let numbered = (2..=NUMBER_MAX).map(|number| format!("{wanted}-{number}"));
    let random = format!("{wanted}-{}", random::base32::<8>()?.as_str());
    let candidates: Vec<String> = std::iter::once(wanted.clone())
        .chain(numbered)
        .chain([random])
        .collect();
    let sql = "select username from users where username = any($1)";
    let rows = change.query(sql, &[(&candidates, Type::TEXT_ARRAY)]).await?;
    let taken: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let is_free = |name: &&String| !taken.contains(name) && !named(rules, name);
    candidates
        .iter()
        .find(is_free)
        .cloned()
        .ok_or_else(|| StoreError::Conflict {
            what: format!("every user name like {wanted}"),
        })
}

fn named(rules: &RuleSet, name: &String) -> bool {
    rules.rules().iter().any(|rule| rule.spec.users.contains(name))
}

/// The e-mail address before the `@`, the name for people, or the subject, in characters that a user name may have.
fn derived(vouched: &Vouched) -> String {
    let local = vouched.email.split('@').next().unwrap_or_default();
    [local, &vouched.display_name, &vouched.subject]
        .into_iter()
        .map(fit)
        .find(|name| !name.is_empty())
        .unwrap_or_else(|| "user".to_owned())
}

fn fit(text: &str) -> String {
    let mut name = String::new();
    for c in text.to_lowercase().chars().take(NAME_MAX_CHARS) {
        if c.is_ascii_alphanumeric() || "._".contains(c) {
            name.push(c);
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    name.trim_matches(|c| "-._".contains(c)).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(email: &str, display_name: &str, subject: &str) -> String {
        derived(&Vouched {
            provider: "corp".into(),
            subject: subject.into(),
            email: email.into(),
            display_name: display_name.into(),
            groups: None,
        })
    }

    #[test]
    fn a_name_is_made_of_what_is_known_and_may_stand_in_a_user_name() {
        assert_eq!(name("Ada.L@example.test", "Ada Lovelace", "u-1"), "ada.l");
        assert_eq!(name("", "Ada  Lovelace", "u-1"), "ada-lovelace");
        assert_eq!(name("@", "ада", "00u1|x"), "00u1-x");
        assert_eq!(name("", "", "∅"), "user");
        for made in [name("a+b@c", "", ""), name("", &"x".repeat(500), "")] {
            assert!(crate::names::username(&made).is_ok(), "{made}");
        }
    }
}
