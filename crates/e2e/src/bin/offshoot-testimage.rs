//! Writes the test image to the file named, for trying things by hand.

use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let target = PathBuf::from(
        std::env::args()
            .nth(1)
            .unwrap_or_else(|| "image.tar".into()),
    );
    let testnode = std::env::current_exe()?.with_file_name("offshoot-testnode");
    offshoot_e2e::image::write(&target, &testnode)
}
