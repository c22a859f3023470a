//! `ErrorResponse` and `NoticeResponse` (manual, "Error and Notice Message Fields"), both ways.

use bytes::{BufMut, Bytes, BytesMut};

use super::encode::{message, string};
use super::fields::Fields;
use crate::end::Refusal;

/// How bad it is. `Fatal` ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    Fatal,
}

impl Severity {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
        }
    }
}

/// The refusal as an `ErrorResponse`.
#[must_use]
pub fn error_response(severity: Severity, refusal: &Refusal) -> Bytes {
    fields(
        b'E',
        severity.as_str(),
        refusal.sqlstate(),
        &refusal.message,
        &refusal.hint,
    )
}

/// A `NoticeResponse` of severity NOTICE.
#[must_use]
pub fn notice_response(text: &str, hint: &str) -> Bytes {
    fields(b'N', "NOTICE", "00000", text, hint)
}

/// An `ErrorResponse` as a target sends it.
#[cfg(test)]
pub(crate) fn fatal(code: &str, text: &str, hint: &str) -> Bytes {
    fields(b'E', Severity::Fatal.as_str(), code, text, hint)
}

fn fields(kind: u8, severity: &str, code: &str, text: &str, hint: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(64 + text.len() + hint.len());
    message(&mut out, kind, |out| {
        let pairs = [
            (b'S', severity),
            (b'V', severity),
            (b'C', code),
            (b'M', text),
            (b'H', hint),
        ];
        for (field, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            out.put_u8(field);
            string(out, value.as_bytes());
        }
        out.put_u8(0);
    });
    out.freeze()
}

/// What an error or notice says. Text that is not UTF-8 is read with replacement characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The severity that is never translated, where given; else the translated one.
    pub severity: String,
    pub code: String,
    pub message: String,
    pub hint: String,
}

impl Report {
    /// Reads a body, or the beginning of one: a last field without its end is taken as far as it goes.
    #[must_use]
    pub fn parse(body: &[u8]) -> Self {
        let mut report = Self::default();
        let mut fields = Fields(body);
        while let Ok(field) = fields.u8("field type") {
            if field == 0 {
                break;
            }
            let value = match fields.string("field") {
                Ok(value) => value,
                Err(_) => std::mem::take(&mut fields.0),
            };
            let slot = match field {
                b'V' => &mut report.severity,
                b'S' if report.severity.is_empty() => &mut report.severity,
                b'C' => &mut report.code,
                b'M' => &mut report.message,
                b'H' => &mut report.hint,
                _ => continue,
            };
            *slot = String::from_utf8_lossy(value).into_owned();
        }
        report
    }

    /// True where the connection ends with it.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        self.severity == "FATAL" || self.severity == "PANIC"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::end::End;

    #[test]
    fn what_is_written_is_read_again() {
        let refusal = Refusal::new(End::Refused, "no\0 DROP here", "Ask for a review");
        let bytes = error_response(Severity::Error, &refusal);
        assert_eq!(bytes[0], b'E');
        assert_eq!(
            u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize,
            bytes.len() - 1
        );
        let report = Report::parse(&bytes[5..]);
        assert_eq!(
            report,
            Report {
                severity: "ERROR".into(),
                code: "42501".into(),
                message: "no DROP here".into(),
                hint: "Ask for a review".into()
            }
        );
        assert!(!report.is_fatal());
    }

    #[test]
    fn a_body_cut_short_is_read_as_far_as_it_goes() {
        let report = Report::parse(b"SERROR\0C42P01\0Mrelation \"x");
        assert_eq!(
            (report.code.as_str(), report.message.as_str()),
            ("42P01", "relation \"x")
        );
        assert_eq!(Report::parse(b""), Report::default());
    }
}
