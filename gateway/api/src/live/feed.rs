//! The feed: asks the store what is new, at a bounded rate and only while somebody listens.
//!
//! What one replica sees is what every replica sees: the writers' logs, the change log, the table of links.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hoop_store::changes::{CONNECTION_CHANGED, Change, READ_BATCH, RULES_CHANGED, USER_CHANGED};
use hoop_store::feed::{SESSION_LOG_BATCH, WriterHead};
use hoop_store::sessions::SessionRow;
use hoop_store::{Store, StoreError};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Audience, Happened, Live, Running};
use crate::control::Control;
use crate::problem::Problem;
use crate::sessions::Session;

/// How often the store is asked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// A feed without listeners goes on so long, for one that comes back.
const LINGER: Duration = Duration::from_secs(60);

pub(super) struct Feed {
    store: Store,
    control: Arc<dyn Control>,
    /// How far each writer's log was read.
    read: HashMap<Uuid, i64>,
    last_change: i64,
    online: BTreeSet<String>,
}

impl Feed {
    /// From now on.
    pub(super) async fn begin(store: Store, control: Arc<dyn Control>) -> Result<Self, Problem> {
        let heads = store.writer_heads(&[]).await?;
        Ok(Self {
            read: heads.iter().map(|head| (head.writer, head.seq)).collect(),
            last_change: store.latest_change().await?,
            online: control.agents_online().await?.into_iter().collect(),
            store,
            control,
        })
    }

    /// Until nobody has listened for `LINGER`, or the server stops.
    pub(super) async fn run(mut self, running: Running) {
        let live = &running.live;
        let mut closing = live.closing.subscribe();
        let mut listened = Instant::now();
        let mut away = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                _ = closing.wait_for(|closing| *closing) => break,
            }
            match self.poll(live).await {
                Ok(()) => away = false,
                Err(error) if !away => {
                    away = true;
                    tracing::warn!(%error, "live updates wait for the store");
                }
                Err(_) => {}
            }
            if live.streams() > 0 {
                listened = Instant::now();
            } else if listened.elapsed() > LINGER && live.ends_unheard() {
                break;
            }
        }
    }

    async fn poll(&mut self, live: &Live) -> Result<(), StoreError> {
        while self.sessions(live).await? {}
        while self.changes(live).await? {}
        self.agents(live).await;
        Ok(())
    }

    /// Answers whether there is more.
    async fn sessions(&mut self, live: &Live) -> Result<bool, StoreError> {
        let known: Vec<Uuid> = self.read.keys().copied().collect();
        let mut more = false;
        for head in self.store.writer_heads(&known).await? {
            more |= self.sessions_of(head, live).await?;
        }
        Ok(more)
    }

    async fn sessions_of(&mut self, head: WriterHead, live: &Live) -> Result<bool, StoreError> {
        let after = self.read.get(&head.writer).copied().unwrap_or_default();
        let mut up_to = head.seq;
        if head.seq > after {
            let marks = self.store.session_marks(head.writer, after, head.seq).await?;
            let ids: Vec<Uuid> = marks.iter().map(|mark| mark.session).collect();
            let rows: HashMap<Uuid, SessionRow> = match ids.as_slice() {
                [] => HashMap::new(),
                ids => (self.store.sessions_by_id(ids).await?.into_iter())
                    .map(|row| (row.id, row))
                    .collect(),
            };
            live.publish(marks.iter().filter_map(|mark| {
                let name = if mark.started {
                    "session.started"
                } else {
                    "session.ended"
                };
                rows.get(&mark.session).map(|row| of_session(name, row.clone()))
            }));
            if i64::try_from(marks.len()).unwrap_or(i64::MAX) >= SESSION_LOG_BATCH {
                up_to = marks.last().map_or(head.seq, |mark| mark.seq);
            }
        }
        let more = up_to < head.seq;
        if head.stopped && !more {
            self.read.remove(&head.writer);
        } else {
            self.read.insert(head.writer, up_to);
        }
        Ok(more)
    }

    /// Answers whether there is more.
    async fn changes(&mut self, live: &Live) -> Result<bool, StoreError> {
        let changes = self.store.changes_since(self.last_change).await?;
        live.publish(changes.iter().flat_map(of_change));
        if let Some(last) = changes.last() {
            self.last_change = last.seq;
        }
        if changes
            .iter()
            .any(|c| c.kind == RULES_CHANGED || c.kind == CONNECTION_CHANGED)
        {
            live.publish([access_changed(None)]);
        }
        Ok(i64::try_from(changes.len()).unwrap_or(i64::MAX) >= READ_BATCH)
    }

    async fn agents(&mut self, live: &Live) {
        // asked again at the next poll
        let Ok(online) = self.control.agents_online().await else {
            return;
        };
        let online: BTreeSet<String> = online.into_iter().collect();
        let came = online.difference(&self.online).map(|name| ("agent.online", name));
        let left = self.online.difference(&online).map(|name| ("agent.offline", name));
        live.publish(came.chain(left).map(|(event, name)| Happened {
            name: event,
            data: json!({ "name": name }).to_string(),
            audience: Audience::Readers,
            changes_person: None,
        }));
        self.online = online;
    }
}

fn of_session(name: &'static str, row: SessionRow) -> Happened {
    let audience = row.user_id.map_or(Audience::Readers, Audience::Owner);
    Happened {
        name,
        data: serde_json::to_string(&Session::from(row)).unwrap_or_default(),
        audience,
        changes_person: None,
    }
}

fn access_changed(person: Option<Uuid>) -> Happened {
    Happened {
        name: "access.changed",
        data: "{}".into(),
        audience: Audience::Member(person),
        changes_person: None,
    }
}

fn of_change(change: &Change) -> Vec<Happened> {
    let person = (change.kind == USER_CHANGED)
        .then(|| Uuid::parse_str(&change.subject).ok())
        .flatten();
    let mut happened = vec![Happened {
        name: "resource.changed",
        data: json!({"kind": change.kind, "subject": change.subject, "at": change.at}).to_string(),
        audience: Audience::Readers,
        changes_person: person,
    }];
    happened.extend(person.map(|person| access_changed(Some(person))));
    happened
}
