//! The programs under test, loaded privately: nothing pinned, nothing attached.
