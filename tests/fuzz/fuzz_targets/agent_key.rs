#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hoop_fuzz::link::agent_key(data));
