//! The version of the running kernel, for expectations that depend on it.

/// Returns whether the kernel is at least this version. The tested kernels have no features of
/// later versions, unlike those of some vendors.
pub fn at_least(major: u32, minor: u32) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}
