//! The fingerprint of a host's key, as people pass it on.

use std::fmt;
use std::str::FromStr;

/// BLAKE3 of a certificate in DER. Written in base32, four groups of 13 letters and digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Fingerprint(pub [u8; 32]);

/// Text that is not a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a fingerprint; dtfs peer show prints that of a host")]
pub struct FingerprintProblem(String);

/// RFC 4648, small.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const DIGITS: usize = 52;
const GROUP: usize = 13;

impl Fingerprint {
    /// That of a certificate.
    pub fn of(certificate: &[u8]) -> Fingerprint {
        Fingerprint(*blake3::hash(certificate).as_bytes())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bit = |at: usize| self.0.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
        let digit = |at: usize| (0..5).fold(0, |value, offset| value << 1 | bit(at * 5 + offset)) as usize;
        let mut text = String::new();
        for at in 0..DIGITS {
            if at > 0 && at % GROUP == 0 {
                text.push('-');
            }
            text.push(char::from(ALPHABET[digit(at)]));
        }
        f.pad(&text)
    }
}

impl FromStr for Fingerprint {
    type Err = FingerprintProblem;

    fn from_str(text: &str) -> Result<Fingerprint, FingerprintProblem> {
        let problem = || FingerprintProblem(text.escape_debug().to_string());
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').map(|b| b.to_ascii_lowercase()).collect();
        if digits.len() != DIGITS {
            return Err(problem());
        }
        let mut bytes = [0; 32];
        for (at, digit) in digits.iter().enumerate() {
            let value = ALPHABET.iter().position(|letter| letter == digit).ok_or_else(problem)?;
            for offset in 0..5 {
                let (place, bit) = (at * 5 + offset, value >> (4 - offset) & 1);
                match bytes.get_mut(place / 8) {
                    Some(byte) => *byte |= (bit as u8) << (7 - place % 8),
                    None if bit == 0 => {}
                    None => return Err(problem()),
                }
            }
        }
        Ok(Fingerprint(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for seed in 0..50u8 {
            let print = Fingerprint::of(&[seed]);
            let text = print.to_string();
            assert_eq!(text.len(), 55);
            assert_eq!(text.parse(), Ok(print));
            assert_eq!(text.to_uppercase().replace('-', "").parse(), Ok(print));
            assert!(text[1..].parse::<Fingerprint>().is_err());
        }
        assert!("a".repeat(51).parse::<Fingerprint>().is_err());
        assert!(("a".repeat(51) + "b").parse::<Fingerprint>().is_err(), "bits beyond the end");
    }
}
