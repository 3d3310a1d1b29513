//! JSON pointers (RFC 6901), by which messages name a place of a schema.
//!
//! Knows no schema.

/// The pointer of a member of what `pointer` points to.
pub fn child(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}
