//! TLS: both protocols, client certificates, reload, and files that cannot serve.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aegiskv::api::tls::{ClientAuth, Material, TlsError};
use aegiskv::entry::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
};
use reqwest::{Client as Reqwest, Version};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{Client, Node, Setup, start};

/// An authority and what it signed, in files.
struct Pki {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pki = Self { dir: tempfile::tempdir().unwrap(), issuer };
        fs::write(pki.path("ca.pem"), pki.issuer.pem()).unwrap();
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Signs a certificate for this machine under `name.pem` and `name.key`.
    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn load(&self, cert: &str, key: &str, client_auth: ClientAuth) -> Result<Material, TlsError> {
        let ca = self.path("ca.pem");
        Material::load(&self.path(cert), &self.path(key), Some(&ca), client_auth, None)
    }

    fn material(&self, name: &str, client_auth: ClientAuth) -> Material {
        self.load(&format!("{name}.pem"), &format!("{name}.key"), client_auth).unwrap()
    }

    /// A connection, as the client whose certificate is `name`, if one is named.
    async fn connect(
        &self,
        node: &Node,
        name: Option<&str>,
    ) -> std::io::Result<Client<TlsStream<TcpStream>>> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.path("ca.pem"))).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots);
        let config = match name {
            None => config.with_no_client_auth(),
            Some(name) => {
                let chain = vec![certificate(&self.path(&format!("{name}.pem")))];
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let stream = TcpStream::connect(&node.address).await?;
        let server = ServerName::try_from("127.0.0.1").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(server, stream).await?;
        Ok(Client::over(stream))
    }
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

async fn node_with(material: Material) -> Node {
    start(Setup { tls: Some(material), ..Setup::default() }).await
}

#[tokio::test]
async fn both_protocols_are_served_under_tls() {
    let pki = Pki::new();
    pki.issue("node", |_| {});
    let node = node_with(pki.material("node", ClientAuth::None)).await;
    let mut client = pki.connect(&node, None).await.unwrap();
    assert_eq!(client.ask("PUT /v1/kv/a", &[], vec![7; 1 << 20]).await.status, 201);

    let ca = reqwest::Certificate::from_pem(&fs::read(pki.path("ca.pem")).unwrap()).unwrap();
    let http2 = Reqwest::builder().tls_certs_only([ca]).no_proxy().build().unwrap();
    let got = http2.get(format!("https://{}/v1/kv/a", node.address)).send().await.unwrap();
    assert_eq!(got.version(), Version::HTTP_2);
    assert_eq!(got.bytes().await.unwrap().len(), 1 << 20);
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_ended_and_the_node_goes_on() {
    let pki = Pki::new();
    pki.issue("node", |_| {});
    let node = node_with(pki.material("node", ClientAuth::None)).await;
    let mut plain = node.connect().await;
    plain.send("GET / HTTP/1.1\r\nhost: n\r\n\r\n").await;
    node.until_connections(0).await;
    let mut client = pki.connect(&node, None).await.unwrap();
    assert_eq!(client.ask("GET /", &[], "").await.status, 200);
}

#[tokio::test]
async fn where_client_certificates_are_required_only_the_authorities_own_get_in() {
    let pki = Pki::new();
    pki.issue("node", |_| {});
    pki.issue("client", |_| {});
    let node = node_with(pki.material("node", ClientAuth::Required)).await;
    let mut client = pki.connect(&node, Some("client")).await.unwrap();
    assert_eq!(client.ask("GET /", &[], "").await.status, 200);

    let stranger = Pki::new();
    stranger.issue("client", |_| {});
    fs::copy(pki.path("ca.pem"), stranger.path("ca.pem")).unwrap();
    for (pki, name) in [(&pki, None), (&stranger, Some("client"))] {
        // Under TLS 1.3 a client learns of its refusal when it first reads.
        if let Ok(mut client) = pki.connect(&node, name).await {
            client.send("GET / HTTP/1.1\r\nhost: n\r\n\r\n").await;
            client.closed().await;
        }
    }
}

#[tokio::test]
async fn a_reload_takes_effect_for_new_connections_and_drops_no_open_one() {
    let pki = Pki::new();
    pki.issue("old", |_| {});
    pki.issue("new", |params| params.not_after = rcgen::date_time_ymd(2099, 1, 1));
    pki.issue("client", |_| {});
    let node = node_with(pki.material("old", ClientAuth::None)).await;
    let mut open = pki.connect(&node, None).await.unwrap();
    assert_eq!(open.ask("GET /", &[], "").await.status, 200);

    node.server.set_tls(Some(pki.material("new", ClientAuth::Required)));
    let in_force = node.server.certificate().unwrap();
    assert_eq!(in_force.not_after(), Timestamp(4_070_908_800_000));
    assert_eq!(open.ask("GET /", &[], "").await.status, 200);
    let mut with = pki.connect(&node, Some("client")).await.unwrap();
    assert_eq!(with.ask("GET /", &[], "").await.status, 200);
    if let Ok(mut without) = pki.connect(&node, None).await {
        without.send("GET / HTTP/1.1\r\nhost: n\r\n\r\n").await;
        without.closed().await;
    }
}

#[tokio::test]
async fn files_that_cannot_serve_are_named_with_what_is_wrong() {
    let pki = Pki::new();
    pki.issue("node", |_| {});
    pki.issue("other", |_| {});
    pki.issue("expired", |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    pki.issue("early", |params| params.not_before = rcgen::date_time_ymd(2090, 1, 1));
    fs::write(pki.path("empty.pem"), "").unwrap();
    let whole = fs::read_to_string(pki.path("node.pem")).unwrap();
    fs::write(pki.path("cut.pem"), &whole[..whole.len() / 2]).unwrap();
    fs::write(pki.path("garbled.pem"), whole.replace('M', "!")).unwrap();
    let said =
        |cert: &str, key: &str| pki.load(cert, key, ClientAuth::None).unwrap_err().to_string();
    for (cert, key, named) in [
        ("absent.pem", "node.key", &["absent.pem", "tls_cert_file"][..]),
        ("node.pem", "absent.key", &["absent.key"]),
        ("empty.pem", "node.key", &["empty.pem", "no certificate"]),
        ("node.pem", "empty.pem", &["empty.pem", "no private key"]),
        ("node.key", "node.pem", &["node.key", "no certificate"]),
        ("cut.pem", "node.key", &["cut.pem"]),
        ("garbled.pem", "node.key", &["garbled.pem", "certificate 1"]),
        ("node.pem", "other.key", &["other.key", "does not belong", "node.pem"]),
        ("expired.pem", "expired.key", &["expired.pem", "expired on"]),
        ("early.pem", "early.key", &["early.pem", "not valid before", "clock"]),
    ] {
        let text = said(cert, key);
        assert!(named.iter().all(|part| text.contains(part)), "{cert} {key}: {text}");
    }
    let unnamed = Material::load(
        &pki.path("node.pem"),
        &pki.path("node.key"),
        None,
        ClientAuth::Required,
        None,
    );
    assert!(unnamed.unwrap_err().to_string().contains("tls_ca_file"));
}
