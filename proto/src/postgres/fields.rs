//! Reads the fields of one message's body: bounded, without copies, without panics.

use thiserror::Error;

/// A message that does not hold the fields which its type promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("its {0} is missing or malformed")]
pub struct Malformed(pub &'static str);

/// What is left to read of a body. Numbers are big-endian (manual, "Message Data Types").
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        let (&first, rest) = self.0.split_first().ok_or(Malformed(what))?;
        self.0 = rest;
        Ok(first)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        let (head, rest) = self.0.split_first_chunk::<2>().ok_or(Malformed(what))?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*head))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        let (head, rest) = self.0.split_first_chunk::<4>().ok_or(Malformed(what))?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*head))
    }

    /// A length that may be -1 for "no value".
    pub(crate) fn length(&mut self, what: &'static str) -> Result<Option<usize>, Malformed> {
        match self.u32(what)? {
            u32::MAX => Ok(None),
            length if length <= i32::MAX as u32 => Ok(Some(length as usize)),
            _ => Err(Malformed(what)),
        }
    }

    pub(crate) fn take(&mut self, bytes: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(bytes).ok_or(Malformed(what))?;
        self.0 = rest;
        Ok(head)
    }

    /// A zero-terminated string, without its zero.
    pub(crate) fn string(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let end = memchr::memchr(0, self.0).ok_or(Malformed(what))?;
        let (head, rest) = self.0.split_at_checked(end).ok_or(Malformed(what))?;
        self.0 = rest.get(1..).unwrap_or_default();
        Ok(head)
    }

    pub(crate) fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed(what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_ends_at_its_zero_and_a_missing_zero_is_malformed() {
        let mut fields = Fields(b"ab\0c");
        assert_eq!(fields.string("name"), Ok(&b"ab"[..]));
        assert_eq!(fields.string("value"), Err(Malformed("value")));
    }

    #[test]
    fn a_length_of_minus_one_is_null_and_other_negatives_are_malformed() {
        assert_eq!(Fields(&[0xff; 4]).length("n"), Ok(None));
        assert_eq!(Fields(&[0, 0, 0, 7]).length("n"), Ok(Some(7)));
        assert_eq!(Fields(&[0x80, 0, 0, 0]).length("n"), Err(Malformed("n")));
        assert_eq!(Fields(&[0, 0]).length("n"), Err(Malformed("n")));
    }
}
