//! Which passwords are taken (NIST SP 800-63B-4, section 3.1.1): long ones that are not among the first guesses. No rule
//! says which kinds of characters there must be, for such rules make passwords worse.

use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

/// Fewest characters of a password, by default.
pub const PASSWORD_MIN_CHARS: usize = 12;
/// Most characters of a password, by default.
pub const PASSWORD_MAX_CHARS: usize = 128;
/// UTF-8 text grows by this factor at most when it is normalised (U+FDFA: 3 bytes, then 33).
const NFKC_GROWTH: usize = 11;
/// Longest normalised password of 128 characters, in bytes, with room to spare. What is longer is no password.
const NORMALISED_BYTES: usize = 4_096;
/// A repeated piece of up to so many characters is no password, however often it is repeated.
const PIECE_MAX_CHARS: usize = 4;
/// Shortest name that a password is searched for, in characters.
const NAME_MIN_CHARS: usize = 4;
/// Beside a name, a password needs at least so many other characters.
const BESIDE_NAME_MIN_CHARS: usize = 8;

/// Words that passwords are made of most often, and rows of keys; with digits, marks and capitals around them they are
/// still the first that is guessed.
const COMMON: &str = include_str!("common.txt");

/// How long a password has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasswordRules {
    pub min_chars: usize,
    pub max_chars: usize,
}

/// Why a password is not taken, to be shown to whoever chose it. It never repeats the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordFault {
    #[error("the password has {has} characters; use at least {min}, several words for example")]
    TooShort { has: usize, min: usize },
    #[error("the password is longer than {max} characters; use a shorter one")]
    TooLong { max: usize },
    #[error("the password has a control character, a line break for example; leave it out")]
    Control,
    #[error("the password is one of those that are guessed first; use several words that do not belong together")]
    Common,
    #[error(
        "the password repeats a few characters, or counts up or down; use several words that do not belong together"
    )]
    Repetitive,
    #[error("the password is little more than the user name or e-mail address; use something else")]
    LikeName,
}

/// The form in which a password is hashed and compared, NFKC: the same whichever keyboard or system typed it. Use it when a
/// password is set, which [`PasswordRules::check`] does, and whenever one is verified.
#[must_use]
pub fn normalise(password: &str) -> Zeroizing<String> {
    // made in one piece, so that no shorter copy is left behind in memory
    let room = password.len().saturating_mul(NFKC_GROWTH).min(NORMALISED_BYTES);
    let mut text = Zeroizing::new(String::with_capacity(room));
    text.extend(password.nfkc());
    text
}

impl Default for PasswordRules {
    fn default() -> Self {
        Self {
            min_chars: PASSWORD_MIN_CHARS,
            max_chars: PASSWORD_MAX_CHARS,
        }
    }
}

impl PasswordRules {
    /// Looks at a new password of somebody with these names (user name, e-mail address), and gives the form to hash.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, password: &str, names: &[&str]) -> Result<Zeroizing<String>, PasswordFault> {
        let too_long = PasswordFault::TooLong { max: self.max_chars };
        if password.chars().nth(self.max_chars).is_some() && password.nfkc().nth(self.max_chars).is_some() {
            return Err(too_long);
        }
        let text = normalise(password);
        let has = text.chars().count();
        if has > self.max_chars {
            return Err(too_long);
        }
        if has < self.min_chars {
            return Err(PasswordFault::TooShort {
                has,
                min: self.min_chars,
            });
        }
        if text.chars().any(char::is_control) {
            return Err(PasswordFault::Control);
        }
        let folded = Zeroizing::new(text.to_lowercase());
        let letters: Zeroizing<Vec<char>> = Zeroizing::new(folded.chars().collect());
        let piece = repeated_piece(&letters);
        if piece.len() <= PIECE_MAX_CHARS || counts(&letters) || counts(piece) {
            return Err(PasswordFault::Repetitive);
        }
        if is_common(&letters) || is_common(piece) {
            return Err(PasswordFault::Common);
        }
        if names.iter().any(|name| is_like(&folded, name)) {
            return Err(PasswordFault::LikeName);
        }
        Ok(text)
    }
}

/// The shortest piece of which the text is a repetition; all of it where there is none.
fn repeated_piece(text: &[char]) -> &[char] {
    let repeats = |length: &usize| {
        text.iter()
            .zip(text.iter().skip(*length))
            .all(|(one, next)| one == next)
    };
    let length = (1..text.len()).find(repeats).unwrap_or(text.len());
    text.get(..length).unwrap_or(text)
}

/// Whether each character follows the one before in the alphabet or among the digits, upwards or downwards.
fn counts(text: &[char]) -> bool {
    let follows =
        |one: char, next: char| u32::from(one).checked_add(1) == Some(u32::from(next)) || (one, next) == ('9', '0');
    let pairs = || text.iter().copied().zip(text.iter().copied().skip(1));
    text.len() > 1 && (pairs().all(|(one, next)| follows(one, next)) || pairs().all(|(one, next)| follows(next, one)))
}

/// Whether the text is a common word in some dress: digits and marks around it, digits for letters in it.
fn is_common(text: &[char]) -> bool {
    let is_letter = |c: &&char| c.is_alphabetic();
    let plain: Zeroizing<String> = Zeroizing::new(text.iter().collect());
    let bare: Zeroizing<String> = {
        let from_first = text.iter().skip_while(|c| !is_letter(c));
        let mut letters: Vec<char> = from_first.copied().collect();
        while letters.last().is_some_and(|c| !c.is_alphabetic()) {
            letters.pop();
        }
        Zeroizing::new(letters.into_iter().map(undisguised).collect())
    };
    let all: Zeroizing<String> = Zeroizing::new(text.iter().copied().map(undisguised).collect());
    COMMON
        .lines()
        .any(|word| word == plain.as_str() || word == bare.as_str() || word == all.as_str())
}

fn undisguised(c: char) -> char {
    match c {
        '@' | '4' => 'a',
        '3' => 'e',
        '1' | '!' => 'i',
        '0' => 'o',
        '$' | '5' => 's',
        '7' => 't',
        other => other,
    }
}

/// Whether there is little in the password beside this name, or what stands before the `@` of this address.
fn is_like(folded: &str, name: &str) -> bool {
    let name: String = name.nfkc().flat_map(char::to_lowercase).collect();
    let local = name.split('@').next().unwrap_or_default();
    [name.as_str(), local]
        .into_iter()
        .filter(|name| name.chars().count() >= NAME_MIN_CHARS)
        .any(|name| {
            folded == name || {
                let beside: usize = folded.split(name).map(|rest| rest.chars().count()).sum();
                folded.contains(name) && beside < BESIDE_NAME_MIN_CHARS
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(password: &str) -> Result<(), PasswordFault> {
        PasswordRules::default()
            .check(password, &["grace", "grace.hopper@example.test"])
            .map(drop)
    }

    #[test]
    fn length_is_counted_in_characters() {
        assert_eq!(check("tulip-engin"), Err(PasswordFault::TooShort { has: 11, min: 12 }));
        assert_eq!(check("tulip-engine"), Ok(()));
        assert_eq!(check("żółć gęślą j"), Ok(()));
        let long: String = "tulip engine ".chars().cycle().take(129).collect();
        assert_eq!(check(&format!("x{long}")), Err(PasswordFault::TooLong { max: 128 }));
        let longest: String = format!("x{long}").chars().take(128).collect();
        assert_eq!(check(&longest), Ok(()));
        // 8 characters that are 144 when normalised
        assert_eq!(check(&"\u{fdfa}".repeat(8)), Err(PasswordFault::TooLong { max: 128 }));
    }

    #[test]
    fn spaces_marks_and_any_script_are_welcome() {
        for good in [
            "correct horse battery staple",
            "    tulip    ",
            "☂☃★♞♬☎✂✈✉✏✒✔",
            "пароли бывают разные",
            "000-tulip-000",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn the_first_guesses_are_refused_in_any_dress() {
        let guesses = [
            "password1234",
            "P@ssw0rd2026!",
            "!!!!password",
            "QwertyUiop[]",
            "Welcome12345",
            "letmein!!!!!!!",
            "passwordpassword",
            "1q2w3e4r5t6y",
            "administrator",
            "iloveyou1234",
            "Dragon!Dragon!",
            "changeme2026",
        ];
        for guess in guesses {
            assert_eq!(check(guess), Err(PasswordFault::Common), "{guess}");
        }
    }

    #[test]
    fn repetitions_and_counting_are_refused() {
        for guess in [
            "aaaaaaaaaaaa",
            "abcabcabcabc",
            "123412341234",
            "1234567890123",
            "abcdefghijklm",
            "zyxwvutsrqpo",
            "ABCDEFabcdef",
        ] {
            assert_eq!(check(guess), Err(PasswordFault::Repetitive), "{guess}");
        }
    }

    #[test]
    fn the_name_is_no_password() {
        for guess in [
            "grace.hopper@example.test",
            "GRACE.HOPPER1",
            "grace-grace-1",
            "2026graceGRACE",
        ] {
            assert_eq!(check(guess), Err(PasswordFault::LikeName), "{guess}");
        }
        assert_eq!(check("grace under pressure"), Ok(()));
        assert_eq!(
            PasswordRules::default().check("an-umbrella-an", &["an", ""]).map(drop),
            Ok(())
        );
    }

    #[test]
    fn a_line_break_is_told_of() {
        assert_eq!(check("tulip-engine-7\n"), Err(PasswordFault::Control));
    }

    #[test]
    fn two_keyboards_type_one_password() {
        let composed = PasswordRules::default().check("caf\u{e9} au lait, 3", &[]).unwrap();
        let decomposed = PasswordRules::default().check("cafe\u{301} au lait, 3", &[]).unwrap();
        let wide = normalise("ｃａｆé au lait, ３");
        assert_eq!(composed, decomposed);
        assert_eq!(composed, wide);
        assert_eq!(normalise("plain ascii"), Zeroizing::new("plain ascii".to_owned()));
    }

    #[test]
    fn every_line_of_the_list_is_a_lower_case_word_and_stands_there_once() {
        let mut words: Vec<&str> = COMMON.lines().collect();
        assert!(
            words
                .iter()
                .all(|word| word.len() >= 4 && *word == word.to_lowercase() && *word == word.trim())
        );
        words.sort_unstable();
        let count = words.len();
        words.dedup();
        assert_eq!(words.len(), count);
    }

    proptest! {
        #[test]
        fn whatever_is_typed_is_judged_and_never_repeated(password in "\\PC{0,200}", name in "\\PC{0,20}") {
            match PasswordRules::default().check(&password, &[&name]) {
                Ok(text) => {
                    prop_assert!((12..=128).contains(&text.chars().count()));
                    prop_assert_eq!(normalise(&text), text);
                }
                Err(fault) => prop_assert!(password.chars().count() < 12 || !fault.to_string().contains(&password)),
            }
        }

        #[test]
        fn several_words_are_taken(words in prop::collection::hash_set("[a-z]{5,8}", 4..6)) {
            let words: Vec<String> = words.into_iter().collect();
            prop_assert_eq!(check(&words.join(" ")), Ok(()));
        }
    }
}
