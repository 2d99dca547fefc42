//! Configuration files: any bytes are read without a panic, and every byte that is not edited is kept.
#![no_main]

use std::path::Path;

use dtfs::config::{MountsFile, VolumeFile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut mounts = MountsFile::parse(Path::new("dtfs_mounts"), data);
    assert_eq!(mounts.to_bytes(), data);
    let first = mounts.entries().next().map(|entry| (entry.path.clone(), entry.options.clone()));
    if let Some((path, options)) = first {
        // What was read can be written and is read back as the same.
        mounts.remove(&path).expect("an entry that was listed");
        if let Ok(added) = mounts.add(&path, &options) {
            assert_eq!((&added.path, &added.options), (&path, &options));
        }
        let again = MountsFile::parse(Path::new("dtfs_mounts"), &mounts.to_bytes());
        assert_eq!(again.entries().count(), mounts.entries().count());
    }
    let _ = VolumeFile::parse(Path::new("volume.toml"), data);
});
