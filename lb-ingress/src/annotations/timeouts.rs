//! Time limits: `proxy-connect-timeout`, `proxy-send-timeout`, `proxy-read-timeout`.

use super::reader::Reader;
use crate::routes::policy::Timeouts;

pub(super) fn read(reader: &mut Reader<'_>) -> Timeouts {
    let default = Timeouts::default();
    let mut limit = |name, default| match reader.duration(name) {
        Some(time) if time.is_zero() => {
            reader.bad(name, "0 is no time limit", "use at least one second");
            default
        }
        time => time.unwrap_or(default),
    };
    Timeouts {
        connect: limit("proxy-connect-timeout", default.connect),
        send: limit("proxy-send-timeout", default.send),
        read: limit("proxy-read-timeout", default.read),
    }
}
