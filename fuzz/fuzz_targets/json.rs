//! Feeds the decoder `json` of `tests/decoders`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| zex_decoders::decode("json", data));
