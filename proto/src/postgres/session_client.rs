//! The client's side of a `Session`: statements out of Query, Parse, Bind, Execute and FunctionCall.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use smallvec::SmallVec;

use super::fields::{Fields, Malformed};
use super::flow::{HEADER_BYTES, Mode, Piece};
use super::names::Found;
use super::pipeline::{Defined, Item};
use super::session::{LIMIT_EXCEEDED, PROTOCOL_VIOLATION, Session, Staged, framing, sent};
use super::statement::{Portal, Prepared, bind_params, function_call, query_text, unknown_portal, unknown_statement};
use super::unexecuted::Untold;
use crate::dialogue::{Batch, Violation};
use crate::event::{Event, Param, Statement, StatementKind};

/// The longest message that holds only names, in bytes (PostgreSQL's own limit, `PQ_SMALL_MESSAGE_LIMIT`).
const MAX_SMALL_BYTES: usize = 10_000 + 1;
/// SQLSTATE feature_not_supported.
const NOT_SUPPORTED: &str = "0A000";

impl Session {
    pub(super) fn scan_client(&mut self, bytes: Bytes) -> Result<Batch, Violation> {
        let Some(bytes) = self.up.enter(bytes) else {
            return Ok(Batch::default());
        };
        let statement_bytes = self.limits.statement_bytes;
        let mode = |kind| mode(kind, statement_bytes);
        let mut batch = Batch::default();
        let (mut at, mut needed) = (0, 0);
        let before = self.staged.len();
        loop {
            let piece = self
                .up
                .next(&bytes, at, mode)
                .map_err(|error| framing("client", error))?;
            match piece {
                None => break,
                Some(Piece::Short { needed: bytes }) => {
                    needed = bytes;
                    break;
                }
                Some(Piece::Whole { kind, start, end }) => {
                    let body = start + HEADER_BYTES..end;
                    let item = self
                        .message(kind, &bytes, body, start, &mut batch)
                        .map_err(|error| error.told(kind))?;
                    self.staged.push_back(Staged { start, item });
                    at = end;
                }
                Some(Piece::Begin { start, end, .. }) => {
                    self.data(start..end, 0, 1, before, &mut batch);
                    at = end;
                }
                Some(Piece::More { start, end, .. }) => {
                    self.data(start..end, end - start, 0, before, &mut batch);
                    at = end;
                }
            }
        }
        let untold = self.unexecuted.take();
        if !untold.is_empty() {
            self.tell(&untold, at, &mut batch).map_err(|error| error.told(b'B'))?;
        }
        let staged = self.staged.len();
        if staged + self.pipeline.len() > self.limits.unanswered {
            return Err(limit(
                "unanswered messages in the pipeline",
                staged + self.pipeline.len(),
                self.limits.unanswered,
            ));
        }
        batch.bytes = self.up.leave(bytes, at, needed);
        if staged > before {
            self.batches.push_back(staged - before);
        }
        Ok(batch)
    }

    /// A piece of COPY data, in which `begun` messages begin: joined with the one before it in the batch.
    fn data(&mut self, piece: Range<usize>, lead_bytes: usize, begun: u64, before: usize, batch: &mut Batch) {
        if self.staged.len() > before
            && let Some(Staged {
                item: Item::Data { .. },
                ..
            }) = self.staged.back()
            && let Some(Event::Input { span, rows, .. }) = batch.events.last_mut()
        {
            span.end = piece.end;
            *rows += begun;
            return;
        }
        let lead_ends = lead_bytes == 0 || self.up.at_boundary();
        self.staged.push_back(Staged {
            start: piece.start,
            item: Item::Data { lead_bytes, lead_ends },
        });
        let statement = self.pipeline.copying.unwrap_or(self.last_run);
        batch.events.push(Event::Input {
            statement,
            span: piece,
            rows: begun,
        });
    }

    #[inline]
    fn message(
        &mut self,
        kind: u8,
        bytes: &Bytes,
        body: Range<usize>,
        start: usize,
        batch: &mut Batch,
    ) -> Result<Item, Unacceptable> {
        let span = start..body.end;
        let mut fields = Fields(bytes.get(body.clone()).unwrap_or_default());
        Ok(match kind {
            b'Q' => {
                let length = query_text(fields.0)?;
                let text = bytes.slice(body.start..body.start + length);
                self.statement(StatementKind::Query, text, Vec::new(), Bytes::new(), span, batch)
            }
            b'P' => {
                let name = fields.string("name")?;
                let text = fields.string("text")?;
                // Parsing the same text again, as drivers do, keeps what is there.
                let prepared = match self.statements.newest(name) {
                    Some(newest) if newest.text == text => newest.clone(),
                    _ => Prepared {
                        text: Bytes::copy_from_slice(text),
                    },
                };
                let number = self.statements.define(name, self.segment, Some(prepared));
                self.check_statements()?;
                self.unexecuted.parse(number, self.staged.len(), batch.events.len());
                Item::Parse(Defined { number, prepared: 0 })
            }
            b'B' => {
                let number = self.bind(fields, bytes, body.end, batch.events.len())?;
                Item::Bind(Defined { number, prepared: 0 })
            }
            b'E' => {
                let name = fields.string("portal")?;
                let max_rows = fields.u32("row limit")?;
                let (text, params, statement) = match self.portals.find(name, self.segment) {
                    Found::Known(portal, _, number) => {
                        if let Some(number) = number {
                            self.unexecuted.executed(number);
                        }
                        (
                            portal.text.clone(),
                            bind_params(&portal.arguments)?,
                            portal.statement.clone(),
                        )
                    }
                    Found::Absent => (unknown_portal(name, max_rows), Vec::new(), Bytes::new()),
                    Found::Ambiguous => {
                        return Err(Unacceptable::Ambiguous {
                            what: "portal",
                            name: lossy(name),
                        });
                    }
                };
                self.statement(StatementKind::Execute, text, params, statement, span, batch)
            }
            b'D' => {
                self.named_thing(&mut fields)?;
                Item::Describe
            }
            b'C' => match self.named_thing(&mut fields)? {
                (b'S', name) => {
                    let number = self.statements.define(name, self.segment, None);
                    self.check_statements()?;
                    Item::CloseStatement(number)
                }
                (_, name) => {
                    let number = self.portals.define(name, self.segment, None);
                    self.check_portals()?;
                    Item::ClosePortal(number)
                }
            },
            b'F' => {
                let (oid, params) = function_call(&bytes.slice(body))?;
                let text = Bytes::from(format!("function {oid}"));
                self.statement(StatementKind::FunctionCall, text, params, Bytes::new(), span, batch)
            }
            b'S' => {
                self.segment += 1;
                Item::Sync
            }
            b'H' => Item::Flush,
            b'c' | b'f' => Item::CopyEnd,
            // 'X'; other types do not get past `mode`.
            _ => {
                self.parted = true;
                Item::Terminate
            }
        })
    }

    fn statement(
        &mut self,
        kind: StatementKind,
        text: Bytes,
        params: Vec<Param>,
        name: Bytes,
        span: Range<usize>,
        batch: &mut Batch,
    ) -> Item {
        self.last_statement += 1;
        let id = self.last_statement;
        self.last_run = id;
        let sent = sent(id, &text);
        batch.events.push(Event::Statement(Statement {
            id,
            kind,
            text,
            params,
            name,
            span,
        }));
        match kind {
            StatementKind::Execute => Item::Execute(sent),
            StatementKind::FunctionCall => Item::Function(sent),
            _ => Item::Query(sent),
        }
    }

    /// Gives each of these an event in its place in the batch, which ends at `end`.
    #[cold]
    fn tell(&mut self, untold: &[Untold], end: usize, batch: &mut Batch) -> Result<(), Unacceptable> {
        let mut untold = untold.iter().peekable();
        let mut events = SmallVec::with_capacity(batch.events.len() + untold.len());
        let mut others = std::mem::take(&mut batch.events).into_iter();
        for place in 0.. {
            while let Some(next) = untold.next_if(|next| next.event == place) {
                events.extend(self.prepared(*next, end)?.map(Event::Prepared));
            }
            let Some(other) = others.next() else { break };
            events.push(other);
        }
        batch.events = events;
        Ok(())
    }

    /// What a Parse or Bind tells the target.
    fn prepared(&mut self, untold: Untold, end: usize) -> Result<Option<Statement>, Unacceptable> {
        let found = if untold.is_bind {
            match self.portals.pending(untold.number) {
                Some((portal, _)) => Some((
                    StatementKind::Bind,
                    portal.text.clone(),
                    bind_params(&portal.arguments)?,
                    portal.statement.clone(),
                )),
                None => None,
            }
        } else {
            let prepared = self.statements.pending(untold.number);
            prepared.map(|(prepared, name)| (StatementKind::Parse, prepared.text.clone(), Vec::new(), name.clone()))
        };
        let Some((kind, text, params, name)) = found else {
            return Ok(None);
        };
        let next = self.staged.get(untold.item + 1).map_or(end, |next| next.start);
        let Some(staged) = self.staged.get_mut(untold.item) else {
            return Ok(None);
        };
        self.last_statement += 1;
        if let Item::Parse(defined) | Item::Bind(defined) = &mut staged.item {
            defined.prepared = self.last_statement;
        }
        Ok(Some(Statement {
            id: self.last_statement,
            kind,
            text,
            params,
            name,
            span: staged.start..next,
        }))
    }

    /// Bind: the portal gets its statement's text. Gives its definition's number. `fields` is the rest of `bytes` up to
    /// `end`; `event` is where an event of its own belongs.
    fn bind(&mut self, mut fields: Fields<'_>, bytes: &Bytes, end: usize, event: usize) -> Result<u64, Unacceptable> {
        let portal = fields.string("portal")?;
        let name = fields.string("statement name")?;
        let (text, statement, parse) = match self.statements.find(name, self.segment) {
            Found::Known(prepared, name, number) => (prepared.text.clone(), name.clone(), number),
            Found::Absent => (unknown_statement(name), Bytes::copy_from_slice(name), None),
            Found::Ambiguous => {
                return Err(Unacceptable::Ambiguous {
                    what: "prepared statement",
                    name: lossy(name),
                });
            }
        };
        // A named portal may outlive many batches, so it must not pin this one.
        let arguments = if portal.is_empty() {
            bytes.slice(end - fields.0.len()..end)
        } else {
            Bytes::copy_from_slice(fields.0)
        };
        let number = self.portals.define(
            portal,
            self.segment,
            Some(Portal {
                text,
                statement,
                arguments,
            }),
        );
        self.unexecuted.bind(number, parse, self.staged.len(), event);
        self.check_portals()?;
        Ok(number)
    }

    /// `S` or `P`, and a name (Describe, Close).
    fn named_thing<'a>(&self, fields: &mut Fields<'a>) -> Result<(u8, &'a [u8]), Malformed> {
        let what = fields.u8("kind")?;
        if what != b'S' && what != b'P' {
            return Err(Malformed("kind"));
        }
        Ok((what, fields.string("name")?))
    }

    fn check_statements(&self) -> Result<(), Unacceptable> {
        let (count, bytes) = (self.statements.count(), self.statements.bytes());
        check("prepared statements", count, self.limits.prepared)?;
        check("bytes of prepared statements", bytes, self.limits.prepared_bytes)
    }

    fn check_portals(&self) -> Result<(), Unacceptable> {
        let (count, bytes) = (self.portals.count(), self.portals.bytes());
        check("portals", count, self.limits.portals)?;
        check("bytes of portals' parameters", bytes, self.limits.portal_bytes)
    }
}

#[inline]
fn mode(kind: u8, statement_bytes: usize) -> Mode {
    match kind {
        b'Q' | b'P' | b'B' | b'F' => Mode::Whole {
            limit_bytes: statement_bytes,
        },
        b'd' => Mode::Body,
        b'E' | b'S' | b'D' | b'C' | b'H' | b'c' | b'f' | b'X' => Mode::Whole {
            limit_bytes: MAX_SMALL_BYTES,
        },
        _ => Mode::Unknown,
    }
}

/// Why a client's message is not taken.
enum Unacceptable {
    Malformed(Malformed),
    Limit(Violation),
    Ambiguous { what: &'static str, name: String },
}

impl From<Malformed> for Unacceptable {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

impl Unacceptable {
    #[cold]
    fn told(self, kind: u8) -> Violation {
        match self {
            Self::Malformed(error) => Violation {
                message: format!(
                    "the client sent a malformed message type '{}': {error}",
                    char::from(kind)
                ),
                code: PROTOCOL_VIOLATION,
            },
            Self::Limit(violation) => violation,
            Self::Ambiguous { what, name } => Violation {
                message: format!(
                    "{what} \"{name}\" was defined anew in a pipeline whose answer is still out, so what it stands \
                     for is not known yet; wait for ReadyForQuery before using it"
                ),
                code: NOT_SUPPORTED,
            },
        }
    }
}

fn check(what: &str, is: usize, limit_is: usize) -> Result<(), Unacceptable> {
    if is <= limit_is {
        Ok(())
    } else {
        Err(Unacceptable::Limit(limit(what, is, limit_is)))
    }
}

fn limit(what: impl fmt::Display, is: usize, limit_is: usize) -> Violation {
    Violation {
        message: format!("the session has {is} {what}; the limit is {limit_is}"),
        code: LIMIT_EXCEEDED,
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
