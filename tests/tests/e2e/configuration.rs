//! The gateway's configuration: defaults, then the file, then the environment; what is wrong is named with its remedy.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use hoop_tests::binaries;
use hoop_tests::process::{Said, run};

const DEADLINE: Duration = Duration::from_secs(60);

/// Starts a gateway that will not start: everything else is good, so that it is the configuration that it stumbles over.
async fn refused(folder: &Path, file: &str, environment: &[(&str, &str)]) -> Result<Said> {
    let path = folder.join("gateway.toml");
    std::fs::write(&path, file)?;
    let mut command = Command::new(binaries::gateway()?);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("HOOP_") || text.starts_with("DATABASE_") {
            command.env_remove(&name);
        }
    }
    command.args(["serve", "-c"]).arg(&path);
    command
        .env("HOOP_DATA_DIR", folder.join("data"))
        .envs(environment.iter().copied());
    let said = run(command, DEADLINE).await?;
    ensure!(said.code == Some(2), "{:?}\n{}", said.code, said.err);
    ensure!(!folder.join("data").exists(), "it began to work before all was checked");
    Ok(said)
}

#[tokio::test]
async fn the_file_wins_over_defaults_and_the_environment_over_the_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let by_default = refused(folder, "", &[]).await?;
    ensure!(by_default.err.contains("no store"), "{}", by_default.err);
    let file = "store = \"embedded\"\nlisten_api = \"from the file\"\n";
    let by_file = refused(folder, file, &[]).await?;
    ensure!(
        by_file.err.contains("listen_api = \"from the file\""),
        "{}",
        by_file.err
    );
    let by_environment = refused(folder, file, &[("HOOP_LISTEN_API", "from the environment")]).await?;
    ensure!(
        by_environment.err.contains("listen_api = \"from the environment\""),
        "{}",
        by_environment.err
    );
    ensure!(!by_environment.err.contains("from the file"), "{}", by_environment.err);
    Ok(())
}

#[tokio::test]
async fn every_mistake_is_named_with_its_key_its_value_and_what_would_be_right() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let cases: [(&str, &str, [&str; 3]); 11] = [
        ("listen_link", "\"8010\"", ["listen_link", "8010", "[::]:8009"]),
        ("arbiters", "9", ["arbiters", "9", "at most 8"]),
        ("journal_budget_bytes", "5", ["journal_budget_bytes", "5", "67108864"]),
        (
            "public_url",
            "\"hoop.example/\"",
            ["public_url", "hoop.example/", "https://"],
        ),
        ("api_tls", "\"maybe\"", ["api_tls", "maybe", "\"on\" or \"off\""]),
        ("database_pool", "1", ["database_pool", "1", "between 2 and 200"]),
        ("log_format", "\"xml\"", ["log_format", "xml", "\"json\""]),
        ("certificate_life_s", "1", ["certificate_life_s", "1", "397 days"]),
        (
            "tls_cert_file",
            "\"/cert\"",
            ["tls_cert_file", "/cert", "both files or none"],
        ),
        (
            "trusted_proxies",
            "[\"10.0.0.0/8\", \"proxy\"]",
            ["trusted_proxies", "proxy", "10.0.0.0/8"],
        ),
        ("max_sessions", "\"many\"", ["max_sessions", "many", "usize"]),
    ];
    for (key, value, words) in cases {
        let file = format!("store = \"embedded\"\n{key} = {value}\n");
        let said = refused(folder.path(), &file, &[]).await?;
        for word in words {
            ensure!(said.err.contains(word), "{key} = {value}: no {word:?} in {}", said.err);
        }
    }
    let unknown = refused(folder.path(), "store = \"embedded\"\nlisten_apl = \"[::]:8009\"\n", &[]).await?;
    ensure!(unknown.err.contains("listen_apl"), "{}", unknown.err);
    Ok(())
}
