//! Two identity providers that other people wrote: Debian's `simplesamlphp` and npm's `samlp`.
//!
//! They are not part of the build. Where one is missing, its test says so and passes; with `HOOP_REQUIRE_RIGS=1` it
//! fails. `simplesamlphp` needs `apt-get install simplesamlphp php-cli php-xml php-mbstring php-curl`; `samlp` is looked
//! for in the folder `HOOP_SAMLP_DIR`, or else `.dev`, where `npm install samlp@8 express@4` was run. `curl` is the browser.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use chrono::Utc;
use hoop_auth::saml::{IdentityProvider, SamlConfig, SamlError, SamlForm, SamlProvider, SignedIn, SigningKey};
use tempfile::TempDir;

use crate::forge::{ACS, ATTACKER, ECDSA, SP, STRANGER, TRUSTED, VICTIM};
use crate::harness::{Cache, config};
use crate::refused;

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running identity provider; ends with the test.
struct Rig {
    process: Child,
    folder: TempDir,
    port: u16,
}

impl Drop for Rig {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Says that a test did not run; `./dev test` repeats it at the end.
fn skipped(test: &str, why: &str) {
    assert!(std::env::var_os("HOOP_REQUIRE_RIGS").is_none(), "{test}: {why}");
    let line = format!("skipped: {test}: {why}\n");
    print!("{line}");
    if let Some(path) = std::env::var_os("HOOP_SKIPPED") {
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap();
    }
}

fn have(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// What `curl` brings back, with a cookie jar and along redirects.
fn browse(rig: &Rig, arguments: &[&str]) -> String {
    let jar = rig.folder.path().join("cookies");
    let output = Command::new("curl")
        .args(["-sS", "-L", "--max-time", "30", "-b"])
        .arg(&jar)
        .arg("-c")
        .arg(&jar)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The value of a form's hidden field.
fn field(html: &str, name: &str) -> Option<String> {
    let input = html
        .split('<')
        .find(|tag| tag.starts_with("input") && tag.contains(&format!("name=\"{name}\"")))?;
    let value = input.split("value=\"").nth(1)?.split('"').next()?;
    Some(unescape(value))
}

fn unescape(text: &str) -> String {
    let mut parts = text.split('&');
    let mut plain = parts.next().unwrap().to_owned();
    for part in parts {
        let (entity, rest) = part.split_once(';').unwrap();
        plain.push(match entity {
            "amp" => '&',
            "quot" => '"',
            "lt" => '<',
            "gt" => '>',
            hex if hex.starts_with("#x") => char::from_u32(u32::from_str_radix(&hex[2..], 16).unwrap()).unwrap(),
            number => char::from_u32(number[1..].parse().unwrap()).unwrap(),
        });
        plain.push_str(rest);
    }
    plain
}

fn form(html: &str) -> SamlForm {
    SamlForm {
        saml_response: field(html, "SAMLResponse").unwrap_or_else(|| panic!("no SAMLResponse in: {html}")),
        relay_state: field(html, "RelayState"),
    }
}

/// Provider with the rig's own metadata.
fn provider(metadata: String) -> SamlProvider {
    let signing_key = SigningKey {
        private_key_pem: STRANGER.key_pem.clone().into(),
        certificate_pem: STRANGER.certificate_pem.clone(),
    };
    SamlProvider::new(SamlConfig {
        identity_provider: IdentityProvider::Metadata { xml: metadata },
        signing_key: Some(signing_key),
        ..config()
    })
    .unwrap()
}

/// Signs in by `login` (from the address of the request to the page with the response), and tries what must fail.
fn exchange(provider: &SamlProvider, login: impl Fn(&str) -> String) -> SignedIn {
    let begun = provider.begin(Utc::now()).unwrap();
    let form = form(&login(&begun.redirect_url));
    let finish = |form: &SamlForm| provider.finish(Some(&begun.pending), form, Utc::now());

    let other = provider.begin(Utc::now()).unwrap().pending;
    let misused = SamlForm {
        relay_state: Some(other.relay_state.clone()),
        ..form.clone()
    };
    refused!(
        provider.finish(Some(&other), &misused, Utc::now()),
        SamlError::InResponseTo { .. }
    );

    let xml = String::from_utf8(
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, &form.saml_response).unwrap(),
    );
    let tampered = crate::forge::encode(&xml.unwrap().replace(VICTIM, ATTACKER));
    refused!(
        finish(&SamlForm {
            saml_response: tampered,
            ..form.clone()
        }),
        SamlError::Signature { .. }
    );

    let cache = Cache::default();
    let redeem = |form| futures_util::FutureExt::now_or_never(finish(form).unwrap().redeem(&cache)).unwrap();
    let signed_in = redeem(&form).unwrap();
    refused!(redeem(&form), SamlError::Replayed);
    signed_in
}

fn sorted(signed_in: &SignedIn) -> Vec<String> {
    let mut groups = signed_in.identity.groups.clone().unwrap();
    groups.sort();
    groups
}

fn write_keys(folder: &Path) {
    fs::write(folder.join("idp.key"), &TRUSTED.key_pem).unwrap();
    fs::write(folder.join("idp.crt"), &TRUSTED.certificate_pem).unwrap();
}

// npm's samlp

fn samlp_folder() -> Option<PathBuf> {
    let dev = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.dev");
    let folder = std::env::var_os("HOOP_SAMLP_DIR").map_or(dev, PathBuf::from);
    let modules = folder.join("node_modules");
    (have("node") && have("curl") && modules.join("samlp").is_dir() && modules.join("express").is_dir())
        .then_some(modules)
}

fn start_samlp(modules: &Path) -> Rig {
    let folder = TempDir::new().unwrap();
    write_keys(folder.path());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/saml/rigs/samlp.js");
    let mut process = Command::new("node")
        .arg(script)
        .arg(folder.path().join("idp.key"))
        .arg(folder.path().join("idp.crt"))
        .arg(ACS)
        .env("NODE_PATH", modules)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let port = line.trim().parse().expect("samlp prints its port");
    Rig { process, folder, port }
}

#[test]
fn samlp_signs_people_in() {
    let Some(modules) = samlp_folder() else {
        return skipped(
            "samlp_signs_people_in",
            "node, curl, or npm's samlp and express are missing (see rigs.rs)",
        );
    };
    let rig = start_samlp(&modules);
    let metadata = browse(&rig, &[&format!("http://127.0.0.1:{}/metadata", rig.port)]);
    let provider = provider(metadata.clone());

    let signed_in = exchange(&provider, |url| browse(&rig, &[&format!("{url}&as=alice")]));
    assert_eq!(signed_in.identity.subject, VICTIM);
    assert_eq!(signed_in.identity.email, VICTIM);
    // Its claims come under the names that its profile mapper gives them.
    assert_eq!(sorted(&signed_in), ["admin", "sre"]);
    // It gives none unless it is told one.
    assert_eq!(signed_in.session_index, "");

    let stranger = SamlProvider::new(SamlConfig {
        identity_provider: IdentityProvider::Manual {
            entity_id: "urn:test:samlp".into(),
            sso_url: format!("http://127.0.0.1:{}/sso", rig.port),
            certificates: vec![ECDSA.certificate_pem.clone()],
        },
        ..config()
    })
    .unwrap();
    let begun = stranger.begin(Utc::now()).unwrap();
    let answer = form(&browse(&rig, &[&begun.redirect_url]));
    refused!(
        stranger.finish(Some(&begun.pending), &answer, Utc::now()),
        SamlError::UnknownCertificate { .. }
    );
}

// Debian's simplesamlphp

const SIMPLESAMLPHP: &str = "/usr/share/simplesamlphp/www";

fn start_simplesamlphp() -> Rig {
    // The port must be known before it starts, so it may be taken by then.
    for _ in 0..5 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if let Some(rig) = try_start_simplesamlphp(port) {
            return rig;
        }
    }
    panic!("simplesamlphp does not start")
}

fn try_start_simplesamlphp(port: u16) -> Option<Rig> {
    let folder = TempDir::new().unwrap();
    write_keys(folder.path());
    for name in ["config", "metadata", "log", "data", "tmp", "sessions"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let write = |name: &str, php: String| fs::write(folder.path().join(name), format!("<?php\n{php}")).unwrap();
    let root = folder.path().display();
    write(
        "config/config.php",
        format!(
            "require '/etc/simplesamlphp/config.php';
$config = array_merge($config, ['baseurlpath' => 'http://localhost:{port}/', 'certdir' => '{root}/', 'loggingdir' => '{root}/log/',
'datadir' => '{root}/data/', 'tempdir' => '{root}/tmp', 'metadatadir' => '{root}/metadata', 'logging.handler' => 'file',
'enable.saml20-idp' => true, 'session.cookie.secure' => false, 'session.phpsession.savepath' => '{root}/sessions',
'secretsalt' => 'of-a-test', 'auth.adminpassword' => 'of-a-test',
'module.enable' => ['exampleauth' => true, 'core' => true, 'saml' => true]]);"
        ),
    );
    write(
        "config/authsources.php",
        "$config = ['userpass' => ['exampleauth:UserPass',
'alice:alicepw' => ['email' => ['alice@example.test'], 'groups' => ['sre', 'admin']],
'bob:bobpw' => ['email' => ['bob@example.test'], 'groups' => ['dev']]]];"
            .into(),
    );
    write(
        "metadata/saml20-idp-hosted.php",
        "$metadata['urn:test:simplesamlphp'] = ['host' => '__DEFAULT__', 'privatekey' => 'idp.key', 'certificate' => 'idp.crt',
'auth' => 'userpass', 'saml20.sign.response' => true, 'saml20.sign.assertion' => true,
'signature.algorithm' => 'http://www.w3.org/2001/04/xmldsig-more#rsa-sha256'];"
            .into(),
    );
    let certificate: String = STRANGER
        .certificate_pem
        .lines()
        .filter(|line| !line.starts_with("--"))
        .collect();
    write(
        "metadata/saml20-sp-remote.php",
        format!(
            "$metadata['{SP}'] = ['AssertionConsumerService' => '{ACS}', 'simplesaml.nameidattribute' => 'email',
'NameIDFormat' => 'urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress',
'validate.authnrequest' => true, 'certData' => '{certificate}'];"
        ),
    );
    let log = fs::File::create(folder.path().join("php.log")).unwrap();
    let process = Command::new("php")
        .args([
            "-d",
            "error_reporting=0",
            "-d",
            "display_errors=0",
            "-S",
            &format!("127.0.0.1:{port}"),
            "-t",
            SIMPLESAMLPHP,
        ])
        .env("SIMPLESAMLPHP_CONFIG_DIR", folder.path().join("config"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut rig = Rig { process, folder, port };
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        if rig.process.try_wait().unwrap().is_some() {
            return None;
        }
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(rig);
        }
        thread::sleep(Duration::from_millis(20));
    }
    None
}

/// From the request to the login page, and from there to the page with the response.
fn log_in(rig: &Rig, url: &str, person: &str) -> String {
    let page = browse(rig, &[url, "-w", "\n%{url_effective}"]);
    let (html, address) = page.rsplit_once('\n').unwrap();
    // A browser that is signed in already gets its answer at once.
    let Some(state) = field(html, "AuthState") else {
        return html.to_owned();
    };
    browse(
        rig,
        &[
            "--data-urlencode",
            &format!("AuthState={state}"),
            "--data-urlencode",
            &format!("username={person}"),
            "--data-urlencode",
            &format!("password={person}pw"),
            address.split('?').next().unwrap(),
        ],
    )
}

#[test]
fn simplesamlphp_signs_people_in() {
    if !have("php") || !have("curl") || !Path::new(SIMPLESAMLPHP).is_dir() {
        return skipped(
            "simplesamlphp_signs_people_in",
            "simplesamlphp, php or curl is missing (see rigs.rs)",
        );
    }
    let rig = start_simplesamlphp();
    let metadata = browse(
        &rig,
        &[&format!("http://localhost:{}/saml2/idp/metadata.php", rig.port)],
    );
    let provider = provider(metadata.clone());
    let signed_in = exchange(&provider, |url| log_in(&rig, url, "alice"));
    assert_eq!(signed_in.identity.subject, VICTIM);
    assert_eq!(sorted(&signed_in), ["admin", "sre"]);
    assert!(!signed_in.session_index.is_empty());
    assert!(signed_in.session_ends.is_some_and(|end| end > Utc::now()));

    // It verifies our requests: without a signature there is no login page.
    let unsigned = SamlProvider::new(SamlConfig {
        identity_provider: IdentityProvider::Metadata { xml: metadata },
        ..config()
    });
    let page = browse(&rig, &[&unsigned.unwrap().begin(Utc::now()).unwrap().redirect_url]);
    assert!(
        field(&page, "SAMLResponse").is_none() && field(&page, "AuthState").is_none(),
        "{page}"
    );
}
