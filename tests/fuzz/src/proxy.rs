//! How fuzzed bytes enter the reader of PROXY protocol headers. Shared by the fuzz target and by
//! `proto/tests/replay_crashes.rs`.

use hoop_proto::proxy_protocol::{self, Progress, V2_MAX_BYTES};

/// A proxy's header, as far as it is asked for.
pub fn proxy_protocol(data: &[u8]) {
    let mut taken = 0;
    while let Some(bytes) = data.get(..taken) {
        match proxy_protocol::read(bytes) {
            Ok(Progress::Need(more)) => {
                assert!(more > 0, "it waits for nothing");
                taken += more;
                assert!(taken <= V2_MAX_BYTES, "more is asked for than is ever read");
            }
            Ok(Progress::Header(_)) | Err(_) => return,
        }
    }
}
