//! Feeds the decoder `record` of `tests/decoders`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| zex_decoders::decode("record", data));
