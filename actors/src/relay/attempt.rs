//! A statement as the record keeps it before it is forwarded.

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use hoop_proto::event::{Param, Statement};
use hoop_proto::evidence::{self, Attempt, Value};

/// Text of one statement kept in the record at most, in bytes.
pub const ATTEMPT_TEXT_BYTES: usize = 256 * 1024;
/// One parameter kept in the record at most, in bytes.
pub const ATTEMPT_PARAM_BYTES: usize = 16 * 1024;
/// All parameters of one statement kept in the record at most, in bytes.
pub const ATTEMPT_PARAMS_BYTES: usize = 256 * 1024;
/// A statement's attempt, with what the stages said of it. Too long texts and parameters are cut, and say so.
#[must_use]
pub fn attempt(statement: &Statement, verdicts: Vec<evidence::Verdict>) -> Attempt {
    let text_cut = statement.text.len() > ATTEMPT_TEXT_BYTES;
    let mut left = ATTEMPT_PARAMS_BYTES;
    let params = statement
        .params
        .iter()
        .map(|param| {
            let value = value(param, left.min(ATTEMPT_PARAM_BYTES));
            left -= value.data.len().min(left);
            value
        })
        .collect();
    Attempt {
        statement: statement.id,
        kind: statement.kind.as_str().to_owned(),
        text: if text_cut {
            statement.text.slice(..ATTEMPT_TEXT_BYTES)
        } else {
            statement.text.clone()
        },
        params,
        verdicts,
        name: String::from_utf8_lossy(&statement.name).into_owned(),
        text_cut,
        text_bytes: statement.text.len() as u64,
        text_sha256: if text_cut {
            Bytes::copy_from_slice(digest(&SHA256, &statement.text).as_ref())
        } else {
            Bytes::new()
        },
    }
}

fn value(param: &Param, limit: usize) -> Value {
    let format = u32::from(param.format);
    match &param.data {
        None => Value {
            null: true,
            format,
            ..Value::default()
        },
        Some(data) => {
            let kept = data.len().min(limit);
            Value {
                null: false,
                format,
                data: data.slice(..kept),
                cut_bytes: (data.len() - kept) as u64,
            }
        }
    }
}
