//! Which passwords are taken, and the forms in which one is compared.

use hoop_auth::local::{PasswordRules, normalise};
use zeroize::Zeroizing;

use crate::problem::Problem;

/// The form to keep of a new password of somebody with these names.
///
/// # Errors
/// 422 naming `field`, and what is wrong with it; never the password.
pub fn acceptable(field: &'static str, password: &str, names: &[&str]) -> Result<Zeroizing<String>, Problem> {
    let checked = PasswordRules::default().check(password, names);
    checked.map_err(|fault| Problem::field(field, format!("It cannot be taken: {fault}.")))
}

/// The forms in which a password may have been set: today's, and that of passwords set before there was one form.
pub fn forms(password: &Zeroizing<String>) -> Vec<Zeroizing<String>> {
    let normal = normalise(password);
    if normal == *password {
        vec![normal]
    } else {
        vec![normal, password.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_set_before_there_was_one_form_still_fits() {
        let typed = Zeroizing::new("ｃａｆé au lait".to_owned());
        let normal = Zeroizing::new("café au lait".to_owned());
        assert_eq!(forms(&typed), [normal.clone(), typed]);
        assert_eq!(forms(&normal).len(), 1);
    }
}
