//! Bounds that a text must keep before the grammar reads it: time and memory of the grammar grow with tokens, its stack with
//! nesting.
//!
//! The scan knows strings, quoted names, dollar quotes and comments well enough to count what is code. Where it and
//! PostgreSQL disagree, the count is wrong and nothing else: what a text means is decided by the grammar alone.

use memchr::memmem;

use crate::Unclear;

/// Longest text that is read, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024 * 1024;
/// Words and signs at most.
pub const TOKENS_MAX: usize = 100_000;
/// Parentheses, brackets and `CASE`s within one another at most.
pub const NESTING_MAX: usize = 200;

/// # Errors
/// Which bound is exceeded.
pub(crate) fn check(text: &str) -> Result<(), Unclear> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Unclear::TooLong);
    }
    let mut scan = Scan { rest: text.as_bytes() };
    let (mut tokens, mut nesting) = (0usize, 0usize);
    while let Some(token) = scan.next() {
        tokens += 1;
        match token {
            Token::Open => nesting += 1,
            Token::Close => nesting = nesting.saturating_sub(1),
            Token::Other => {}
        }
        if tokens > TOKENS_MAX {
            return Err(Unclear::TooManyTokens);
        }
        if nesting > NESTING_MAX {
            return Err(Unclear::TooDeep);
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    Other,
}

struct Scan<'a> {
    rest: &'a [u8],
}

impl Scan<'_> {
    fn next(&mut self) -> Option<Token> {
        loop {
            let (&first, behind) = self.rest.split_first()?;
            match first {
                b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => self.rest = behind,
                b'-' if behind.first() == Some(&b'-') => self.skip_to(b"\n"),
                b'/' if behind.first() == Some(&b'*') => self.comment(),
                _ => break,
            }
        }
        let (&first, behind) = self.rest.split_first()?;
        self.rest = behind;
        Some(match first {
            b'(' | b'[' => Token::Open,
            b')' | b']' => Token::Close,
            b'\'' | b'"' => {
                self.quoted(first);
                Token::Other
            }
            b'$' => {
                self.dollar();
                Token::Other
            }
            _ if is_word(first) => self.word(first),
            _ => Token::Other,
        })
    }

    /// To behind `end`, or the end of all.
    fn skip_to(&mut self, end: &[u8]) {
        let at = memmem::find(self.rest, end).map_or(self.rest.len(), |at| at + end.len());
        self.rest = self.rest.get(at..).unwrap_or_default();
    }

    /// Comments nest.
    fn comment(&mut self) {
        let mut depth = 0usize;
        loop {
            match self.rest {
                [b'/', b'*', behind @ ..] => {
                    depth += 1;
                    self.rest = behind;
                }
                [b'*', b'/', behind @ ..] => {
                    depth -= 1;
                    self.rest = behind;
                }
                [_, behind @ ..] => self.rest = behind,
                [] => return,
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// A doubled quote ends one and begins another: the count is off by one, the place is not. The backslash of an
    /// `E''` string is seen by its word.
    fn quoted(&mut self, quote: u8) {
        self.skip_to(&[quote]);
    }

    /// `E'…'`: a backslash takes the next byte.
    fn escaped(&mut self) {
        loop {
            match self.rest {
                [b'\\', _, behind @ ..] => self.rest = behind,
                [b'\'', behind @ ..] => {
                    self.rest = behind;
                    return;
                }
                [_, behind @ ..] => self.rest = behind,
                [] => return,
            }
        }
    }

    /// `$tag$ … $tag$`, or a parameter.
    fn dollar(&mut self) {
        let tag = self.rest.iter().take_while(|byte| is_word(**byte)).count();
        if self.rest.get(tag) != Some(&b'$') || self.rest.first().is_some_and(u8::is_ascii_digit) {
            return;
        }
        let rest = self.rest;
        let (name, body) = rest.split_at_checked(tag + 1).unwrap_or((rest, &[]));
        self.rest = body;
        self.skip_to(&[b"$", name].concat());
    }

    fn word(&mut self, first: u8) -> Token {
        let length = self
            .rest
            .iter()
            .take_while(|byte| is_word(**byte) || **byte == b'$')
            .count();
        let (tail, behind) = self.rest.split_at_checked(length).unwrap_or((self.rest, &[]));
        self.rest = behind;
        if tail.is_empty() && first.eq_ignore_ascii_case(&b'e') && behind.first() == Some(&b'\'') {
            self.rest = behind.get(1..).unwrap_or_default();
            self.escaped();
        }
        match (first.to_ascii_lowercase(), tail) {
            (b'c', tail) if tail.eq_ignore_ascii_case(b"ase") => Token::Open,
            (b'e', tail) if tail.eq_ignore_ascii_case(b"nd") => Token::Close,
            _ => Token::Other,
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> usize {
        let mut scan = Scan { rest: text.as_bytes() };
        std::iter::from_fn(|| scan.next()).count()
    }

    #[test]
    fn strings_names_and_comments_are_one_token_or_none() {
        for (text, count) in [
            ("select 1", 2),
            ("select '((((' , \"((\"", 4),
            ("select 1 -- ((((\n, 2", 4),
            ("select /* ( /* ( */ ( */ 1", 2),
            ("select $$ ((( $$, $a$ $$ ( $a$", 4),
            ("select $1, $2", 6),
            (r"select E'\'((' , 1", 4),
            ("'never closed ((((", 1),
            ("$x$ never closed ((((", 1),
            ("/* never closed", 0),
        ] {
            assert_eq!(tokens(text), count, "{text}");
        }
    }

    #[test]
    fn each_bound_is_named() {
        assert_eq!(check(&" ".repeat(TEXT_BYTES_MAX + 1)), Err(Unclear::TooLong));
        assert_eq!(check(&"+".repeat(TOKENS_MAX + 1)), Err(Unclear::TooManyTokens));
        assert_eq!(check(&"(".repeat(NESTING_MAX + 1)), Err(Unclear::TooDeep));
        assert_eq!(check(&"case ".repeat(NESTING_MAX + 1)), Err(Unclear::TooDeep));
        assert_eq!(check(&format!("select '{}'", "(".repeat(100_000))), Ok(()));
        assert_eq!(check(&"() ".repeat(1_000)), Ok(()));
    }
}
