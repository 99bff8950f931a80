//! Placeholder of the property test.
