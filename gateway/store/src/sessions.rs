//! The list of sessions, as the evidence keeps it. Reads only: what a session did is written by `hoop-evidence`.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::change::{Change, Witness, get};
use crate::list::{Conditions, Listed, Listing, SortKey, Window};
use crate::{Store, StoreError, changes};

/// One session's line in a list, as the API shows it too.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct SessionRow {
    pub id: Uuid,
    pub protocol: String,
    pub user: String,
    #[schema(required)]
    pub user_id: Option<Uuid>,
    pub email: String,
    pub connection: String,
    #[schema(required)]
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
    #[schema(required)]
    pub ended_at: Option<DateTime<Utc>>,
    /// Why it ended: a stable name.
    #[schema(required)]
    pub end_code: Option<String>,
    pub end_message: String,
    /// The end is what another replica supposed; the replayed journal may say otherwise.
    pub end_provisional: bool,
    pub statements: i64,
    pub client_bytes: i64,
    pub target_bytes: i64,
}

/// Which sessions.
#[derive(Debug, Clone, Default)]
pub struct SessionFilter {
    pub user: Option<String>,
    pub user_id: Option<Uuid>,
    pub connection: Option<String>,
    pub agent: Option<String>,
    pub protocol: Option<String>,
    /// Why it ended: a stable name.
    pub end: Option<String>,
    /// Started then or later.
    pub from: Option<DateTime<Utc>>,
    /// Started before.
    pub to: Option<DateTime<Utc>>,
    /// It runs, or it is over.
    pub live: Option<bool>,
}

const SESSION_COLUMNS: &str = "id, protocol, user_name, user_id, email, connection, connection_id, agent, \
     client_address, client_tls, credential, database, application, audit_mode, replica, started_at, ended_at, \
     end_code, end_message, end_provisional, statements, client_bytes, target_bytes";

/// How sessions can be listed.
pub static SESSIONS: Listing = Listing {
    name: "sessions",
    columns: &[SESSION_COLUMNS],
    from: "sessions s",
    whole: "true",
    id: SortKey::uuid("id", "s.id"),
    sorts: &[
        SortKey::time("started_at", "s.started_at"),
        SortKey::text("user", "s.user_name"),
        SortKey::text("connection", "s.connection"),
    ],
    default_sort: "-started_at",
};

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
    /// A page of the sessions.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn list_sessions(
        &self,
        filter: &SessionFilter,
        window: &Window,
    ) -> Result<Listed<SessionRow>, StoreError> {
        let conditions = Conditions::default()
            .when(filter.user.as_ref(), Type::TEXT, "s.user_name = $?")
            .when(filter.user_id.as_ref(), Type::UUID, "s.user_id = $?")
            .when(filter.connection.as_ref(), Type::TEXT, "s.connection = $?")
            .when(filter.agent.as_ref(), Type::TEXT, "s.agent = $?")
            .when(filter.protocol.as_ref(), Type::TEXT, "s.protocol = $?")
            .when(filter.end.as_ref(), Type::TEXT, "s.end_code = $?")
            .when(filter.from.as_ref(), Type::TIMESTAMPTZ, "s.started_at >= $?")
            .when(filter.to.as_ref(), Type::TIMESTAMPTZ, "s.started_at < $?")
            .either(filter.live, "s.ended_at is null", "s.ended_at is not null");
        self.list("listing sessions", &SESSIONS, conditions, window, SessionRow::from_row)
            .await
    }

    /// # Errors
    /// Where the store is away.
    pub async fn find_session(&self, id: Uuid) -> Result<Option<SessionRow>, StoreError> {
        let sql = format!("select {SESSION_COLUMNS} from sessions where id = $1");
        let row = self.read_opt("finding a session", &sql, &[(&id, Type::UUID)]).await?;
        row.as_ref().map(SessionRow::from_row).transpose()
    }

    /// Those of these sessions that there are, in no order.
    ///
    /// # Errors
    /// Where the store is away.
    pub async fn sessions_by_id(&self, ids: &[Uuid]) -> Result<Vec<SessionRow>, StoreError> {
        let sql = format!("select {SESSION_COLUMNS} from sessions where id = any($1)");
        let rows = self.read("finding sessions", &sql, &[(&ids, Type::UUID_ARRAY)]).await?;
        rows.iter().map(SessionRow::from_row).collect()
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
