//! Whatever bytes a node that knows the secret sends: they are a message, or are refused, and never
//! anything else.
#![no_main]

use aegiskv::wire::{self, Ask, Relayed, Reply};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(envelope) = wire::get_envelope(bytes) {
        let again = wire::get_envelope(&wire::to_vec(&envelope));
        assert_eq!(again.as_ref(), Ok(&envelope));
    }
    if let Ok(ask) = wire::get_ask(bytes) {
        assert_eq!(wire::get::<Ask>(&wire::to_vec(&ask)).as_ref(), Ok(&ask));
    }
    let relayed = Bytes::copy_from_slice(bytes);
    if let Ok((relay, _, body)) = wire::get_relay(&relayed) {
        let again = [wire::to_vec(&relay), body.to_vec()].concat().into();
        assert_eq!(wire::get_relay(&again).map(|(relay, _, body)| (relay, body)), Ok((relay, body)));
    }
    let relayed = Relayed::decode(&relayed);
    assert_eq!(Relayed::decode(&relayed.encode()), relayed);
    if let Ok(reply) = wire::get::<Reply>(bytes) {
        assert_eq!(wire::get::<Reply>(&wire::to_vec(&reply)).as_ref(), Ok(&reply));
    }
});
