//! The `certs` commands: a certificate authority of the cluster's own, and node certificates.
//!
//! Invariant: private keys are readable by their owner alone from the moment they exist, and no
//! file is ever overwritten. Certificates follow RFC 5280; keys are ECDSA P-256.

use std::fs::DirBuilder;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::pem::parse_x509_pem;

use super::client::read;
use super::draft::Draft;
use super::exit::{Exit, Usage, note, output};

/// How long before now a certificate becomes valid, for clocks that are behind.
const BACKDATED: Duration = Duration::hours(1);

/// Makes certificates for TLS between clients and nodes
#[derive(Args, Debug)]
pub(crate) struct Certs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Init(Init),
    Issue(Issue),
}

impl Certs {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        match self.command {
            Command::Init(init) => init.run(),
            Command::Issue(issue) => issue.run(),
        }
    }
}

/// Makes a certificate authority: ca.crt, for everyone, and ca.key, to be kept apart
#[derive(Args, Debug)]
struct Init {
    /// Directory for the files; made if need be
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,

    /// The authority's name, as certificates show it
    #[arg(long, default_value = "AegisKV CA")]
    name: String,

    /// Days until it runs out
    #[arg(long, value_name = "N", default_value_t = 3650)]
    #[arg(value_parser = clap::value_parser!(i64).range(1..=36_500))]
    days: i64,
}

impl Init {
    fn run(self) -> anyhow::Result<Exit> {
        let files = Pair::in_dir(&self.dir, "ca");
        files.ensure_absent()?;
        let dir = self.dir.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .with_context(|| format!("cannot make the directory {dir}"))?;
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, self.name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = validity(self.days);
        let certificate = params.self_signed(&key).context("cannot sign the certificate")?;
        files.write(&key, &certificate.pem())?;
        note(format_args!(
            "made {} and {}\n\
             keep {} off the nodes and back it up: who has it can pose as any node\n\
             next: aegiskv certs issue --dir {dir} NODE --san HOST --san ADDRESS",
            files.certificate.display(),
            files.key.display(),
            files.key.display(),
        ));
        Ok(Exit::Done)
    }
}

/// Issues a node's certificate, signed by the authority in the same directory
///
/// It serves for both sides of a connection, so it is also what a client shows where
/// tls_client_auth is `required`. Prints the settings that use it.
#[derive(Args, Debug)]
struct Issue {
    /// Directory of ca.crt and ca.key; NODE.crt and NODE.key are put there too
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,

    /// The node's name; also the first name the certificate is good for, if it is a host name
    node: String,

    /// Another host name or IP address that it is good for; may be repeated, or hold commas
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    san: Vec<String>,

    /// Days until it runs out
    #[arg(long, value_name = "N", default_value_t = 365)]
    #[arg(value_parser = clap::value_parser!(i64).range(1..=36_500))]
    days: i64,
}

impl Issue {
    fn run(self) -> anyhow::Result<Exit> {
        if self.node == "ca" || !is_file_name(&self.node) {
            let node = &self.node;
            let text =
                format!("{node:?} cannot name a node's files; use letters, digits, - . and _");
            return Err(Usage(text).into());
        }
        let names = alternative_names(&self.node, &self.san)?;
        let files = Pair::in_dir(&self.dir, &self.node);
        files.ensure_absent()?;
        let authority = Authority::open(&self.dir)?;
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, self.node.as_str());
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(self.days);
        if params.not_after > authority.not_after {
            note(format_args!(
                "the authority runs out on {}, and so will this certificate",
                authority.not_after.date()
            ));
            params.not_after = authority.not_after;
        }
        let certificate =
            params.signed_by(&key, &authority.issuer).context("cannot sign the certificate")?;
        files.write(&key, &certificate.pem())?;
        self.print_settings(&files)?;
        Ok(Exit::Done)
    }

    fn print_settings(&self, files: &Pair) -> anyhow::Result<()> {
        note(format_args!(
            "made {} and {}; copy them with ca.crt, not ca.key, to the node and set there:",
            files.certificate.display(),
            files.key.display()
        ));
        let absolute = |path: &Path| {
            std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
        };
        let settings = serde_json::json!({
            "tls_enabled": true,
            "tls_cert_file": absolute(&files.certificate),
            "tls_key_file": absolute(&files.key),
            "tls_ca_file": absolute(&self.dir.join("ca.crt")),
        });
        let mut out = output();
        writeln!(out, "{settings:#}")?;
        out.flush()?;
        Ok(())
    }
}

/// A key's file and its certificate's.
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn in_dir(dir: &Path, name: &str) -> Self {
        Self { certificate: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) }
    }

    fn ensure_absent(&self) -> anyhow::Result<()> {
        for path in [&self.certificate, &self.key] {
            let path_shown = path.display();
            ensure!(
                !path.exists(),
                "{path_shown} exists, and is left as it is; move it away to make a new one"
            );
        }
        Ok(())
    }

    fn write(&self, key: &KeyPair, certificate: &str) -> anyhow::Result<()> {
        let mut key_file = Draft::create(&self.key, 0o600)?;
        let mut certificate_file = Draft::create(&self.certificate, 0o644)?;
        write_to(&mut key_file, &self.key, &key.serialize_pem())?;
        write_to(&mut certificate_file, &self.certificate, certificate)?;
        key_file.finish()?;
        certificate_file.finish().inspect_err(|_| {
            // A key alone is of no use, and would be in the way of the next try.
            let _ = std::fs::remove_file(&self.key);
        })
    }
}

/// What signs node certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    not_after: OffsetDateTime,
}

impl Authority {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        let files = Pair::in_dir(dir, "ca");
        if !files.certificate.exists() {
            let dir = dir.display();
            bail!(
                "there is no ca.crt in {dir}; make an authority with aegiskv certs init --dir {dir}"
            );
        }
        let certificate = read(&files.certificate, "the authority's certificate")?;
        let key = String::from_utf8(read(&files.key, "the authority's key")?)
            .with_context(|| format!("{} is not PEM", files.key.display()))?;
        let shown = files.certificate.display();
        let not_pem = || format!("{shown} holds no PEM certificate");
        let (_, pem) = parse_x509_pem(&certificate).with_context(not_pem)?;
        let parsed = pem.parse_x509().with_context(not_pem)?;
        ensure!(parsed.is_ca(), "{shown} is no authority's certificate; is it a node's?");
        let key = KeyPair::from_pem(&key)
            .with_context(|| format!("{} holds no usable key", files.key.display()))?;
        ensure!(
            parsed.public_key().raw == key.subject_public_key_info(),
            "{} is not the key of {shown}; put back the pair that was made together",
            files.key.display()
        );
        let not_after = parsed.validity().not_after.to_datetime();
        ensure!(
            not_after > OffsetDateTime::now_utc(),
            "the authority in {shown} ran out on {}; make a new one in another directory",
            not_after.date()
        );
        let issuer = Issuer::from_ca_cert_der(&pem.contents.as_slice().into(), key)
            .with_context(|| format!("{shown} cannot sign certificates"))?;
        Ok(Self { issuer, not_after })
    }
}

fn write_to(file: &mut Draft, path: &Path, text: &str) -> anyhow::Result<()> {
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn new_key() -> anyhow::Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key")
}

fn validity(days: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BACKDATED, now + Duration::days(days))
}

/// The hosts and addresses that a node's certificate is good for.
fn alternative_names(node: &str, given: &[String]) -> anyhow::Result<Vec<SanType>> {
    let mut names = Vec::new();
    if is_host_name(node) || node.parse::<IpAddr>().is_ok() {
        names.push(alternative_name(node)?);
    }
    for host in given {
        let name = alternative_name(host)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return Err(
            Usage(format!("{node:?} is no host name; name the node's hosts with --san")).into()
        );
    }
    Ok(names)
}

fn alternative_name(host: &str) -> anyhow::Result<SanType> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    if !is_host_name(host.strip_prefix("*.").unwrap_or(host)) {
        return Err(Usage(format!("{host:?} is neither a host name nor an IP address")).into());
    }
    Ok(SanType::DnsName(host.try_into().context("cannot encode the host name")?))
}

/// Whether `text` is a host name (RFC 1123 §2.1).
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn is_file_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !text.is_empty() && !text.starts_with(['.', '-']) && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_addresses() {
        let name = |host| alternative_name(host).expect("the test's host is right");
        assert!(matches!(name("kv1.example.com"), SanType::DnsName(_)));
        assert!(matches!(name("*.example.com"), SanType::DnsName(_)));
        assert!(matches!(name("10.0.0.1"), SanType::IpAddress(_)));
        assert!(matches!(name("fd00::1"), SanType::IpAddress(_)));
        for host in ["", "a..b", "-a", "kv1:7700", "http://kv1", "a b", "*"] {
            assert!(alternative_name(host).is_err(), "{host}");
        }
    }

    #[test]
    fn a_node_name_stays_inside_its_directory() {
        for name in ["", "..", "../x", "a/b", ".hidden", "-x", "a b"] {
            assert!(!is_file_name(name), "{name}");
        }
        assert!(is_file_name("kv-1.example_x"));
    }

    #[test]
    fn a_repeated_host_is_kept_once() {
        let names = alternative_names("kv1", &["kv1".to_owned(), "10.0.0.1".to_owned()]);
        assert_eq!(names.expect("both are hosts").len(), 2);
    }
}
