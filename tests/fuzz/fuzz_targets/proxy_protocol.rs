#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hoop_fuzz::proxy::proxy_protocol(data));
