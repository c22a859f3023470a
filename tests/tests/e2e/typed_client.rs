//! A client in TypeScript whose types are made of the gateway's own description.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use hoop_tests::clients::{CLIENT_DEADLINE, node_modules, rig};
use hoop_tests::hoop::Hoop;
use hoop_tests::process::run;

async fn node(folder: &Path, program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let mut command = Command::new("node");
    command.current_dir(folder).arg(program).args(arguments);
    command.envs(environment.iter().copied());
    run(command, CLIENT_DEADLINE).await?.success().map(drop)
}

#[tokio::test]
async fn types_made_of_the_description_are_strict_and_true() -> Result<()> {
    let hoop = Hoop::start().await?;
    let folder = hoop.scratch.path().join("typed-client");
    fs::create_dir(&folder)?;
    symlink(node_modules()?, folder.join("node_modules"))?;
    for file in ["client.ts", "tsconfig.json"] {
        fs::copy(rig("typed_client").join(file), folder.join(file))?;
    }
    fs::write(folder.join("package.json"), r#"{"type": "module"}"#)?;
    let described = hoop.api.send("GET", "/api/openapi.json", None).await?;
    fs::write(folder.join("openapi.json"), described.body)?;

    let make = ["openapi.json", "--default-non-nullable=false", "-o", "api.d.ts"];
    node(&folder, "node_modules/openapi-typescript/bin/cli.js", &make, &[]).await?;
    node(&folder, "node_modules/typescript/bin/tsc", &["-p", "."], &[]).await?;
    let ready = &hoop.gateway()?.ready;
    let password = fs::read_to_string(&ready.admin_password_file)?;
    let environment = [
        ("HOOP_API", ready.api.as_str()),
        ("HOOP_USER", "admin"),
        ("HOOP_PASSWORD", password.trim()),
    ];
    node(&folder, "out/client.js", &[], &environment).await
}
