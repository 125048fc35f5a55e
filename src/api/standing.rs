//! What the one who asked may do, as long as the request lasts.
//!
//! A batch can be sent and answered for days. Each of its operations is judged by the tokens in
//! force when it begins, so a token that was withdrawn opens nothing more, whatever was begun with
//! it. What is kept of the token is its digest.

use std::sync::Arc;

use hyper::header::HeaderValue;
use parking_lot::Mutex;

use super::client::Node;
use super::problem::{Kind, Problem};
use super::settings::Settings;
use super::tokens::{Digest, Grant, shown_token};

/// Who asked, and what that opened when it was last looked up.
#[derive(Debug)]
pub(super) struct Standing {
    /// The token that the request showed, if it showed one.
    shown: Option<Digest>,
    /// `None` in it: the token is none of theirs.
    judged: Mutex<Option<(Arc<Settings>, Option<Grant>)>>,
}

impl Standing {
    /// Of a request with this `Authorization`.
    pub(super) fn new(authorization: Option<&HeaderValue>) -> Self {
        let shown = authorization.and_then(shown_token).map(Digest::of);
        Self { shown, judged: Mutex::default() }
    }

    /// What it opens by the settings in force.
    ///
    /// # Errors
    /// A [`Problem`] once the token is none that is accepted, or one is asked for and none was
    /// shown.
    pub(super) fn grant(&self, node: &Node) -> Result<Grant, Problem> {
        let in_force = node.settings.load();
        let mut judged = self.judged.lock();
        let known = judged.as_ref().filter(|(by, _)| Arc::ptr_eq(by, &in_force));
        let grant = match known {
            Some((_, grant)) => grant.clone(),
            None => {
                let grant = in_force.tokens.grant(self.shown.as_ref());
                if grant.is_none() {
                    node.metrics.unauthorized.inc();
                }
                *judged = Some((Arc::clone(&in_force), grant.clone()));
                grant
            }
        };
        grant.ok_or_else(|| {
            let detail = match self.shown {
                None => {
                    "a token is asked for since this batch began; send 'Authorization: Bearer \
                         TOKEN' with a token of this cluster"
                }
                Some(_) => {
                    "the token that this batch was sent with is none that this cluster \
                            accepts any more; send what is left with another"
                }
            };
            Problem::new(Kind::Unauthorized, detail)
        })
    }
}
