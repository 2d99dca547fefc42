//! Lines on the daemon's socket, read by the daemon and by its caller: any bytes are refused or understood.
#![no_main]

use dtfs::control::{Request, parse_request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match parse_request(data) {
        Ok(request) => {
            let line = serde_json::json!({ "v": dtfs::control::VERSION, "request": request });
            assert_eq!(parse_request(line.to_string().as_bytes()), Ok(request));
        }
        Err(failure) => assert!(!failure.message.is_empty()),
    }
    let _ = serde_json::from_slice::<Request>(data);
    let _ = serde_json::from_slice::<dtfs::control::Reply>(data);
});
