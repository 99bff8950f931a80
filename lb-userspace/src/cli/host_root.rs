//! The option `--host-root` of commands that run in a container and use the files and programs of
//! the node.

use std::io;
use std::path::Path;

/// Makes `root` the root folder of this process. All paths and programs that it uses later are
/// those of the node.
pub fn enter(root: &Path) -> io::Result<()> {
    rustix::process::chroot(root).and_then(|()| rustix::process::chdir("/"))?;
    Ok(())
}
