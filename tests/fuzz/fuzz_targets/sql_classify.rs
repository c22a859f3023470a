#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hoop_fuzz::sql::sql_classify(data));
