//! Refusals that travel through the target (DESIGN §5): what is sent there in the place of a refused message, and how
//! the error that comes back is recognised.

use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};

use super::encode::{query, ready_for_query, single, string};
use super::error_response::{Report, Severity, error_response};
use super::pipeline::Refused;
use crate::end::Refusal;

/// Not SQL in any version, and tells whoever reads the target's log what it is.
const TEXT: &str = "REFUSED BY HOOP: a statement in this place was refused and not sent";
/// SQLSTATE syntax_error: what `TEXT` is answered with.
const SYNTAX_ERROR: &str = "42601";
/// SQLSTATE query_canceled: what CopyFail is answered with.
const QUERY_CANCELED: &str = "57014";

/// In the place of a Query or FunctionCall.
static FAILING_QUERY: LazyLock<Bytes> = LazyLock::new(|| query(TEXT));

/// In the place of an Execute. Parsed under a name: a Parse without one would drop the unnamed statement even though it
/// fails, which a failing Execute does not.
static FAILING_PARSE: LazyLock<Bytes> = LazyLock::new(|| {
    single(b'P', |out| {
        string(out, b"hoop_refused");
        string(out, TEXT.as_bytes());
        out.put_u16(0);
    })
});

/// In the place of COPY data.
static COPY_FAIL: LazyLock<Bytes> = LazyLock::new(|| single(b'f', |out| string(out, b"refused by Hoop")));

pub(crate) fn failing_query() -> Bytes {
    FAILING_QUERY.clone()
}

pub(crate) fn failing_parse() -> Bytes {
    FAILING_PARSE.clone()
}

pub(crate) fn copy_fail() -> Bytes {
    COPY_FAIL.clone()
}

/// The gateway's own answer to a refused Query of an idle session.
pub(crate) fn answer_alone(refusal: &Refusal) -> Bytes {
    let error = error_response(Severity::Error, refusal);
    let ready = ready_for_query(b'I');
    let mut out = BytesMut::with_capacity(error.len() + ready.len());
    out.put_slice(&error);
    out.put_slice(&ready);
    out.freeze()
}

/// True where `report` is the target's answer to what was sent in a refused message's place. Anything else (a lock time-out,
/// an administrator's shutdown) is the target's own and reaches the client as it is.
pub(crate) fn is_answer(refused: &Refused, report: &Report) -> bool {
    let expected = if refused.of_input { QUERY_CANCELED } else { SYNTAX_ERROR };
    report.code == expected && !report.is_fatal()
}
