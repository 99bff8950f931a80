//! Client addresses: `allowlist-source-range`, `whitelist-source-range`, `denylist-source-range`,
//! `satisfy`.

use super::reader::Reader;
use crate::routes::policy::Sources;

pub(super) fn read(reader: &mut Reader<'_>) -> Sources {
    let old_name = reader.networks("whitelist-source-range");
    let allowed = reader.networks("allowlist-source-range").or(old_name);
    let denied = reader.networks("denylist-source-range").unwrap_or_default();
    Sources { allowed, denied, suffice: reader.either("satisfy", ["any", "all"]).unwrap_or(false) }
}
