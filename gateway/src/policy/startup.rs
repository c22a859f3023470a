//! Start-up parameters that stand for a statement (`role`, `session_authorization`, `options`): judged by the session's
//! chain, and recorded as attempts, before anything of the login reaches the target.
//!
//! Must not forward anything. Commits nothing: that is the caller's next step.

use std::sync::Arc;

use bytes::Bytes;
use hoop_actors::recorder::{RecordError, Recorder};
use hoop_actors::relay::attempt;
use hoop_actors::stage::{Chain, Direction, Judgement};
use hoop_proto::end::{End, Refusal};
use hoop_proto::event::{Event, Statement, StatementId, StatementKind, Status};
use hoop_proto::evidence::event::Body;
use hoop_proto::evidence::{self, Outcome};
use hoop_proto::postgres::settings::{self, OptionsError, Setting};
use tokio::time::Instant;

/// A session's statements at start-up: numbered from 1, so that the client's own go on behind them.
#[derive(Debug)]
pub struct StartupStatements {
    count: StatementId,
    /// Attempted, and what became of them is not recorded.
    open: bool,
    since: Instant,
}

/// Why a session does not start.
#[derive(Debug)]
pub enum NotStarted {
    Refused(Refusal),
    Unrecorded(RecordError),
}

impl From<RecordError> for NotStarted {
    fn from(error: RecordError) -> Self {
        Self::Unrecorded(error)
    }
}

impl Default for StartupStatements {
    fn default() -> Self {
        Self {
            count: 0,
            open: false,
            since: Instant::now(),
        }
    }
}

impl StartupStatements {
    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> StatementId {
        self.count
    }

    /// Asks the chain, and appends an attempt for each with its verdicts. Where one is refused, the outcomes too.
    ///
    /// # Errors
    /// `End::ParameterRefused` where a stage refuses or holds one (a login waits for no review), or `options` holds
    /// what is no setting; `End::StageFailed`; or what cannot be recorded.
    pub async fn judge(
        &mut self,
        chain: &Chain,
        recorder: &mut impl Recorder,
        parameters: &[(String, String)],
    ) -> Result<(), NotStarted> {
        let settings = settings::judged(parameters).map_err(|error| NotStarted::Refused(no_setting(&error)))?;
        let events: Arc<[Event]> = settings
            .iter()
            .zip(1..)
            .map(|(setting, id)| Event::Statement(statement(id, setting)))
            .collect();
        let mut judgement = Judgement::default();
        if chain.wants(&events) {
            let judged = chain.judge(Direction::ToTarget, events.clone()).await;
            judgement = judged.map_err(|lost| NotStarted::Refused(lost.refusal()))?;
        }
        refuse_held(&mut judgement, &settings);
        self.since = Instant::now();
        for (at, event) in events.iter().enumerate() {
            if let Event::Statement(statement) = event {
                let attempt = attempt(statement, judgement.verdicts_of(at));
                recorder.append(Body::Attempt(attempt))?;
                self.count = statement.id;
            }
        }
        self.open = self.count > 0;
        let Some((refused, why)) = judgement.refusals.into_iter().next() else {
            return Ok(());
        };
        let name = settings.get(refused).map_or("", |setting| setting.name.as_str());
        let refusal = Refusal {
            end: End::ParameterRefused,
            message: format!("the start-up setting \"{name}\" was refused: {}", why.message),
            ..why
        };
        self.close(recorder, |at| {
            if at == refused {
                (Status::Refused, refusal.sqlstate(), refusal.message.as_str())
            } else {
                (Status::Skipped, "", "")
            }
        })?;
        Err(NotStarted::Refused(refusal))
    }

    /// The login is over: appends what became of each. `failed`: why there is no session with the target.
    ///
    /// # Errors
    /// `RecordError` where that cannot be recorded.
    pub fn over(&mut self, recorder: &mut impl Recorder, failed: Option<&Refusal>) -> Result<(), RecordError> {
        self.close(recorder, |_| match failed {
            None => (Status::Ok, "", ""),
            // The target has judged the login as a whole.
            Some(why) if why.end == End::TargetRefusedLogin => (Status::Error, why.sqlstate(), why.message.as_str()),
            Some(_) => (Status::Unknown, "", ""),
        })
    }

    fn close<'a>(
        &mut self,
        recorder: &mut impl Recorder,
        outcome: impl Fn(usize) -> (Status, &'a str, &'a str),
    ) -> Result<(), RecordError> {
        if !std::mem::take(&mut self.open) {
            return Ok(());
        }
        let duration_us = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        for (statement, at) in (1..=self.count).zip(0..) {
            let (status, sqlstate, message) = outcome(at);
            recorder.append(Body::Outcome(Outcome {
                statement,
                status: status.as_str().to_owned(),
                sqlstate: sqlstate.to_owned(),
                message: message.to_owned(),
                duration_us,
                ..Outcome::default()
            }))?;
        }
        Ok(())
    }
}

fn statement(id: StatementId, setting: &Setting) -> Statement {
    Statement {
        id,
        kind: StatementKind::Startup,
        text: Bytes::from(setting.statement()),
        params: Vec::new(),
        name: Bytes::new(),
        span: 0..0,
    }
}

/// The client has no session yet in which it could be told of a review, so that what needs one is refused.
fn refuse_held(judgement: &mut Judgement, settings: &[Setting]) {
    let Some(held) = judgement.holds.drain(..).next() else {
        return;
    };
    let statement = settings.get(held.event).map(Setting::statement).unwrap_or_default();
    let refusal = Refusal::new(
        End::ParameterRefused,
        "it needs a review, and a login does not wait for one",
        format!("Connect without it, then send: {statement};"),
    );
    judgement.verdicts.push((
        held.event,
        evidence::Verdict {
            stage: held.stage.to_owned(),
            verdict: "refuse".to_owned(),
            reason: refusal.message.clone(),
        },
    ));
    judgement.refusals.push((held.event, refusal));
}

fn no_setting(error: &OptionsError) -> Refusal {
    Refusal::new(
        End::ParameterRefused,
        error.to_string(),
        "Hoop takes settings alone there: -c name=value or --name=value, in ASCII. Others can be set once connected.",
    )
}

#[cfg(test)]
mod tests {
    use futures_util::future::LocalBoxFuture;
    use hoop_actors::recorder::Commit;
    use hoop_actors::stage::Stage;
    use hoop_proto::event::{Interest, Verdict};

    use super::*;

    #[derive(Default)]
    struct Kept(Vec<String>);

    impl Recorder for Kept {
        fn append(&mut self, body: Body) -> Result<(), RecordError> {
            self.0.push(match body {
                Body::Attempt(it) => {
                    let verdicts: Vec<_> = it.verdicts.iter().map(|it| it.verdict.as_str()).collect();
                    let text = String::from_utf8_lossy(&it.text).into_owned();
                    format!("{} {} {text} {verdicts:?}", it.statement, it.kind)
                }
                Body::Outcome(it) => format!("{} {} {}", it.statement, it.status, it.sqlstate),
                other => format!("{other:?}"),
            });
            Ok(())
        }

        fn commit(&mut self) -> Result<Commit, RecordError> {
            Ok(Commit::Done)
        }
    }

    /// Answers by text.
    struct Rule(fn(&str) -> Verdict);

    impl Stage for Rule {
        fn name(&self) -> &'static str {
            "rule"
        }

        fn interest(&self) -> Interest {
            Interest {
                statements: true,
                ..Interest::default()
            }
        }

        fn judge(&mut self, _: Direction, events: &[Event]) -> LocalBoxFuture<'static, Vec<Verdict>> {
            let verdict = |event: &Event| match event {
                Event::Statement(it) => (self.0)(&String::from_utf8_lossy(&it.text)),
                _ => Verdict::Forward,
            };
            let verdicts = events.iter().map(verdict).collect();
            Box::pin(async move { verdicts })
        }
    }

    fn no_boss(text: &str) -> Verdict {
        if text.contains("boss") {
            Verdict::Refuse(Refusal::new(End::Refused, "nobody is boss here", "Ask the boss."))
        } else {
            Verdict::Forward
        }
    }

    async fn judged(rule: Option<fn(&str) -> Verdict>, options: &str) -> (StartupStatements, Kept, Option<Refusal>) {
        let stages = rule.map(|rule| Box::new(Rule(rule)) as Box<dyn Stage>);
        let chain = Chain::start(stages.into_iter().collect());
        let (mut statements, mut kept) = (StartupStatements::default(), Kept::default());
        let parameters = [("options".to_owned(), options.to_owned())];
        let refusal = match statements.judge(&chain, &mut kept, &parameters).await {
            Ok(()) => None,
            Err(NotStarted::Refused(refusal)) => Some(refusal),
            Err(NotStarted::Unrecorded(error)) => panic!("{error}"),
        };
        (statements, kept, refusal)
    }

    #[actix::test]
    async fn what_a_stage_refuses_is_told_as_a_refused_parameter_and_recorded() {
        let (mut statements, mut kept, refusal) = judged(Some(no_boss), "-c geqo=on -c role=boss").await;
        let refusal = refusal.expect("it was let in");
        assert_eq!(refusal.end, End::ParameterRefused);
        assert_eq!(refusal.sqlstate(), "42501");
        assert_eq!(
            refusal.message,
            "the start-up setting \"role\" was refused: nobody is boss here"
        );
        assert_eq!(refusal.hint, "Ask the boss.");
        statements.over(&mut kept, Some(&refusal)).unwrap();
        assert_eq!(
            kept.0,
            [
                "1 startup SET geqo TO 'on' [\"forward\"]",
                "2 startup SET role TO 'boss' [\"refuse\"]",
                "1 skipped ",
                "2 refused 42501",
            ]
        );
    }

    #[actix::test]
    async fn what_needs_a_review_is_refused_with_the_statement_to_send() {
        let hold = |_: &str| Verdict::Hold("r1".into());
        let (_, kept, refusal) = judged(Some(hold), "-c role=boss").await;
        let refusal = refusal.expect("it was let in");
        assert_eq!(refusal.end, End::ParameterRefused);
        assert_eq!(refusal.hint, "Connect without it, then send: SET role TO 'boss';");
        assert_eq!(
            kept.0,
            ["1 startup SET role TO 'boss' [\"hold\", \"refuse\"]", "1 refused 42501"]
        );
    }

    #[actix::test]
    async fn without_stages_they_are_attempts_whose_outcome_the_login_tells() {
        let refused = Refusal {
            code: "22023".into(),
            ..Refusal::new(End::TargetRefusedLogin, "no such role", "")
        };
        let lost = Refusal::new(End::LinkLost, "", "");
        for (failed, outcome) in [
            (None, "1 ok "),
            (Some(&refused), "1 error 22023"),
            (Some(&lost), "1 unknown "),
        ] {
            let (mut statements, mut kept, refusal) = judged(None, "--role=boss").await;
            assert!(refusal.is_none(), "{refusal:?}");
            assert_eq!(statements.count(), 1);
            statements.over(&mut kept, failed).unwrap();
            statements.over(&mut kept, failed).unwrap();
            assert_eq!(kept.0, ["1 startup SET role TO 'boss' []", outcome], "each once");
        }
    }

    #[actix::test]
    async fn a_switch_that_is_no_setting_is_refused() {
        let (mut statements, mut kept, refusal) = judged(None, "-F").await;
        let refusal = refusal.expect("it was let in");
        assert_eq!(refusal.end, End::ParameterRefused);
        assert!(
            refusal.message.contains("-F") && !refusal.hint.is_empty(),
            "{refusal:?}"
        );
        statements.over(&mut kept, Some(&refusal)).unwrap();
        assert_eq!(kept.0, [""; 0]);
    }

    #[actix::test]
    async fn a_stage_that_fails_ends_the_session() {
        let (.., refusal) = judged(Some(|_| panic!("on purpose")), "-c role=boss").await;
        assert_eq!(refusal.map(|refusal| refusal.end), Some(End::StageFailed));
    }
}
