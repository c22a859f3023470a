#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hoop_fuzz::postgres::pg_session_target(data));
