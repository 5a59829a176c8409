//! Both charts: what they render for which values, and what they refuse (`tools/check-charts`, with the harness's own Helm).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_tests::servers::install_helm;
use std::process::Command;

#[test]
fn the_charts_render_what_they_should() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/check-charts");
    let output = Command::new(script).arg(install_helm().unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.trim_end().ends_with(" passed, 0 failed"), "{said}");
}
