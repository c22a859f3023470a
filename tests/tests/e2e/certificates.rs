//! Certificates are renewed while everything runs: nobody is disconnected, nobody meets an expired one.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use hoop_tests::clients::Login;
use hoop_tests::cluster::STORE;
use hoop_tests::hoop::{CONNECTION, Gateway, Hoop, Options};
use hoop_tests::process::eventually;
use hoop_tests::tls::Tls;

/// Life of a certificate here; it is renewed after 8 s.
const LIFE: Duration = Duration::from_secs(12);
/// The gateway looks every second whether a certificate's file has changed.
const REREAD_DEADLINE: Duration = Duration::from_secs(10);

/// A second replica that agents cannot reach, so that its sessions go over `Peer`; its API speaks TLS.
async fn second_replica(hoop: &Hoop) -> Result<Gateway> {
    let master = hoop.scratch.path().join("master.key").display().to_string();
    let life = LIFE.as_secs().to_string();
    let environment = [
        ("HOOP_LISTEN_API", "127.0.0.1:0"),
        ("HOOP_LISTEN_LINK", "127.0.0.1:0"),
        ("HOOP_LISTEN_POSTGRES", "127.0.0.1:0"),
        ("HOOP_PUBLIC_HOST", "localhost"),
        ("HOOP_MASTER_KEY_FILE", &master),
        ("HOOP_CERTIFICATE_LIFE_S", &life),
        ("DATABASE_URL", &hoop.target.url(STORE)),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    Gateway::start(&hoop.scratch.path().join("second"), environment.to_vec(), &[], "KILL").await
}

/// What a port of this gateway shows, verified.
fn shown(address: &str, ca_pem: &str, alpn: &[u8]) -> Result<Vec<u8>> {
    Ok(Tls::connect(address, ca_pem, alpn, b"")?.certificate())
}

#[tokio::test]
async fn sessions_outlive_every_certificate_and_new_ones_meet_its_successor() -> Result<()> {
    let mut hoop = Hoop::with(Options {
        gateway_env: vec![("HOOP_CERTIFICATE_LIFE_S".into(), LIFE.as_secs().to_string())],
        ..Options::default()
    })
    .await?;
    let second = second_replica(&hoop).await?;
    let ca_pem = std::fs::read_to_string(&hoop.ca_file)?;
    let ready = hoop.gateway()?.ready.clone();
    let api = second.ready.api.trim_start_matches("https://").to_owned();
    let ports: [(&str, &str, &[u8]); 3] = [
        ("agents", &ready.link, b"h2"),
        ("PostgreSQL", &ready.postgres, b"postgresql"),
        ("API", &api, b"http/1.1"),
    ];
    let first: Vec<_> = ports
        .iter()
        .map(|(_, address, alpn)| shown(address, &ca_pem, alpn))
        .collect::<Result<_>>()?;
    let me = hoop.person().await?;
    let running = me.connect().await?;
    running.simple_query("select 1").await?;
    // When all that was shown at first has expired …
    tokio::time::sleep(LIFE + Duration::from_secs(2)).await;
    for ((port, address, alpn), first) in ports.iter().zip(&first) {
        ensure!(shown(address, &ca_pem, alpn)? != *first, "{port}: the same certificate");
    }
    // … who was there still is, and people, agents and replicas still find in.
    running.simple_query("select 2").await?;
    ensure!(me.query("select 3").await? == "3", "verify-full");
    hoop.agent_mut()?.process.kill_hard()?;
    hoop.agent_mut()?.start_again()?;
    hoop.wait_for_agent().await?;
    let over_peer = Login {
        port: second.ready.postgres_port(),
        ..hoop.login(&hoop.credential(CONNECTION).await?)?
    };
    ensure!(over_peer.query("select 4").await? == "4");
    Ok(())
}

/// A self-signed pair for `localhost`, written where the gateway reads it.
fn write_pair(certificate: &Path, key: &Path) -> Result<String> {
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    std::fs::write(certificate, pair.cert.pem())?;
    std::fs::write(key, pair.signing_key.serialize_pem())?;
    Ok(pair.cert.pem())
}

#[tokio::test]
async fn a_certificate_from_files_is_read_again_when_it_changes_and_a_broken_one_is_not_taken() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let before = write_pair(&certificate, &key)?;
    let hoop = Hoop::with(Options {
        gateway_env: vec![
            ("HOOP_TLS_CERT_FILE".into(), certificate.display().to_string()),
            ("HOOP_TLS_KEY_FILE".into(), key.display().to_string()),
        ],
        ..Options::default()
    })
    .await?;
    let me = hoop.person().await?;
    let trusting = |pem: &str, name: &str| -> Result<Login> {
        let ca_file = hoop.scratch.path().join(name);
        std::fs::write(&ca_file, pem)?;
        Ok(Login { ca_file, ..me.clone() })
    };
    // psql binds SCRAM to the certificate that it sees, by itself.
    let old = trusting(&before, "old.pem")?;
    let running = old.connect().await?;
    ensure!(old.query("select 1").await? == "1");
    // Half of a change: a certificate that does not fit the key.
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    std::fs::write(&certificate, pair.cert.pem())?;
    eventually(
        "the gateway says that the files do not fit",
        REREAD_DEADLINE,
        async || {
            let log = hoop.gateway()?.process.log();
            Ok(log.contains("tls_cert_file and tls_key_file do not fit").then_some(()))
        },
    )
    .await?;
    ensure!(old.query("select 2").await? == "2", "the present one stays");
    std::fs::write(&key, pair.signing_key.serialize_pem())?;
    let new = trusting(&pair.cert.pem(), "new.pem")?;
    eventually("the new certificate is shown", REREAD_DEADLINE, async || {
        Ok((new.query("select 3").await? == "3").then_some(()))
    })
    .await?;
    running.simple_query("select 4").await?;
    Ok(())
}
