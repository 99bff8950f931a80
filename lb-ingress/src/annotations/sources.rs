//! Client addresses: `allowlist-source-range`, `whitelist-source-range`, `denylist-source-range`,
//! `satisfy`.

use super::reader::Reader;
use crate::routes::policy::Sources;

pub(super) fn read(reader: &mut Reader<'_>) -> Sources {
    let old_name = reader.networks("whitelist-source-range");
    let allowed = reader.networks("allowlist-source-range").or(old_name);
    let suffice = match reader.text("satisfy") {
        None | Some("all") => false,
        Some("any") => true,
        Some(other) => {
            reader.bad("satisfy", format_args!("`{other}` is neither any nor all"), "use any or all");
            false
        }
    };
    Sources { allowed, denied: reader.networks("denylist-source-range").unwrap_or_default(), suffice }
}
