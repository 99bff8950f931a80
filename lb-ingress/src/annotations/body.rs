//! Bodies: `proxy-body-size`, `proxy-buffering`, `proxy-request-buffering`, `proxy-buffer-size`.

use super::reader::Reader;
use crate::routes::policy::Body;

pub(super) fn read(reader: &mut Reader<'_>) -> Body {
    let default = Body::default();
    let max_request = match reader.size("proxy-body-size") {
        Some(0) => None,
        Some(size) => Some(size),
        None => default.max_request,
    };
    let max_response_header = reader.size("proxy-buffer-size").map_or(default.max_response_header, |size| {
        // The proxy has a limit of its own. A smaller one only breaks backends.
        u32::try_from(size).unwrap_or(u32::MAX).max(default.max_response_header)
    });
    Body {
        max_request,
        max_response_header,
        buffer_request: reader.switch("proxy-request-buffering").unwrap_or(default.buffer_request),
        buffer_response: reader.switch("proxy-buffering").unwrap_or(default.buffer_response),
    }
}
