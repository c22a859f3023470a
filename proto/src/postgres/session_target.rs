//! The target's side of a `Session`: results, outcomes and notices, matched with what was forwarded.

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::error_response::{Report, Severity, error_response};
use super::fields::Fields;
use super::flow::{HEADER_BYTES, Mode, Piece};
use super::pipeline::{Defined, Item};
use super::refusal;
use super::session::{PROTOCOL_VIOLATION, Session, framing};
use crate::dialogue::{Batch, Violation};
use crate::event::{Event, Outcome, StatementId, Status};

/// The longest small answer (command tags, statuses, formats of COPY), in bytes.
const MAX_SMALL_BYTES: usize = 64 * 1024;
/// Of an error, notice or parameter, this much is read, in bytes; what is longer passes unread.
const MAX_REPORT_BYTES: usize = 64 * 1024;

/// A batch on its way through `scan_target`.
#[derive(Default)]
struct Scan {
    events: SmallVec<[Event; 2]>,
    /// Output of one statement that is not yet an event. Offsets are the incoming batch's.
    run: Option<Run>,
    /// What is put in the place of which incoming bytes, ascending.
    edits: SmallVec<[(usize, usize, Bytes); 1]>,
    /// How much longer the outgoing batch is than the incoming one, so far.
    longer: isize,
}

#[derive(Clone, Copy)]
struct Run {
    statement: StatementId,
    start: usize,
    end: usize,
    rows: u64,
}

impl Session {
    pub(super) fn scan_target(&mut self, bytes: Bytes) -> Result<Batch, Violation> {
        let Some(bytes) = self.down.enter(bytes) else {
            return Ok(Batch::default());
        };
        let mut scan = Scan::default();
        let (mut at, mut needed) = (0, 0);
        loop {
            match self
                .down
                .next(&bytes, at, mode)
                .map_err(|error| framing("target", error))?
            {
                None => break,
                Some(Piece::Short { needed: bytes }) => {
                    needed = bytes;
                    break;
                }
                Some(Piece::Begin {
                    kind: b'D' | b'd',
                    start,
                    end,
                }) => {
                    self.output(&mut scan, start, end, 1);
                    at = end;
                }
                Some(Piece::Begin { kind, start, end }) => {
                    self.begin(&mut scan, kind, &bytes, start, end);
                    at = end;
                }
                Some(Piece::More { kind, start, end }) => {
                    if matches!(kind, b'D' | b'd' | b'V') || (kind == b'T' && self.pipeline.answering() != 0) {
                        self.output(&mut scan, start, end, 0);
                    }
                    at = end;
                }
                Some(Piece::Whole { kind, start, end }) => {
                    self.whole(&mut scan, kind, &bytes, start, end)?;
                    at = end;
                }
            }
        }
        self.flush(&mut scan);
        let bytes = self.down.leave(bytes, at, needed);
        Ok(Batch {
            bytes: edited(bytes, &scan.edits),
            events: scan.events,
        })
    }

    /// Bytes of the front statement's result.
    #[inline]
    fn output(&mut self, scan: &mut Scan, start: usize, end: usize, rows: u64) {
        let statement = self.pipeline.answering();
        if let Some(run) = &mut scan.run
            && run.statement == statement
            && run.end == start
        {
            run.end = end;
            run.rows += rows;
            return;
        }
        self.flush(scan);
        scan.run = Some(Run {
            statement,
            start,
            end,
            rows,
        });
    }

    #[inline]
    fn flush(&mut self, scan: &mut Scan) {
        let Some(run) = scan.run.take() else { return };
        if run.statement != 0 {
            self.pipeline.progress.rows += run.rows;
            self.pipeline.progress.bytes += (run.end - run.start) as u64;
        }
        let span = run.start.saturating_add_signed(scan.longer)..run.end.saturating_add_signed(scan.longer);
        scan.events.push(Event::Output {
            statement: run.statement,
            span,
            rows: run.rows,
        });
    }

    /// A streamed message other than a row, or one whose head is all that is read.
    fn begin(&mut self, scan: &mut Scan, kind: u8, bytes: &Bytes, start: usize, end: usize) {
        match kind {
            b'T' => {
                // The answer to a Describe tells the columns of the Execute that follows it.
                if matches!(self.pipeline.front(), Some(Item::Describe)) {
                    self.pipeline.pop();
                }
                if self.pipeline.answering() != 0 {
                    self.output(scan, start, end, 0);
                }
            }
            b'V' => self.output(scan, start, end, 1),
            b'E' | b'N' | b'A' | b'S' => {
                let body = bytes.get(start + HEADER_BYTES..end).unwrap_or_default();
                self.flush(scan);
                self.report(scan, kind, body, None);
            }
            _ => {}
        }
    }

    #[inline]
    fn whole(&mut self, scan: &mut Scan, kind: u8, bytes: &Bytes, start: usize, end: usize) -> Result<(), Violation> {
        let body = bytes.get(start + HEADER_BYTES..end).unwrap_or_default();
        match kind {
            b'C' | b'I' | b's' => {
                self.flush(scan);
                self.command_complete(scan, kind, body);
            }
            b'Z' => {
                self.flush(scan);
                let status = body
                    .first()
                    .copied()
                    .filter(|status| matches!(status, b'I' | b'T' | b'E'));
                let status = status.ok_or_else(|| violation("the target sent a malformed ReadyForQuery"))?;
                self.ready(scan, status);
            }
            b'1' => self.confirm(scan, |item| matches!(item, Item::Parse(_)), "ParseComplete")?,
            b'2' => self.confirm(scan, |item| matches!(item, Item::Bind(_)), "BindComplete")?,
            b'3' => self.confirm(
                scan,
                |item| matches!(item, Item::CloseStatement(_) | Item::ClosePortal(_)),
                "CloseComplete",
            )?,
            b'n' => {
                if matches!(self.pipeline.front(), Some(Item::Describe)) {
                    self.pipeline.pop();
                }
            }
            b'H' | b'c' => self.output(scan, start, end, 0),
            b'G' => self.pipeline.copy_in(),
            b'E' | b'N' | b'A' | b'S' => {
                self.flush(scan);
                self.report(scan, kind, body, Some((start, end)));
            }
            // BackendKeyData, CopyBothResponse: nothing to know.
            _ => {}
        }
        Ok(())
    }

    fn confirm(&mut self, scan: &mut Scan, expected: impl Fn(&Item) -> bool, name: &str) -> Result<(), Violation> {
        // What names stand for rests on these, so a stray one is not passed over.
        if !self.pipeline.front().is_some_and(expected) {
            return Err(violation(&format!("the target sent {name} where none was due")));
        }
        let item = self.pipeline.pop();
        if let Some(defined) = item.as_ref().and_then(Item::prepared) {
            self.flush(scan);
            scan.events.extend(defined.outcome(Status::Ok).map(Event::Outcome));
        }
        match item {
            Some(Item::Parse(Defined { number, .. }) | Item::CloseStatement(number)) => self.statements.confirm(number),
            Some(Item::Bind(Defined { number, .. }) | Item::ClosePortal(number)) => self.portals.confirm(number),
            _ => {}
        }
        Ok(())
    }

    #[inline]
    fn command_complete(&mut self, scan: &mut Scan, kind: u8, body: &[u8]) {
        let tag = match kind {
            b'C' => body.strip_suffix(&[0]).unwrap_or(body),
            _ => b"",
        };
        if tag.starts_with(b"D") {
            self.deallocated(tag);
        }
        match self.pipeline.front() {
            Some(Item::Execute(_)) => {
                self.pipeline.progress.tag = text(tag);
                if let Some(Item::Execute(sent)) = self.pipeline.pop() {
                    scan.events.push(Event::Outcome(self.pipeline.outcome(&sent)));
                }
            }
            Some(Item::Query(_)) => self.pipeline.progress.tag = text(tag),
            _ => {}
        }
    }

    /// SQL that drops prepared statements: what they were called is no longer what they are.
    fn deallocated(&mut self, tag: &[u8]) {
        let name = match tag {
            b"DEALLOCATE" => self
                .pipeline
                .front()
                .and_then(Item::sent)
                .and_then(|sent| sent.deallocates.as_deref()),
            b"DEALLOCATE ALL" | b"DISCARD ALL" => None,
            _ => return,
        };
        match name {
            Some(name) => self.statements.forget(name),
            None => self.statements.forget_named(),
        }
    }

    #[inline]
    fn ready(&mut self, scan: &mut Scan, status: u8) {
        loop {
            match self.pipeline.pop() {
                // ReadyForQuery unasked for: nothing was waiting for a Sync any more.
                None => {
                    self.pipeline.skipping = false;
                    break;
                }
                Some(Item::Sync) => break,
                Some(Item::Query(sent) | Item::Function(sent)) => {
                    scan.events.push(Event::Outcome(self.pipeline.outcome(&sent)));
                    break;
                }
                // The target has passed it over without a word.
                Some(item) => {
                    let outcome = self.skip(item).map(|outcome| match outcome.status {
                        Status::Skipped => Outcome {
                            status: Status::Unknown,
                            ..outcome
                        },
                        _ => outcome,
                    });
                    scan.events.extend(outcome.map(Event::Outcome));
                }
            }
        }
        self.pipeline.ready(status);
        // Portals live as long as their transaction.
        if status == b'I' {
            self.portals.forget_all();
        }
    }

    /// ErrorResponse, NoticeResponse, NotificationResponse, ParameterStatus. `whole`: where the message is, if all of it
    /// is in `body`.
    #[cold]
    fn report(&mut self, scan: &mut Scan, kind: u8, body: &[u8], whole: Option<(usize, usize)>) {
        let mut fields = Fields(body);
        let (kind, text) = match kind {
            b'E' => return self.error(scan, &Report::parse(body), whole),
            b'N' => {
                let report = Report::parse(body);
                ("notice", format!("{}: {}", report.severity, report.message))
            }
            b'A' => {
                let process_id = fields.u32("process id").unwrap_or_default();
                let channel = text(fields.string("channel").unwrap_or_default());
                let payload = text(fields.string("payload").unwrap_or(fields.0));
                ("notify", format!("{channel} from {process_id}: {payload}"))
            }
            _ => {
                let name = text(fields.string("name").unwrap_or_default());
                let value = text(fields.string("value").unwrap_or(fields.0));
                ("parameter", format!("{name} = {value}"))
            }
        };
        scan.events.push(Event::Notice { kind, text });
    }

    fn error(&mut self, scan: &mut Scan, report: &Report, whole: Option<(usize, usize)>) {
        self.pipeline.copying = None;
        self.parted |= report.is_fatal();
        let error = (report.code.clone(), report.message.clone());
        let refused = self
            .pipeline
            .front()
            .and_then(Item::sent)
            .and_then(|sent| sent.refused.as_deref());
        let mut told = error;
        if let Some(refused) = refused
            && refusal::is_answer(refused, report)
            && let Some((start, end)) = whole
        {
            let refusal = &refused.refusal;
            told = (refusal.sqlstate().to_owned(), refusal.message.clone());
            let ours = error_response(Severity::Error, refusal);
            scan.longer += ours.len() as isize - (end - start) as isize;
            scan.edits.push((start, end, ours));
        }
        match self.pipeline.front() {
            Some(Item::Query(_) | Item::Function(_)) => {
                self.pipeline.progress.error = Some(told);
                // Nothing follows a FATAL error.
                if report.is_fatal()
                    && let Some(Item::Query(sent) | Item::Function(sent)) = self.pipeline.pop()
                {
                    scan.events.push(Event::Outcome(self.pipeline.outcome(&sent)));
                }
            }
            // The transaction's end failed at the Sync, or nothing was asked.
            Some(Item::Sync) | None => {
                let text = format!("{} {}: {}", report.severity, report.code, report.message);
                scan.events.push(Event::Notice { kind: "error", text });
            }
            Some(_) => self.skip_to_sync(scan, told, report),
        }
    }

    /// After an error in the extended protocol the target skips everything up to a Sync. The error belongs to the message
    /// that is being answered, where that has an event, and else to the first statement it keeps from running.
    fn skip_to_sync(&mut self, scan: &mut Scan, told: (String, String), report: &Report) {
        let mut told = Some(told);
        let mut answered = true;
        loop {
            match self.pipeline.front() {
                Some(Item::Sync) => break,
                None => {
                    self.pipeline.skipping = true;
                    break;
                }
                Some(_) => {}
            }
            let Some(item) = self.pipeline.pop() else { break };
            let at_fault = match &item {
                Item::Parse(_) => answered && item.prepared().is_some(),
                Item::Bind(_) => item.prepared().is_some(),
                _ => item.sent().is_some(),
            };
            answered = false;
            let error = if at_fault { told.take() } else { None };
            let outcome = match error {
                Some(error) => self.failed(item, error),
                None => self.skip(item),
            };
            scan.events.extend(outcome.map(Event::Outcome));
        }
        if told.is_some() {
            let text = format!("{} {}: {}", report.severity, report.code, report.message);
            scan.events.push(Event::Notice { kind: "error", text });
        }
    }

    /// The outcome of an item that this error (SQLSTATE, message) answers.
    fn failed(&mut self, item: Item, error: (String, String)) -> Option<Outcome> {
        if let Some(sent) = item.sent() {
            self.pipeline.progress.error = Some(error);
            return Some(self.pipeline.outcome(sent));
        }
        let (sqlstate, message) = error;
        self.skip(item).map(|outcome| Outcome {
            status: Status::Error,
            sqlstate,
            message,
            ..outcome
        })
    }
}

#[inline]
fn mode(kind: u8) -> Mode {
    match kind {
        b'D' | b'd' | b'T' | b't' | b'V' => Mode::Stream,
        b'E' | b'N' | b'A' | b'S' => Mode::Head {
            bytes: MAX_REPORT_BYTES,
        },
        b'C' | b'Z' | b'1' | b'2' | b'3' | b'n' | b's' | b'I' | b'G' | b'H' | b'W' | b'c' | b'K' => Mode::Whole {
            limit_bytes: MAX_SMALL_BYTES,
        },
        _ => Mode::Unknown,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cold]
fn violation(message: &str) -> Violation {
    Violation {
        message: message.to_owned(),
        code: PROTOCOL_VIOLATION,
    }
}

/// The batch with its edits; without any, the same bytes.
fn edited(bytes: Bytes, edits: &[(usize, usize, Bytes)]) -> Bytes {
    if edits.is_empty() {
        return bytes;
    }
    let grown: usize = edits.iter().map(|(_, _, with)| with.len()).sum();
    let mut out = BytesMut::with_capacity(bytes.len() + grown);
    let mut done = 0;
    for (start, end, with) in edits {
        out.put_slice(bytes.get(done..*start).unwrap_or_default());
        out.put_slice(with);
        done = *end;
    }
    out.put_slice(bytes.get(done..).unwrap_or_default());
    out.freeze()
}
