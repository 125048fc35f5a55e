//! How two nodes introduce themselves: who says what, and what each makes of it.
//!
//! Dialler: hello. Listener: hello. Dialler: a proof for each of its secrets. Listener: welcome,
//! with its own proof. Invariant: neither side goes on before the other proved the secret, and no
//! node is told more than the protocol's version and whether the secret is right before it did.
//! Both sides judge; the listener tells the dialler what it objects to.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::hello::{self, Hello, Identity, Message, Purpose, ReadError};
use super::record::{Opener, Sealer};
use super::refusal::{Objection, Refusal};
use super::secret::{self, Proof, Role, Secrets};

/// The code that tells a dialler that it has reached itself.
const MYSELF: u8 = 0;

/// What one side brings to an introduction.
pub(super) struct Side<'a> {
    pub(super) identity: &'a Identity,
    pub(super) instance: u64,
    pub(super) secrets: &'a Secrets,
    /// What ties the proofs to the TLS session; `None` without TLS, where the secret seals.
    pub(super) binding: Option<&'a [u8]>,
}

/// Why two nodes did not get to talk.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// This side objects.
    #[error(transparent)]
    Objection(#[from] Objection),
    /// The other side objects.
    #[error("{0}")]
    Told(Refusal),
    /// Both sides are this process.
    #[error("this node has dialled itself")]
    Myself,
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => Self::Io(error),
            ReadError::Version(theirs) => Objection::Protocol { theirs }.into(),
            ReadError::Hello(error) => Objection::Hello(error).into(),
        }
    }
}

/// The other side, once it has proved itself.
pub(super) struct Agreed {
    pub(super) identity: Identity,
    pub(super) instance: u64,
    pub(super) purpose: Purpose,
    /// What seals and opens the connection's bytes, if anything needs to.
    pub(super) keys: Option<(Sealer, Opener)>,
}

/// A dialler that has proved itself, and waits to be let in.
pub(super) struct Greeted {
    pub(super) agreed: Agreed,
    welcome: Message,
}

/// Introduces the node that dialled.
pub(super) async fn dial<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    side: &Side<'_>,
    purpose: Purpose,
) -> Result<Agreed, Failure> {
    let ours = side.hello(purpose);
    write(stream, &ours).await?;
    let (message, theirs) = hello::read(stream).await?;
    let them = match message {
        Message::Hello(hello) => hello,
        other => return Err(unexpected(&other)),
    };
    if them.instance == side.instance {
        return Err(Failure::Myself);
    }
    let transcript = secret::transcript(&ours, &theirs, side.binding.unwrap_or_default());
    let proofs = side.secrets.proofs(Role::Dialler, &transcript);
    write(stream, &Message::Proofs(proofs).encode()).await?;
    let proof = match hello::read(stream).await?.0 {
        Message::Welcome(proof) => proof,
        other => return Err(unexpected(&other)),
    };
    let secret = side.secret_of_welcome(proof, &transcript)?;
    judge(side.identity, &them.identity, purpose)?;
    let keys = side.keys(secret, Role::Dialler, &transcript);
    Ok(Agreed { identity: them.identity, instance: them.instance, purpose, keys })
}

/// Introduces the node that was dialled, up to the welcome. `claimed` is who the dialler says it
/// is, also if it turns out not to be let in.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    side: &Side<'_>,
    claimed: &mut Option<Identity>,
) -> Result<Greeted, Failure> {
    let (message, theirs) = hello::read(stream).await?;
    let them = match message {
        Message::Hello(hello) => hello,
        other => return Err(unexpected(&other)),
    };
    if them.instance == side.instance {
        write(stream, &Message::Refused(MYSELF).encode()).await?;
        return Err(Failure::Myself);
    }
    *claimed = Some(them.identity.clone());
    let ours = side.hello(them.purpose);
    write(stream, &ours).await?;
    let proofs = match hello::read(stream).await?.0 {
        Message::Proofs(proofs) => proofs,
        other => return Err(unexpected(&other)),
    };
    let transcript = secret::transcript(&theirs, &ours, side.binding.unwrap_or_default());
    let confirmed = side.confirm(&proofs, &transcript)?;
    judge(side.identity, &them.identity, them.purpose)?;
    let welcome = confirmed.map(|(index, secret)| {
        let index = u8::try_from(index).expect("no more than SECRETS_MAX proofs are decoded");
        (index, secret::prove(secret, Role::Listener, &transcript))
    });
    let secret = confirmed.map(|(_, secret)| secret);
    let keys = side.keys(secret, Role::Listener, &transcript);
    let Hello { identity, instance, purpose, .. } = them;
    let agreed = Agreed { identity, instance, purpose, keys };
    Ok(Greeted { agreed, welcome: Message::Welcome(welcome) })
}

impl Greeted {
    /// Lets the dialler in.
    pub(super) async fn welcome<S: AsyncWrite + Unpin>(
        self,
        stream: &mut S,
    ) -> Result<Agreed, Failure> {
        write(stream, &self.welcome.encode()).await?;
        Ok(self.agreed)
    }
}

/// Tells the dialler why it is not let in.
pub(super) async fn refuse<S: AsyncWrite + Unpin>(
    stream: &mut S,
    refusal: Refusal,
) -> io::Result<()> {
    write(stream, &Message::Refused(refusal.code()).encode()).await
}

impl Side<'_> {
    fn hello(&self, purpose: Purpose) -> Vec<u8> {
        let mut nonce = [0; 32];
        super::fill_random(&mut nonce);
        let identity = self.identity.clone();
        Message::Hello(Hello { identity, instance: self.instance, nonce, purpose }).encode()
    }

    /// The listener's part: what the dialler's proofs are worth.
    fn confirm(
        &self,
        proofs: &[Proof],
        transcript: &[u8],
    ) -> Result<Option<(usize, &[u8])>, Objection> {
        match (self.secrets.is_empty(), proofs.is_empty()) {
            (true, true) => Ok(None),
            (true, false) => Err(Objection::SecretOursMissing),
            (false, true) => Err(Objection::SecretTheirsMissing),
            (false, false) => {
                let confirmed = self.secrets.confirm(proofs, Role::Dialler, transcript);
                confirmed.map(Some).ok_or(Objection::SecretDiffers)
            }
        }
    }

    /// The dialler's part: the secret with which the listener proved itself.
    fn secret_of_welcome(
        &self,
        proof: Option<(u8, Proof)>,
        transcript: &[u8],
    ) -> Result<Option<&[u8]>, Objection> {
        let Some((index, proof)) = proof else {
            return match self.secrets.is_empty() {
                true => Ok(None),
                false => Err(Objection::SecretTheirsMissing),
            };
        };
        self.secrets
            .get(usize::from(index))
            .filter(|secret| secret::is_proved(secret, Role::Listener, transcript, &proof))
            .map(Some)
            .ok_or(Objection::SecretUnproved)
    }

    fn keys(
        &self,
        secret: Option<&[u8]>,
        role: Role,
        transcript: &[u8],
    ) -> Option<(Sealer, Opener)> {
        let secret = secret.filter(|_| self.binding.is_none())?;
        Some(secret::keys(secret, role, transcript))
    }
}

/// Whether the two may talk for that purpose.
fn judge(us: &Identity, them: &Identity, purpose: Purpose) -> Result<(), Objection> {
    if let (Some(ours), Some(theirs)) = (us.cluster_id, them.cluster_id)
        && ours != theirs
    {
        return Err(Objection::Cluster { theirs, ours });
    }
    if us.num_shards != them.num_shards {
        return Err(Objection::Shards { theirs: them.num_shards, ours: us.num_shards });
    }
    match purpose {
        Purpose::Knock => Ok(()),
        Purpose::Link if !them.is_member() => Err(Objection::TheyNotMember),
        Purpose::Link if !us.is_member() => Err(Objection::WeNotMember),
        Purpose::Link => Ok(()),
    }
}

fn unexpected(message: &Message) -> Failure {
    match message {
        Message::Refused(MYSELF) => Failure::Myself,
        Message::Refused(code) => match Refusal::told(*code) {
            Some(refusal) => Failure::Told(refusal),
            None => Objection::Unexpected("refusal of an unknown kind").into(),
        },
        Message::Hello(_) => Objection::Unexpected("hello").into(),
        Message::Proofs(_) => Objection::Unexpected("proof").into(),
        Message::Welcome(_) => Objection::Unexpected("welcome").into(),
    }
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::super::hello::tests::hello;
    use super::*;

    /// Both sides' results of an introduction.
    async fn introduce(
        dialler: &Side<'_>,
        listener: &Side<'_>,
        purpose: Purpose,
    ) -> (Result<Agreed, Failure>, Result<Agreed, Failure>) {
        let (mut here, mut there) = tokio::io::duplex(64);
        let listen = async move {
            match accept(&mut there, listener, &mut None).await {
                Ok(greeted) => greeted.welcome(&mut there).await,
                Err(Failure::Objection(objection)) => {
                    refuse(&mut there, objection.refusal()).await?;
                    Err(objection.into())
                }
                Err(other) => Err(other),
            }
        };
        tokio::join!(dial(&mut here, dialler, purpose), listen)
    }

    fn side<'a>(identity: &'a Identity, instance: u64, secrets: &'a Secrets) -> Side<'a> {
        Side { identity, instance, secrets, binding: None }
    }

    fn secrets(secrets: &[&str]) -> Secrets {
        Secrets::new(secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect())
    }

    /// What both sides object to; the dialler must have been told what the listener found.
    async fn objection(ours: &Identity, theirs: &Identity, purpose: Purpose) -> Objection {
        let open = secrets(&[]);
        let (dialled, accepted) =
            introduce(&side(ours, 1, &open), &side(theirs, 2, &open), purpose).await;
        let Err(Failure::Objection(objection)) = accepted.map(|_| ()) else {
            panic!("the listener has no objection");
        };
        match dialled.map(|_| ()) {
            Err(Failure::Told(told)) => assert_eq!(told, objection.refusal()),
            other => panic!("the dialler was not told: {other:?}"),
        }
        objection
    }

    #[tokio::test]
    async fn both_sides_learn_who_the_other_is_and_seal_only_with_a_secret() {
        let (a, b) = (hello("a").identity, hello("b").identity);
        for (secrets, sealed) in [(secrets(&[]), false), (secrets(&["s"]), true)] {
            let (dialled, accepted) =
                introduce(&side(&a, 1, &secrets), &side(&b, 2, &secrets), Purpose::Link).await;
            let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
            assert_eq!((dialled.identity.name.as_str(), dialled.instance), ("b", 2));
            assert_eq!((accepted.identity.name.as_str(), accepted.instance), ("a", 1));
            assert_eq!((dialled.keys.is_some(), accepted.keys.is_some()), (sealed, sealed));
        }
    }

    #[tokio::test]
    async fn one_common_secret_opens_both_ways() {
        let (a, b) = (hello("a").identity, hello("b").identity);
        let (both, old) = (secrets(&["new", "old"]), secrets(&["old"]));
        for (ours, theirs) in [(&both, &old), (&old, &both)] {
            let (dialled, accepted) =
                introduce(&side(&a, 1, ours), &side(&b, 2, theirs), Purpose::Link).await;
            assert!(dialled.is_ok() && accepted.is_ok());
        }
    }

    #[tokio::test]
    async fn a_secret_that_differs_or_is_missing_opens_neither_way() {
        let (a, b) = (hello("a").identity, hello("b").identity);
        let cases = [
            (secrets(&["x"]), secrets(&["y"]), "it has a gossip_secret that is not"),
            (secrets(&[]), secrets(&["y"]), "it has no gossip_secret"),
            (secrets(&["x"]), secrets(&[]), "it has a gossip_secret and this node has none"),
        ];
        for (ours, theirs, text) in cases {
            let (dialled, accepted) =
                introduce(&side(&a, 1, &ours), &side(&b, 2, &theirs), Purpose::Knock).await;
            assert!(matches!(dialled.map(|_| ()), Err(Failure::Told(Refusal::Secret))), "{text}");
            let objection = accepted.map(|_| ()).unwrap_err().to_string();
            assert!(objection.starts_with(text), "{objection}");
        }
    }

    #[tokio::test]
    async fn a_listener_that_only_claims_to_know_the_secret_is_seen_through() {
        let a = hello("a").identity;
        let known = secrets(&["s"]);
        for (welcome, text) in [
            (Some((0, [0; 32])), "it could not prove"),
            (Some((9, [0; 32])), "it could not prove"),
            (None, "it has no gossip_secret"),
        ] {
            let (mut here, mut there) = tokio::io::duplex(1024);
            let imposter = async move {
                hello::read(&mut there).await.unwrap();
                write(&mut there, &Message::Hello(hello("b")).encode()).await.unwrap();
                hello::read(&mut there).await.unwrap();
                write(&mut there, &Message::Welcome(welcome).encode()).await.unwrap();
            };
            let dialler = side(&a, 1, &known);
            let (dialled, ()) = tokio::join!(dial(&mut here, &dialler, Purpose::Link), imposter);
            let objection = dialled.map(|_| ()).unwrap_err().to_string();
            assert!(objection.starts_with(text), "{objection}");
        }
    }

    #[tokio::test]
    async fn other_clusters_and_other_numbers_of_shards_do_not_mix() {
        let us = hello("a").identity;
        let cluster = Identity { cluster_id: Some(0xab), ..hello("b").identity };
        let found = objection(&us, &cluster, Purpose::Link).await;
        assert!(matches!(found, Objection::Cluster { theirs: 1, ours: 0xab }));
        let shards = Identity { num_shards: 32, cluster_id: None, ..hello("b").identity };
        let found = objection(&us, &shards, Purpose::Knock).await;
        assert!(matches!(found, Objection::Shards { theirs: 16, ours: 32 }));
    }

    #[tokio::test]
    async fn a_newborn_may_knock_but_not_link() {
        let member = hello("a").identity;
        let newborn = Identity { cluster_id: None, node: None, ..hello("b").identity };
        let open = secrets(&[]);
        for (ours, theirs) in [(&member, &newborn), (&newborn, &member), (&newborn, &newborn)] {
            let (dialled, accepted) =
                introduce(&side(ours, 1, &open), &side(theirs, 2, &open), Purpose::Knock).await;
            assert!(dialled.is_ok() && accepted.is_ok());
        }
        let found = objection(&newborn, &member, Purpose::Link).await;
        assert!(matches!(found, Objection::TheyNotMember));
        let found = objection(&member, &newborn, Purpose::Link).await;
        assert!(matches!(found, Objection::WeNotMember));
    }

    #[tokio::test]
    async fn a_node_that_dials_itself_notices() {
        let us = hello("a").identity;
        let open = secrets(&[]);
        let (dialled, accepted) =
            introduce(&side(&us, 1, &open), &side(&us, 1, &open), Purpose::Knock).await;
        assert!(matches!(dialled.map(|_| ()), Err(Failure::Myself)));
        assert!(matches!(accepted.map(|_| ()), Err(Failure::Myself)));
    }
}
