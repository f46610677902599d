#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pclive_fuzz::answers(bytes));
