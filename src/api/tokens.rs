//! Bearer tokens, as both ports ask for them.

use std::fmt;

use subtle::{Choice, ConstantTimeEq};

/// The tokens in force: any of them opens. While there is none, no token is asked for.
#[derive(Clone, Default)]
pub struct Tokens(Vec<Box<[u8]>>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({} of them)", self.0.len())
    }
}

impl Tokens {
    /// Takes the tokens that are accepted, in any order.
    pub fn new<T: AsRef<[u8]>>(tokens: impl IntoIterator<Item = T>) -> Self {
        Self(tokens.into_iter().map(|token| Box::from(token.as_ref())).collect())
    }

    /// Whether no token is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `presented` is one of them. The time taken tells the lengths, nothing else.
    pub fn accept(&self, presented: &[u8]) -> bool {
        self.0.iter().fold(Choice::from(0), |any, token| any | token.ct_eq(presented)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_of_the_tokens_is_accepted_and_nothing_else() {
        let tokens = Tokens::new(["new", "old"]);
        assert!(tokens.accept(b"new") && tokens.accept(b"old"));
        assert!(!tokens.accept(b"") && !tokens.accept(b"ne") && !tokens.accept(b"newold"));
        assert!(!format!("{tokens:?}").contains("new"));
    }
}
