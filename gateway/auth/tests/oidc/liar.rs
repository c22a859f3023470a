//! A provider that does as a test says: real HTTP, real keys, real tokens, and whatever fault is wanted.

use crate::{CLIENT, REDIRECT};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD as BASE64};
use chrono::Utc;
use hoop_auth::oidc::Callback;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use url::Url;

/// A signing key.
pub struct Key {
    pub kid: &'static str,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Key {
    pub fn rsa(kid: &'static str) -> Arc<Self> {
        Arc::new(Self {
            kid,
            pair: Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
        })
    }

    pub fn ec(kid: &'static str) -> Arc<Self> {
        Arc::new(Self {
            kid,
            pair: Pair::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()),
        })
    }

    pub fn ed(kid: &'static str) -> Arc<Self> {
        Arc::new(Self {
            kid,
            pair: Pair::Ed(Ed25519KeyPair::generate().unwrap()),
        })
    }

    fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::Ec(_) => "ES256",
            Pair::Ed(_) => "EdDSA",
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Pair::Ec(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// RFC 7517.
    fn published(&self) -> Value {
        let mut key = match &self.pair {
            Pair::Rsa(pair) => {
                // RFC 8017, appendix A.1.1: a sequence of two integers, the modulus with a zero before its 256 bytes
                let der = pair.public_key().as_ref();
                json!({ "kty": "RSA", "n": BASE64.encode(&der[9..265]), "e": BASE64.encode(&der[267..]) })
            }
            Pair::Ec(pair) => {
                let point = pair.public_key().as_ref();
                json!({ "kty": "EC", "crv": "P-256", "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..]) })
            }
            Pair::Ed(pair) => json!({ "kty": "OKP", "crv": "Ed25519", "x": BASE64.encode(pair.public_key().as_ref()) }),
        };
        key["kid"] = self.kid.into();
        key["use"] = "sig".into();
        key
    }
}

/// How an ID token is signed.
#[derive(Clone)]
pub enum Signature {
    With(Arc<Key>),
    /// With this key, but the header names another key or algorithm.
    Disguised(Arc<Key>, Value),
    /// `alg: none`.
    None,
    /// HS256 with this secret.
    Hmac(String),
    /// By the right key, and then changed.
    Broken(Arc<Key>),
}

/// What happens to requests for one path.
#[derive(Clone)]
pub enum Fault {
    Status(u16, Value),
    Redirect(String),
    Raw(&'static str),
    /// An answer without end.
    Endless,
    /// Takes the request and never answers.
    Silent,
    /// Begins an answer and never ends it.
    Stalls,
}

/// What the provider says. A `null` in `discovery`, `claims` or `token` takes that member away.
pub struct Lies {
    pub published: Vec<Arc<Key>>,
    pub signature: Signature,
    pub discovery: Map<String, Value>,
    pub claims: Map<String, Value>,
    pub token: Map<String, Value>,
    pub user_info: Value,
    /// Added to the way back.
    pub callback: Vec<(&'static str, String)>,
    pub faults: HashMap<&'static str, Fault>,
}

#[derive(Default)]
struct Seen {
    hits: HashMap<String, usize>,
    /// By code: the nonce and the PKCE challenge it was asked for with.
    codes: HashMap<String, (String, String)>,
    last_token_request: String,
}

struct Shared {
    issuer: String,
    lies: Mutex<Lies>,
    seen: Mutex<Seen>,
}

/// The provider; it ends with its value.
pub struct Liar {
    pub issuer: String,
    /// Its certificate authority, where it speaks TLS.
    pub ca_pem: Option<String>,
    browser: reqwest::Client,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

impl Liar {
    /// One that tells the truth so far: it signs with the elliptic key `k1`, which it publishes.
    pub async fn start() -> Self {
        Self::serve(false).await
    }

    pub async fn start_with_tls() -> Self {
        Self::serve(true).await
    }

    async fn serve(tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let issuer = format!("{}://localhost:{port}", if tls { "https" } else { "http" });
        let key = Key::ec("k1");
        let lies = Lies {
            published: vec![Arc::clone(&key)],
            signature: Signature::With(key),
            discovery: Map::new(),
            claims: Map::new(),
            token: Map::new(),
            user_info: json!({ "sub": "u-1" }),
            callback: Vec::new(),
            faults: HashMap::new(),
        };
        let shared = Arc::new(Shared {
            issuer: issuer.clone(),
            lies: Mutex::new(lies),
            seen: Mutex::default(),
        });
        let (acceptor, ca_pem) = if tls { certificate() } else { (None, None) };
        let mut serving = JoinSet::new();
        let state = Arc::clone(&shared);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (state, acceptor) = (Arc::clone(&state), acceptor.clone());
                connections.spawn(async move {
                    match acceptor {
                        None => state.connection(socket).await,
                        // a client that does not trust us ends it here
                        Some(acceptor) => match acceptor.accept(socket).await {
                            Ok(socket) => state.connection(socket).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        let trusted = ca_pem
            .iter()
            .map(|pem| reqwest::Certificate::from_pem(pem.as_bytes()).unwrap());
        let browser = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        let browser = browser.tls_certs_only(trusted).build().unwrap();
        Self {
            issuer,
            ca_pem,
            browser,
            shared,
            _serving: serving,
        }
    }

    pub fn lies(&self) -> MutexGuard<'_, Lies> {
        self.shared.lies.lock().unwrap()
    }

    pub fn claim(&self, name: &str, value: Value) {
        self.lies().claims.insert(name.into(), value);
    }

    /// How often a path was asked for.
    pub fn hits(&self, path: &str) -> usize {
        self.shared
            .seen
            .lock()
            .unwrap()
            .hits
            .get(path)
            .copied()
            .unwrap_or_default()
    }

    /// The head and the body of the last request for a token.
    pub fn last_token_request(&self) -> String {
        self.shared.seen.lock().unwrap().last_token_request.clone()
    }

    /// Takes the browser to the provider and brings back what it gives.
    pub async fn authorise(&self, url: &Url) -> Callback {
        let response = self.browser.get(url.clone()).send().await.unwrap();
        let back = response.headers()["location"].to_str().unwrap();
        let query: HashMap<String, String> = Url::parse(back).unwrap().query_pairs().into_owned().collect();
        serde_json::from_value(serde_json::to_value(query).unwrap()).unwrap()
    }
}

impl Shared {
    /// One request a connection. `None` where it broke, which is the other side's affair.
    async fn connection(&self, mut socket: impl AsyncRead + AsyncWrite + Unpin) -> Option<()> {
        let mut request = Vec::new();
        let (head, body) = loop {
            let mut part = [0; 4096];
            match socket.read(&mut part).await {
                Ok(read) if read > 0 => request.extend_from_slice(&part[..read]),
                _ => return None,
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                if body.len() >= length.unwrap_or(0) {
                    break (head.to_owned(), body.to_owned());
                }
            }
        };
        let target = head.split(' ').nth(1)?;
        let url = Url::parse(&self.issuer).unwrap().join(target).unwrap();
        *self.seen.lock().unwrap().hits.entry(url.path().to_owned()).or_default() += 1;
        let fault = self.lies.lock().unwrap().faults.get(url.path()).cloned();
        match fault {
            Some(Fault::Silent) => std::future::pending().await,
            Some(Fault::Stalls) => {
                socket
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
                    .await
                    .ok()?;
                std::future::pending().await
            }
            Some(Fault::Endless) => {
                socket
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
                    .await
                    .ok()?;
                loop {
                    socket.write_all(&[b' '; 16_384]).await.ok()?;
                }
            }
            Some(Fault::Raw(bytes)) => socket.write_all(bytes.as_bytes()).await.ok()?,
            Some(Fault::Redirect(to)) => {
                let answer =
                    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                socket.write_all(answer.as_bytes()).await.ok()?;
            }
            Some(Fault::Status(status, body)) => send(&mut socket, status, &body).await?,
            None if url.path() == "/authorize" => {
                let answer = format!(
                    "HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                    self.way_back(&url)
                );
                socket.write_all(answer.as_bytes()).await.ok()?;
            }
            None => {
                let (status, body) = self.answer(&url, &head, &body);
                send(&mut socket, status, &body).await?;
            }
        }
        socket.shutdown().await.ok()
    }

    fn answer(&self, url: &Url, head: &str, body: &str) -> (u16, Value) {
        match url.path() {
            "/.well-known/openid-configuration" => (200, self.discovery()),
            "/jwks" => {
                let keys: Vec<Value> = self
                    .lies
                    .lock()
                    .unwrap()
                    .published
                    .iter()
                    .map(|key| key.published())
                    .collect();
                (200, json!({ "keys": keys }))
            }
            "/token" => self.token(head, body),
            "/userinfo" if head.contains("Bearer at-") => (200, self.lies.lock().unwrap().user_info.clone()),
            _ => (404, json!({})),
        }
    }

    fn discovery(&self) -> Value {
        let issuer = &self.issuer;
        let truth = json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"),
            "userinfo_endpoint": format!("{issuer}/userinfo"),
            "jwks_uri": format!("{issuer}/jwks"),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        });
        patched(truth, &self.lies.lock().unwrap().discovery)
    }

    fn way_back(&self, url: &Url) -> Url {
        let asked: HashMap<String, String> = url.query_pairs().into_owned().collect();
        assert_eq!(asked["code_challenge_method"], "S256");
        assert!(
            asked["scope"].split(' ').any(|scope| scope == "openid"),
            "{}",
            asked["scope"]
        );
        let mut seen = self.seen.lock().unwrap();
        let code = format!("code-{}", seen.codes.len());
        seen.codes
            .insert(code.clone(), (asked["nonce"].clone(), asked["code_challenge"].clone()));
        let mut back = Url::parse(REDIRECT).unwrap();
        back.query_pairs_mut()
            .append_pair("code", &code)
            .append_pair("state", &asked["state"]);
        back.query_pairs_mut().extend_pairs(&self.lies.lock().unwrap().callback);
        back
    }

    fn token(&self, head: &str, body: &str) -> (u16, Value) {
        let form: HashMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
        let mut seen = self.seen.lock().unwrap();
        seen.last_token_request = format!("{head}\r\n\r\n{body}");
        let nonce = match form["grant_type"].as_str() {
            "authorization_code" => {
                let Some((nonce, challenge)) = seen.codes.remove(&form["code"]) else {
                    return (400, json!({ "error": "invalid_grant" }));
                };
                let verifier = digest(&SHA256, form["code_verifier"].as_bytes());
                assert_eq!(BASE64.encode(verifier.as_ref()), challenge, "PKCE");
                assert_eq!(form["redirect_uri"], REDIRECT);
                json!(nonce)
            }
            _ => Value::Null,
        };
        let lies = self.lies.lock().unwrap();
        let now = Utc::now().timestamp();
        let truth = json!({
            "iss": self.issuer, "aud": CLIENT, "sub": "u-1", "exp": now + 300, "iat": now, "nonce": nonce,
            "email": "u1@example.test", "name": "U One", "groups": ["dev"],
        });
        let id_token = sign(&lies.signature, &patched(truth, &lies.claims));
        let response =
            json!({ "access_token": "at-1", "token_type": "Bearer", "expires_in": 300, "id_token": id_token });
        (200, patched(response, &lies.token))
    }
}

async fn send(socket: &mut (impl AsyncWrite + Unpin), status: u16, body: &Value) -> Option<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} Whatever\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    socket.write_all(format!("{head}{body}").as_bytes()).await.ok()
}

fn patched(mut truth: Value, lies: &Map<String, Value>) -> Value {
    let members = truth.as_object_mut().unwrap();
    members.extend(lies.clone());
    members.retain(|_, value| !value.is_null());
    truth
}

/// RFC 7515, compact.
fn sign(signature: &Signature, claims: &Value) -> String {
    let header = match signature {
        Signature::With(key) | Signature::Broken(key) => json!({ "alg": key.algorithm(), "kid": key.kid }),
        Signature::Disguised(_, header) => header.clone(),
        Signature::None => json!({ "alg": "none" }),
        Signature::Hmac(_) => json!({ "alg": "HS256" }),
    };
    let message = format!(
        "{}.{}",
        BASE64.encode(header.to_string()),
        BASE64.encode(claims.to_string())
    );
    let signed = match signature {
        Signature::With(key) | Signature::Disguised(key, _) => key.sign(message.as_bytes()),
        Signature::None => Vec::new(),
        Signature::Hmac(secret) => {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
            hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
        }
        Signature::Broken(key) => {
            let mut signed = key.sign(message.as_bytes());
            signed[7] ^= 1;
            signed
        }
    };
    format!("{message}.{}", BASE64.encode(signed))
}

/// At hand for tests of the access token's hash (OpenID Connect Core 1.0, section 3.1.3.6).
pub fn half_hash(token: &str) -> String {
    BASE64.encode(&digest(&SHA256, token.as_bytes()).as_ref()[..16])
}

/// The value of HTTP's basic authentication (RFC 6749, section 2.3.1).
pub fn basic(id: &str, secret: &str) -> String {
    let encode = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    BASE64_STANDARD.encode(format!("{}:{}", encode(id), encode(secret)))
}

fn certificate() -> (Option<TlsAcceptor>, Option<String>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let chain = vec![made.cert.der().clone()];
    let key = made.signing_key.serialize_der().try_into().unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    (Some(TlsAcceptor::from(Arc::new(config))), Some(made.cert.pem()))
}
