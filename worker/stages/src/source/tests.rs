//! Tests of splitting.
