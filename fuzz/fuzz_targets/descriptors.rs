//! Feeds the decoder `descriptors` of `tests/decoders`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    // libFuzzer ends the process in the panic's hook, and one panic in there is caught on purpose;
    // without its hook it still ends on every panic that is not caught.
    init: std::panic::set_hook(Box::new(|_| {})),
    |data: &[u8]| zex_decoders::decode("descriptors", data)
);
