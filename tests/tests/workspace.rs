//! What may depend on what: `proto ← actors ← {gateway and its crates, agent} ← tests`, checked with `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Each crate of the workspace and which others it may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("hoop-proto", &[]),
    ("hoop-actors", &["hoop-proto"]),
    ("hoop-access", &[]),
    ("hoop-store", &["hoop-proto", "hoop-actors", "hoop-access"]),
    ("hoop-evidence", &["hoop-proto", "hoop-actors", "hoop-store"]),
    ("hoop-auth", &[]),
    ("hoop-sql", &[]),
    (
        "hoop-api",
        &["hoop-proto", "hoop-actors", "hoop-access", "hoop-store", "hoop-auth"],
    ),
    (
        "hoop-gateway",
        &[
            "hoop-proto",
            "hoop-actors",
            "hoop-access",
            "hoop-store",
            "hoop-evidence",
            "hoop-auth",
            "hoop-api",
        ],
    ),
    ("hoop-agent", &["hoop-proto", "hoop-actors"]),
    ("hoop-client", &[]),
    ("hoop-tests", &["hoop-proto", "hoop-actors", "hoop-access", "hoop-sql"]),
];

/// What a crate below must never see: sockets, clocks and frameworks have no place in a codec, SQL and HTTP none in the
/// runtime.
const NEVER: &[(&str, &[&str])] = &[
    (
        "hoop-proto",
        &["tokio", "actix", "actix-web", "tokio-postgres", "rustls", "chrono"],
    ),
    (
        "hoop-actors",
        &["actix-web", "tokio-postgres", "deadpool-postgres", "utoipa"],
    ),
    (
        "hoop-sql",
        &["tokio", "actix", "actix-web", "tokio-postgres", "rustls", "chrono"],
    ),
    ("hoop-client", &["actix", "actix-web", "tokio-postgres", "tonic"]),
    ("hoop-agent", &["actix-web", "tokio-postgres", "deadpool-postgres"]),
];

fn dependencies() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata.get("packages").and_then(Value::as_array).context("packages")?;
    let mut all = BTreeMap::new();
    for package in packages {
        let name = |of: &Value| of.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let used = package
            .get("dependencies")
            .and_then(Value::as_array)
            .context("dependencies")?;
        // A test may use more than the crate itself.
        let used = used
            .iter()
            .filter(|used| used.get("kind") != Some(&Value::from("dev")))
            .map(&name)
            .collect();
        all.insert(name(package), used);
    }
    Ok(all)
}

#[test]
fn dependencies_run_one_way() -> Result<()> {
    for (name, used) in dependencies()? {
        let (_, may) = MAY_USE.iter().find(|(known, _)| *known == name).with_context(|| {
            format!("{name} is a new crate: say in tests/tests/workspace.rs which crates of ours it may use")
        })?;
        let ours = used.iter().filter(|used| used.starts_with("hoop-"));
        let wrong: Vec<_> = ours.filter(|used| !may.contains(&used.as_str())).collect();
        assert!(wrong.is_empty(), "{name} must not use {wrong:?}");
    }
    Ok(())
}

#[test]
fn no_crate_uses_what_its_layer_excludes() -> Result<()> {
    let all = dependencies()?;
    for (name, never) in NEVER {
        let used = all.get(*name).with_context(|| format!("no crate {name}"))?;
        let wrong: Vec<_> = never.iter().filter(|never| used.contains(**never)).collect();
        assert!(wrong.is_empty(), "{name} must not use {wrong:?}");
    }
    Ok(())
}
