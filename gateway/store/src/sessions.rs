//! The list of sessions, as the evidence keeps it. Reads only: what a session did is written by `hoop-evidence`.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::change::{Change, Params, Witness, get};
use crate::users::PAGE_MAX;
use crate::{Store, StoreError, changes};

/// One session's line in a list, as the API shows it too.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct SessionRow {
    pub id: Uuid,
    pub protocol: String,
    pub user: String,
    pub user_id: Option<Uuid>,
    pub email: String,
    pub connection: String,
    pub connection_id: Option<Uuid>,
    pub agent: String,
    pub client_address: String,
    pub client_tls: bool,
    /// Its id, which is no secret.
    pub credential: String,
    pub database: String,
    pub application: String,
    pub audit_mode: String,
    pub replica: Uuid,
    pub started_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    /// Why it ended: a stable name.
    pub end_code: Option<String>,
    pub end_message: String,
    /// The end is what another replica supposed; the replayed journal may say otherwise.
    pub end_provisional: bool,
    pub statements: i64,
    pub client_bytes: i64,
    pub target_bytes: i64,
}

/// Which sessions, newest first.
#[derive(Debug, Clone, Default)]
pub struct SessionFilter {
    pub user: Option<String>,
    pub user_id: Option<Uuid>,
    pub connection: Option<String>,
    pub live: Option<bool>,
    /// Only what comes after this session in the list: the last one of the page before.
    pub after: Option<(DateTime<Utc>, Uuid)>,
}

const SESSION_COLUMNS: &str = "id, protocol, user_name, user_id, email, connection, connection_id, agent, \
     client_address, client_tls, credential, database, application, audit_mode, replica, started_at, ended_at, \
     end_code, end_message, end_provisional, statements, client_bytes, target_bytes";

impl SessionRow {
    fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: get(row, "id")?,
            protocol: get(row, "protocol")?,
            user: get(row, "user_name")?,
            user_id: get(row, "user_id")?,
            email: get(row, "email")?,
            connection: get(row, "connection")?,
            connection_id: get(row, "connection_id")?,
            agent: get(row, "agent")?,
            client_address: get(row, "client_address")?,
            client_tls: get(row, "client_tls")?,
            credential: get(row, "credential")?,
            database: get(row, "database")?,
            application: get(row, "application")?,
            audit_mode: get(row, "audit_mode")?,
            replica: get(row, "replica")?,
            started_at: get(row, "started_at")?,
            ended_at: get(row, "ended_at")?,
            end_code: get(row, "end_code")?,
            end_message: get(row, "end_message")?,
            end_provisional: get(row, "end_provisional")?,
            statements: get(row, "statements")?,
            client_bytes: get(row, "client_bytes")?,
            target_bytes: get(row, "target_bytes")?,
        })
    }
}

impl Store {
    /// At most `limit` (capped at `PAGE_MAX`) and one more, which tells that there is a next page.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn list_sessions(&self, filter: &SessionFilter, limit: i64) -> Result<Vec<SessionRow>, StoreError> {
        let limit = limit.clamp(1, PAGE_MAX).saturating_add(1);
        let (after_at, after_id) = filter.after.unzip();
        let sql = format!(
            "select {SESSION_COLUMNS} from sessions where ($1::text is null or user_name = $1) \
             and ($2::uuid is null or user_id = $2) and ($3::text is null or connection = $3) \
             and ($4::bool is null or (ended_at is null) = $4) \
             and ($5::timestamptz is null or (started_at, id) < ($5, $6)) order by started_at desc, id desc limit $7"
        );
        let params: Params<'_> = &[
            (&filter.user, Type::TEXT),
            (&filter.user_id, Type::UUID),
            (&filter.connection, Type::TEXT),
            (&filter.live, Type::BOOL),
            (&after_at, Type::TIMESTAMPTZ),
            (&after_id, Type::UUID),
            (&limit, Type::INT8),
        ];
        self.read("listing sessions", &sql, params)
            .await?
            .iter()
            .map(SessionRow::from_row)
            .collect()
    }

    /// # Errors
    /// Where the store is away.
    pub async fn find_session(&self, id: Uuid) -> Result<Option<SessionRow>, StoreError> {
        let sql = format!("select {SESSION_COLUMNS} from sessions where id = $1");
        let row = self.read_opt("finding a session", &sql, &[(&id, Type::UUID)]).await?;
        row.as_ref().map(SessionRow::from_row).transpose()
    }

    /// Tells every replica to end this session, and records who wanted it.
    ///
    /// # Errors
    /// `Unrecorded`, or the store is away.
    pub async fn announce_kill(&self, session: &SessionRow, witness: &dyn Witness) -> Result<(), StoreError> {
        let id = session.id.to_string();
        let mut client = self.client().await?;
        let mut change = Change::begin(&mut client, "killing a session").await?;
        change.announce(changes::SESSION_KILLED, &id);
        let before = json!({"user": session.user, "connection": session.connection, "started_at": session.started_at});
        change
            .commit(
                witness,
                "session.kill",
                json!({"subject": id, "before": before, "after": null}),
            )
            .await
    }
}
