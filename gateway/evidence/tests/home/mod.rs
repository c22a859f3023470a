//! A place for evidence to live in: a database, a journal folder, and lives of a gateway that come and go.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, System};
use bytes::Bytes;
use hoop_actors::recorder::{Commit, Recorder};
use hoop_evidence::verify::{self, Report, Source};
use hoop_evidence::writer::{Finish, Flush};
use hoop_evidence::{ArbiterJournal, AuditMode, AuditSetup, AuditWriter, Journal, JournalConfig, SessionRecorder};
use hoop_proto::evidence::event::Body;
use hoop_proto::evidence::{Attempt, Ended, Event, Outcome, Output, Started};
use hoop_store::database_url::Host;
use hoop_store::seal::MasterKey;
use hoop_store::testing;
use hoop_store::{DatabaseUrl, Store, StoreConfig};
use uuid::Uuid;

pub struct Home {
    pub url: DatabaseUrl,
    pub dir: PathBuf,
    pub folder: Option<Arc<tempfile::TempDir>>,
    pub master: [u8; 32],
    pub budget_bytes: u64,
    pub segment_bytes: u64,
}

/// One incarnation of a gateway. When it is dropped with its system, it is as dead as after `kill -9`.
pub struct Life {
    pub store: Store,
    pub journal: Journal,
    pub arbiter: ArbiterJournal,
    pub writer: Addr<AuditWriter>,
    pub setup: AuditSetup,
    pub root: [u8; 32],
}

impl Home {
    pub fn new() -> Self {
        let url = System::new().block_on(testing::fresh_database()).expect("PostgreSQL");
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let dir = folder.path().to_owned();
        Self {
            folder: Some(folder),
            ..Self::at(url, dir, MasterKey::generate().unwrap())
        }
    }

    pub fn at(url: DatabaseUrl, dir: PathBuf, master: [u8; 32]) -> Self {
        Self {
            url,
            dir,
            folder: None,
            master,
            budget_bytes: 1 << 30,
            segment_bytes: 1 << 20,
        }
    }

    pub fn journal_dir(&self) -> PathBuf {
        self.dir.join("journal")
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.dir.join("checkpoints.ndjson")
    }

    pub fn master(&self) -> MasterKey {
        MasterKey::new(&self.master).unwrap()
    }

    pub async fn store(&self) -> Store {
        let config = StoreConfig {
            url: self.url.clone(),
            pool_size: 4,
        };
        Store::open(&config, self.master()).await.unwrap()
    }

    /// Runs `work` in a life of its own, which ends abruptly behind it.
    pub fn life<T>(&self, work: impl AsyncFnOnce(&Life) -> T) -> T {
        let system = System::new();
        let out = system.block_on(async {
            let store = self.store().await;
            let config = JournalConfig {
                budget_bytes: self.budget_bytes,
                segment_bytes: self.segment_bytes,
                reserve_wait_ms: 500,
                ..JournalConfig::new(self.journal_dir(), 1)
            };
            let journal = Journal::open(config, self.master()).unwrap();
            let root = store.installation().audit_root.clone();
            let setup = AuditSetup::new(
                store.clone(),
                journal.clone(),
                &root,
                Uuid::now_v7(),
                self.checkpoints(),
            )
            .unwrap();
            let life = Life {
                root: store.installation().audit_root_public(),
                arbiter: journal.arbiter(0),
                writer: AuditWriter::new(setup.clone()).start(),
                store,
                journal,
                setup,
            };
            work(&life).await
        });
        drop(system);
        out
    }

    /// A look at the database from outside of any life.
    pub fn look<T>(&self, work: impl AsyncFnOnce(&Store) -> T) -> T {
        System::new().block_on(async { work(&self.store().await).await })
    }

    pub fn verify(&self) -> Report {
        self.look(async |store| verify(store).await)
    }

    pub fn sql(&self, sql: &str) {
        self.look(async |store| store.client().await.unwrap().batch_execute(sql).await.unwrap());
    }
}

pub async fn verify(store: &Store) -> Report {
    let root = store.installation().audit_root_public();
    verify::verify(Source::Database(store.clone()), &root, None)
        .await
        .unwrap()
}

impl Life {
    pub fn begin(&self, mode: AuditMode) -> (Uuid, SessionRecorder) {
        let session = Uuid::now_v7();
        let started = Started {
            session: Bytes::copy_from_slice(session.as_bytes()),
            user: "ada".to_owned(),
            email: "ada@example.org".to_owned(),
            groups: vec!["dba".to_owned(), "on-call".to_owned()],
            connection: "orders".to_owned(),
            protocol: "postgres".to_owned(),
            client_address: "192.0.2.7:5000".to_owned(),
            ..Started::default()
        };
        (session, self.arbiter.begin(started, mode).unwrap())
    }

    pub async fn flush(&self) {
        self.arbiter.flush().unwrap();
        self.writer.send(Flush).await.unwrap().unwrap();
    }

    pub async fn finish(&self) {
        self.arbiter.flush().unwrap();
        self.writer.send(Finish).await.unwrap().unwrap();
    }

    /// Waits until what earlier lives left is carried over.
    pub async fn replayed(&self) {
        until(|| !self.setup.status().replaying).await;
    }
}

pub async fn until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "it did not come to hold");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn attempt(statement: u64, text: &str) -> Body {
    Body::Attempt(Attempt {
        statement,
        text: Bytes::copy_from_slice(text.as_bytes()),
        ..Attempt::default()
    })
}

pub fn output(statement: u64, data: &[u8]) -> Body {
    Body::Output(Output {
        statement,
        data: Bytes::copy_from_slice(data),
    })
}

pub fn outcome(statement: u64) -> Body {
    Body::Outcome(Outcome {
        statement,
        status: "ok".to_owned(),
        tag: "SELECT 1".to_owned(),
        ..Outcome::default()
    })
}

pub fn ended() -> Ended {
    Ended {
        code: "client_closed".to_owned(),
        statements: 2,
        client_bytes: 10,
        target_bytes: 20,
        ..Ended::default()
    }
}

pub async fn commit(recorder: &mut SessionRecorder) {
    match recorder.commit().unwrap() {
        Commit::Done => {}
        Commit::Wait(safe) => safe.await.unwrap(),
    }
}

/// `count` statements with their results, each attempt committed.
pub async fn statements(recorder: &mut SessionRecorder, from: u64, count: u64) {
    for statement in from..from + count {
        recorder
            .append(attempt(statement, &format!("select secret_{statement}")))
            .unwrap();
        commit(recorder).await;
        recorder
            .append(output(statement, format!("result_{statement}").as_bytes()))
            .unwrap();
        recorder.append(outcome(statement)).unwrap();
    }
}

/// The texts of a session's attempts, after checking that its events are numbered without gaps.
pub fn texts(events: &[Event]) -> Vec<String> {
    let numbers: Vec<_> = events.iter().map(|event| event.seq).collect();
    assert_eq!(
        numbers,
        (1..=events.len() as u64).collect::<Vec<_>>(),
        "numbered without gap or double"
    );
    let text = |event: &Event| match &event.body {
        Some(Body::Attempt(attempt)) => Some(String::from_utf8(attempt.text.to_vec()).unwrap()),
        _ => None,
    };
    events.iter().filter_map(text).collect()
}

pub fn expected_texts(count: u64) -> Vec<String> {
    (1..=count)
        .map(|statement| format!("select secret_{statement}"))
        .collect()
}

pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    files
}

impl Home {
    /// The same installation on another machine, with a folder of its own.
    pub fn twin(&self) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let dir = folder.path().to_owned();
        Self {
            folder: Some(folder),
            ..Self::at(self.url.clone(), dir, self.master)
        }
    }

    /// Runs `sql` from another database of the same server; `$db` stands for this one.
    fn admin(&self, sql: &str) {
        let name = self.url.database().expect("a database").to_owned();
        let mut config = tokio_postgres::Config::new();
        let (host, port) = &self.url.hosts()[0];
        match host {
            Host::Unix(folder) => config.host_path(folder),
            Host::Tcp(host) => config.host(host),
        };
        config
            .port(*port)
            .user(self.url.user().expect("a user"))
            .dbname("postgres");
        let sql = sql.replace("$db", &name);
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
                tokio::select! {
                    done = client.batch_execute(&sql) => done.unwrap(),
                    _ = connection => {}
                }
            });
        };
        std::thread::spawn(work).join().unwrap();
    }

    /// Ends every connection to the database.
    pub fn cut_connections(&self) {
        self.admin("select pg_terminate_backend(pid) from pg_stat_activity where datname = '$db'");
    }

    /// The database takes no more connections.
    pub fn lock_out(&self) {
        self.admin("alter database $db with allow_connections false");
        self.cut_connections();
    }

    pub fn let_in(&self) {
        self.admin("alter database $db with allow_connections true");
    }
}
