//! Byte streams as clients and targets send them, for benchmarks and tests.

use bytes::{BufMut, Bytes, BytesMut};

use super::encode::{message, string};

/// What a client sends to run `text` in the extended protocol with text parameters: Parse (where `parse`), Bind,
/// Describe, Execute, Sync. `name` is the prepared statement's.
#[must_use]
pub fn extended(name: &str, text: &str, parse: bool, params: &[Option<&str>]) -> Bytes {
    let mut out = BytesMut::new();
    if parse {
        message(&mut out, b'P', |out| {
            string(out, name.as_bytes());
            string(out, text.as_bytes());
            out.put_u16(0);
        });
    }
    message(&mut out, b'B', |out| {
        out.put_u8(0);
        string(out, name.as_bytes());
        out.put_u16(0);
        out.put_u16(u16::try_from(params.len()).unwrap_or(u16::MAX));
        for param in params {
            let Some(param) = param else {
                out.put_u32(u32::MAX);
                continue;
            };
            out.put_u32(u32::try_from(param.len()).unwrap_or(u32::MAX));
            out.put_slice(param.as_bytes());
        }
        out.put_u16(0);
    });
    message(&mut out, b'D', |out| out.put_slice(b"P\0"));
    message(&mut out, b'E', |out| out.put_slice(&[0; 5]));
    message(&mut out, b'S', |_| ());
    out.freeze()
}

/// `rows` DataRow messages of one column with `width` bytes.
#[must_use]
pub fn data_rows(rows: usize, width: u32) -> Bytes {
    repeated(b'D', rows, |out| {
        out.put_u16(1);
        out.put_u32(width);
        out.put_bytes(b'x', width as usize);
    })
}

/// `rows` CopyData messages of `width` bytes.
#[must_use]
pub fn copy_data(rows: usize, width: usize) -> Bytes {
    repeated(b'd', rows, |out| out.put_bytes(b'x', width))
}

/// The answer to a Query of one text column with `rows` rows: RowDescription to ReadyForQuery.
#[must_use]
pub fn select_answer(rows: usize, width: u32) -> Bytes {
    let mut out = BytesMut::new();
    row_description(&mut out);
    out.put_slice(&data_rows(rows, width));
    message(&mut out, b'C', |out| string(out, format!("SELECT {rows}").as_bytes()));
    message(&mut out, b'Z', |out| out.put_u8(b'I'));
    out.freeze()
}

/// The answer to `extended` with `rows` rows.
#[must_use]
pub fn extended_answer(parse: bool, rows: usize, width: u32) -> Bytes {
    let mut out = BytesMut::new();
    if parse {
        message(&mut out, b'1', |_| ());
    }
    message(&mut out, b'2', |_| ());
    out.put_slice(&select_answer(rows, width));
    out.freeze()
}

fn row_description(out: &mut BytesMut) {
    message(out, b'T', |out| {
        out.put_u16(1);
        string(out, b"column");
        out.put_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    });
}

fn repeated(kind: u8, times: usize, body: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut one = BytesMut::new();
    message(&mut one, kind, body);
    let mut out = BytesMut::with_capacity(one.len() * times);
    for _ in 0..times {
        out.put_slice(&one);
    }
    out.freeze()
}
