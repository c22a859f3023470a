//! SAML identity providers that other people wrote: npm's `samlp` and Debian's `simplesamlphp`.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize};

use crate::binaries::checkout;
use crate::browser::{Browser, Page};
use crate::cluster::free_port;
use crate::oidc::modules;
use crate::process::{Process, eventually};

const START_DEADLINE: Duration = Duration::from_secs(30);
const SIMPLESAMLPHP: &str = "/usr/share/simplesamlphp/www";

/// A running identity provider.
pub struct IdentityProvider {
    pub port: u16,
    /// Where its metadata is.
    pub metadata_url: String,
    pub kind: Kind,
    _process: Process,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Samlp,
    SimpleSamlPhp,
}

/// A service provider as an identity provider knows it.
#[derive(Debug, Clone, Copy)]
pub struct ServiceProvider<'a> {
    pub entity_id: &'a str,
    pub acs_url: &'a str,
    /// PEM; of its requests' signatures.
    pub certificate: &'a Path,
}

/// An RSA key and a certificate for it, as `NAME.key` and `NAME.crt`.
///
/// # Errors
/// Where they cannot be made or written.
pub fn write_key(folder: &Path, name: &str) -> Result<()> {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
    let certificate = CertificateParams::new(vec![format!("{name}.test")])?.self_signed(&key)?;
    fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    fs::write(folder.join(format!("{name}.crt")), certificate.pem())?;
    Ok(())
}

impl IdentityProvider {
    /// Starts one, or says why not. `audience` is what its assertions name in place of the service provider.
    ///
    /// # Errors
    /// Where it is there and does not start.
    pub async fn start(
        test: &str,
        kind: Kind,
        folder: &Path,
        service: ServiceProvider<'_>,
        audience: Option<&str>,
    ) -> Result<Option<Self>> {
        fs::create_dir_all(folder)?;
        write_key(folder, "idp")?;
        let port = free_port()?;
        let command = match kind {
            Kind::Samlp => samlp(folder, port, service, audience),
            Kind::SimpleSamlPhp => simplesamlphp(folder, port, service)?,
        };
        let Some(command) = command else {
            crate::skipped(test, &format!("{kind:?} is missing; ./dev test installs it"));
            return Ok(None);
        };
        let mut process = Process::spawn("identity provider", command, &folder.join("log.txt"), "KILL")?;
        process
            .until("listening", START_DEADLINE, async || {
                TcpStream::connect(("127.0.0.1", port)).ok()
            })
            .await?;
        let path = match kind {
            Kind::Samlp => "metadata",
            Kind::SimpleSamlPhp => "saml2/idp/metadata.php",
        };
        Ok(Some(Self {
            port,
            metadata_url: format!("http://localhost:{port}/{path}"),
            kind,
            _process: process,
        }))
    }

    /// # Errors
    /// Where it gives none.
    pub async fn metadata(&self) -> Result<String> {
        eventually("metadata", START_DEADLINE, async || {
            let page = Browser::new()?.open(&self.metadata_url).await?;
            Ok((page.status == 200).then_some(page.text))
        })
        .await
    }

    /// From where `begin` led the browser, as `user`, to the page whose form holds the response.
    ///
    /// # Errors
    /// Where a page is not as expected.
    pub async fn log_in(&self, browser: &mut Browser, begin: &str, user: &str) -> Result<Page> {
        browser.stop_before(&format!("http://localhost:{}", self.port));
        browser.stop_before(&format!("http://127.0.0.1:{}", self.port));
        let stopped = browser.open(begin).await?;
        browser.stop_nowhere();
        anyhow::ensure!(stopped.status == 0, "begin: {} {}", stopped.status, stopped.text);
        let mut url = stopped.url;
        if self.kind == Kind::Samlp {
            url.query_pairs_mut().append_pair("as", user);
            return browser.open(url.as_str()).await;
        }
        let page = browser.open(url.as_str()).await?;
        if page.field("SAMLResponse").is_ok() {
            return Ok(page);
        }
        let state = page.field("AuthState").context("no login page")?;
        let password = format!("{user}pw");
        let fields = [
            ("AuthState", state.as_str()),
            ("username", user),
            ("password", &password),
        ];
        let mut to = page.url.clone();
        to.set_query(None);
        browser.submit(&page, to, &fields).await
    }
}

fn samlp(folder: &Path, port: u16, service: ServiceProvider<'_>, audience: Option<&str>) -> Option<Command> {
    let modules = modules("samlp")?;
    let mut command = Command::new("node");
    command
        .arg(checkout().join("gateway/auth/tests/saml/rigs/samlp.js"))
        .arg(folder.join("idp.key"))
        .arg(folder.join("idp.crt"))
        .args([service.acs_url, &port.to_string()])
        .args(audience)
        .env("NODE_PATH", modules);
    Some(command)
}

fn simplesamlphp(folder: &Path, port: u16, service: ServiceProvider<'_>) -> Result<Option<Command>> {
    let php = Command::new("php")
        .arg("-v")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if php.is_err() || !Path::new(SIMPLESAMLPHP).is_dir() {
        return Ok(None);
    }
    for name in ["config", "metadata", "log", "data", "tmp", "sessions"] {
        fs::create_dir(folder.join(name))?;
    }
    let write = |name: &str, php: String| fs::write(folder.join(name), format!("<?php\n{php}"));
    let root = folder.display();
    write(
        "config/config.php",
        format!(
            "require '/etc/simplesamlphp/config.php';
$config = array_merge($config, ['baseurlpath' => 'http://localhost:{port}/', 'certdir' => '{root}/', 'loggingdir' => '{root}/log/',
'datadir' => '{root}/data/', 'tempdir' => '{root}/tmp', 'metadatadir' => '{root}/metadata', 'logging.handler' => 'file',
'enable.saml20-idp' => true, 'session.cookie.secure' => false, 'session.cookie.samesite' => 'Lax', 'session.phpsession.savepath' => '{root}/sessions',
'secretsalt' => 'of-a-test', 'auth.adminpassword' => 'of-a-test',
'module.enable' => ['exampleauth' => true, 'core' => true, 'saml' => true]]);"
        ),
    )?;
    write(
        "config/authsources.php",
        "$config = ['userpass' => ['exampleauth:UserPass',
'alice:alicepw' => ['email' => ['alice@example.test'], 'groups' => ['sre', 'admin']],
'bob:bobpw' => ['email' => ['bob@example.test'], 'groups' => ['dev']]]];"
            .into(),
    )?;
    write(
        "metadata/saml20-idp-hosted.php",
        "$metadata['urn:test:simplesamlphp'] = ['host' => '__DEFAULT__', 'privatekey' => 'idp.key', 'certificate' => 'idp.crt',
'auth' => 'userpass', 'saml20.sign.response' => true, 'saml20.sign.assertion' => true,
'signature.algorithm' => 'http://www.w3.org/2001/04/xmldsig-more#rsa-sha256'];"
            .into(),
    )?;
    let certificate = fs::read_to_string(service.certificate)?;
    let certificate: String = certificate.lines().filter(|line| !line.starts_with("--")).collect();
    let (entity, acs) = (service.entity_id, service.acs_url);
    write(
        "metadata/saml20-sp-remote.php",
        format!(
            "$metadata['{entity}'] = ['AssertionConsumerService' => '{acs}', 'simplesaml.nameidattribute' => 'email',
'NameIDFormat' => 'urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress',
'validate.authnrequest' => true, 'certData' => '{certificate}'];"
        ),
    )?;
    let mut command = Command::new("php");
    let address = format!("127.0.0.1:{port}");
    command
        .args([
            "-d",
            "error_reporting=0",
            "-d",
            "display_errors=0",
            "-S",
            &address,
            "-t",
            SIMPLESAMLPHP,
        ])
        .env("SIMPLESAMLPHP_CONFIG_DIR", folder.join("config"));
    Ok(Some(command))
}
