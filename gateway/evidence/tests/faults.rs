//! A process that is killed at a named point inside the writer loses nothing and doubles nothing. Runs itself as the
//! child that is killed: `cargo nextest run -p hoop-evidence --features faults`.
#![cfg(feature = "faults")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

mod home;

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

use hoop_evidence::{AuditMode, read};
use hoop_store::DatabaseUrl;
use hoop_store::database_url::Host;
use uuid::Uuid;

use home::{Home, ended, expected_texts, statements, texts, verify};

const CHILD: &str = "HOOP_TEST_CHILD_DIR";

/// What a child tells its parent: where it lives.
fn address(url: &DatabaseUrl) -> String {
    let (host, port) = &url.hosts()[0];
    let host = match host {
        Host::Unix(folder) => folder.display().to_string(),
        Host::Tcp(host) => host.clone(),
    };
    format!(
        "postgres:///{}?host={host}&port={port}&user={}",
        url.database().unwrap(),
        url.user().unwrap()
    )
}

#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let dir = PathBuf::from(dir);
    let url = DatabaseUrl::parse(&std::fs::read_to_string(dir.join("url")).unwrap()).unwrap();
    let master: [u8; 32] = std::fs::read(dir.join("master")).unwrap().try_into().unwrap();
    let home = Home::at(url, dir.clone(), master);
    home.life(async |life| {
        life.replayed().await;
        let (session, mut recorder) = life.begin(AuditMode::Journalled);
        std::fs::write(dir.join(format!("session-{session}")), "").unwrap();
        for part in 0..5 {
            statements(&mut recorder, part * 4 + 1, 4).await;
            life.flush().await;
        }
        recorder.end(ended()).unwrap();
        life.flush().await;
    });
}

fn killed_at(point: &str) {
    let home = Home::new();
    std::fs::write(home.dir.join("url"), address(&home.url)).unwrap();
    std::fs::write(home.dir.join("master"), home.master).unwrap();
    for count in 1..=6 {
        let killed = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, &home.dir)
            .env("HOOP_FAULT", format!("{point}:{count}"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&killed.stderr);
        assert_eq!(killed.status.signal(), Some(6), "{point}:{count} was not hit: {said}");
        assert!(said.contains(&format!("fault point {point} reached")), "{said}");
    }
    home.life(async |life| {
        life.replayed().await;
        let mut sessions = 0;
        for entry in std::fs::read_dir(&home.dir).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let Some(session) = name.strip_prefix("session-") else {
                continue;
            };
            let session: Uuid = session.parse().unwrap();
            let texts = texts(&read::events(&life.store, session).await.unwrap());
            assert!(
                texts.len() >= 4 && texts == expected_texts(texts.len() as u64),
                "{texts:?}"
            );
            let row = life.store.find_session(session).await.unwrap().unwrap();
            assert_eq!(row.end_code.as_deref(), Some("replica_lost"));
            sessions += 1;
        }
        assert!(sessions > 0);
        let report = verify(&life.store).await;
        assert!(report.ok() && report.not_replayed().is_empty(), "{report}");
    });
}

#[test]
fn killed_inside_a_chunk() {
    killed_at("inside_chunk");
}

#[test]
fn killed_inside_a_commit() {
    killed_at("inside_commit");
}
