//! Certificates, keys, authorities.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::{Certificate, Identity};

use super::*;

/// An authority, and a folder for what it signs.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, dir: tempfile::tempdir().unwrap() };
        fs::write(authority.path("ca.pem"), authority.issuer.pem()).unwrap();
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Signs a certificate of this machine for a key, changed as a test wants.
    fn sign(&self, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> PathBuf {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        change(&mut params);
        let pem = params.signed_by(key, &self.issuer).unwrap().pem();
        let path = self.path("node.pem");
        fs::write(&path, pem).unwrap();
        path
    }

    /// Whether a client that trusts this authority alone gets an answer; with `identity`, one that
    /// shows a certificate.
    async fn is_answered(&self, node: &Node, identity: Option<Identity>) -> bool {
        let root = Certificate::from_pem(self.issuer.pem().as_bytes()).unwrap();
        let mut client = reqwest::Client::builder().tls_certs_only([root]);
        if let Some(identity) = identity {
            client = client.identity(identity);
        }
        let url = format!("https://127.0.0.1:{}/", node.client);
        client.build().unwrap().get(url).send().await.is_ok_and(|a| a.status() == 200)
    }
}

fn key_file(dir: &Path, key: &KeyPair) -> PathBuf {
    let path = dir.join("key.pem");
    fs::write(&path, key.serialize_pem()).unwrap();
    path
}

pub(super) async fn tls_cert_file() {
    let (old, new) = (Authority::new(), Authority::new());
    let key = KeyPair::generate().unwrap();
    let mut home = Home::new(json!({
        "tls_enabled": true,
        "tls_cert_file": old.sign(&key, |_| {}),
        "tls_key_file": key_file(old.dir.path(), &key),
    }));
    let node = home.start().await;
    assert!(old.is_answered(&node, None).await && !new.is_answered(&node, None).await);
    reload(&mut home, &node, json!({ "tls_cert_file": new.sign(&key, |_| {}) })).await;
    assert!(new.is_answered(&node, None).await && !old.is_answered(&node, None).await);
}

/// A key goes with its certificate, or not at all.
pub(super) async fn tls_key_file() {
    let (old, new) = (Authority::new(), Authority::new());
    let keys = [0; 2].map(|_| KeyPair::generate().unwrap());
    let mut home = Home::new(json!({
        "tls_enabled": true,
        "tls_cert_file": old.sign(&keys[0], |_| {}),
        "tls_key_file": key_file(old.dir.path(), &keys[0]),
    }));
    let node = home.start().await;
    assert!(old.is_answered(&node, None).await);
    let settings = json!({
        "tls_cert_file": new.sign(&keys[1], |_| {}),
        "tls_key_file": key_file(new.dir.path(), &keys[1]),
    });
    reload(&mut home, &node, settings).await;
    assert!(new.is_answered(&node, None).await && !old.is_answered(&node, None).await);
}

pub(super) async fn tls_ca_file() {
    let (old, new) = (Authority::new(), Authority::new());
    let key = KeyPair::generate().unwrap();
    let mut home = Home::new(json!({
        "tls_enabled": true,
        "tls_client_auth": "required",
        "tls_ca_file": old.path("ca.pem"),
        "tls_cert_file": old.sign(&key, |_| {}),
        "tls_key_file": key_file(old.dir.path(), &key),
    }));
    let node = home.start().await;
    let client = |authority: &Authority| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(Vec::new()).unwrap();
        let certificate = params.signed_by(&key, &authority.issuer).unwrap().pem();
        Identity::from_pem(format!("{certificate}{}", key.serialize_pem()).as_bytes()).unwrap()
    };
    assert!(old.is_answered(&node, Some(client(&old))).await);
    assert!(!old.is_answered(&node, Some(client(&new))).await);
    reload(&mut home, &node, json!({ "tls_ca_file": new.path("ca.pem") })).await;
    assert!(old.is_answered(&node, Some(client(&new))).await);
    assert!(!old.is_answered(&node, Some(client(&old))).await);
}

/// The certificate runs out while the node runs. What else is new must come into force all the same;
/// another certificate that has run out must not.
#[tokio::test]
async fn a_certificate_that_has_expired_keeps_nothing_else_from_being_applied() {
    let authority = Authority::new();
    let key = KeyPair::generate().unwrap();
    let expires_in = |seconds: i64| {
        move |params: &mut CertificateParams| {
            params.not_after = time::OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
        }
    };
    let mut home = Home::new(json!({
        "tls_enabled": true,
        "tls_ca_file": authority.path("ca.pem"),
        "tls_cert_file": authority.sign(&key, expires_in(20)),
        "tls_key_file": key_file(authority.dir.path(), &key),
    }));
    let node = home.start().await;
    assert!(authority.is_answered(&node, None).await);
    let reload = async || http().post(node.ops_url("/admin/reload")).send().await.unwrap();
    eventually(async || !authority.is_answered(&node, None).await, "the certificate's end").await;
    home.set(json!({ "max_conns": 7 }));
    let answer = reload().await;
    assert_eq!(answer.status(), 200);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["applied"], json!(["max_conns"]));
    assert!(answer["warnings"].to_string().contains("has expired"), "{answer}");
    assert_eq!(ops(&node, "/stats").await["connections"]["max"], 7);

    authority.sign(&key, expires_in(-5));
    let refused = reload().await;
    assert_eq!(refused.status(), 422);
    assert!(refused.text().await.unwrap().contains("expired"));
    authority.sign(&key, expires_in(600));
    assert_eq!(reload().await.status(), 200);
    assert!(authority.is_answered(&node, None).await);
}
