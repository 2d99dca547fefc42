//! How hard a body is compressed: as hard as the link is slow.

use std::time::Duration;

/// Levels of zstd that are worth it on a link: above, time grows and bytes hardly shrink.
const LEAST: i32 = 1;
const MOST: i32 = 12;
/// Frames below this take no time that could be measured.
const MEASURED_BYTES: usize = 32 << 10;
/// How much is tried, to see whether a large body shrinks at all.
const SAMPLE_BYTES: usize = 16 << 10;

/// A level that follows the link. A connection takes bytes at once while its buffers have room; it makes us wait when more
/// is to be sent than it carries. So the time that writing takes says both: that there is a backlog, and how slow the link
/// is. While compressing takes less time than writing, a higher level costs nothing.
#[derive(Debug)]
pub(super) struct Squeeze {
    level: i32,
}

impl Squeeze {
    pub(super) fn new() -> Squeeze {
        Squeeze { level: 3 }
    }

    /// The compressed body, when it is worth it. Data that is compressed already is found by a sample.
    pub(super) fn pack(&self, body: &[u8]) -> Option<Vec<u8>> {
        if body.len() > 4 * SAMPLE_BYTES {
            let middle = body.len() / 2;
            let shrinks = [&body[..SAMPLE_BYTES / 2], &body[middle..middle + SAMPLE_BYTES / 2]].iter().any(|sample| {
                zstd::bulk::compress(sample, LEAST).is_ok_and(|packed| packed.len() * 16 < sample.len() * 15)
            });
            if !shrinks {
                return None;
            }
        }
        zstd::bulk::compress(body, self.level).ok()
    }

    /// A body of so many bytes took so long to compress, and its frame so long to write.
    pub(super) fn learn(&mut self, body_bytes: usize, packing: Duration, writing: Duration) {
        if body_bytes < MEASURED_BYTES {
            return;
        }
        if writing > packing * 2 {
            self.level = (self.level + 1).min(MOST);
        } else if packing > writing {
            self.level = (self.level - 1).max(LEAST);
        }
    }

    #[cfg(test)]
    fn level(&self) -> i32 {
        self.level
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_follows_the_link() {
        let mut squeeze = Squeeze::new();
        let (short, long) = (Duration::from_millis(1), Duration::from_millis(50));
        for _ in 0..100 {
            squeeze.learn(1 << 20, short, long);
        }
        assert_eq!(squeeze.level(), MOST, "a slow link");
        squeeze.learn(100, long, short);
        assert_eq!(squeeze.level(), MOST, "small frames say nothing");
        for _ in 0..100 {
            squeeze.learn(1 << 20, long, short);
        }
        assert_eq!(squeeze.level(), LEAST, "a fast link");
    }

    #[test]
    fn what_is_compressed_already_goes_as_it_is() {
        let text: Vec<u8> =
            (0..200_000u32).flat_map(|n| format!("line {} of a text\n", n % 977).into_bytes()).collect();
        let packed = Squeeze::new().pack(&text).unwrap();
        assert!(packed.len() * 4 < text.len());
        let mut bytes = vec![0; 1 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        assert_eq!(Squeeze::new().pack(&bytes), None);
        // Half of it is text: that counts.
        bytes[..512 << 10].copy_from_slice(&text[..512 << 10]);
        assert!(Squeeze::new().pack(&bytes).is_some());
    }
}
