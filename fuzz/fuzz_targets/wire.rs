//! Whatever bytes a node that knows the secret sends: they are a message, or are refused, and never
//! anything else.
#![no_main]

use aegiskv::wire::{self, Ask, Reply};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(envelope) = wire::get_envelope(bytes) {
        let again = wire::get_envelope(&wire::to_vec(&envelope));
        assert_eq!(again.as_ref(), Ok(&envelope));
    }
    if let Ok(ask) = wire::get_ask(bytes) {
        assert_eq!(wire::get::<Ask>(&wire::to_vec(&ask)).as_ref(), Ok(&ask));
    }
    if let Ok(reply) = wire::get::<Reply>(bytes) {
        assert_eq!(wire::get::<Reply>(&wire::to_vec(&reply)).as_ref(), Ok(&reply));
    }
});
