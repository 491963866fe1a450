//! The bytes of a saved state: numbers in little endian, sequences behind their length, KVM's structures as they are in
//! memory. A file holds one version of one program's structures; there is no migration between versions, since a template
//! is made again in a second.
//!
//! ```text
//!  magic (8) │ version (4) │ length of the content (4) │ content │ SHA-256 of all before (32)
//! ```
//!
//! Whatever the bytes are, reading them ends in a value or in an error, and takes memory in proportion to their number.

use sha2::{Digest, Sha256};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const MAGIC: &[u8; 8] = b"BHKD\x00TPL";

/// Changes with everything that is saved.
pub const VERSION: u32 = 1;

/// Longest file. A machine of one vCPU takes about 16 KiB.
pub const MAX_LENGTH: usize = 1 << 20;

const HEADER: usize = MAGIC.len() + 4 + 4;
const DIGEST: usize = 32;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    #[error("saved state is {0} bytes long, which it cannot be")]
    Length(usize),
    #[error("file is no saved state")]
    Magic,
    #[error("saved state has version {0}; this VMM reads {VERSION}")]
    Version(u32),
    #[error("saved state is damaged: its checksum is another")]
    Checksum,
    #[error("saved state ends within {0}")]
    Ends(&'static str),
    #[error("saved state has an impossible value for {0}")]
    Value(&'static str),
    #[error("saved state goes on after its end")]
    Trailing,
}

/// A part of the state.
pub trait Saved: Sized {
    fn save(&self, writer: &mut Writer);
    fn load(reader: &mut Reader<'_>) -> Result<Self, CodecError>;
}

#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn object<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.0.extend_from_slice(value.as_bytes());
    }

    pub fn number(&mut self, value: u64) {
        self.object(&value);
    }

    pub fn flag(&mut self, value: bool) {
        self.object(&u8::from(value));
    }

    /// A sequence, element by element.
    pub fn list<T>(&mut self, values: &[T], mut save: impl FnMut(&mut Self, &T)) {
        self.number(values.len() as u64);
        for value in values {
            save(self, value);
        }
    }

    /// Something that may be missing.
    pub fn option<T>(&mut self, value: Option<&T>, save: impl FnOnce(&mut Self, &T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            save(self, value);
        }
    }
}

#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// `what` is for the error.
    pub fn object<T: FromBytes>(&mut self, what: &'static str) -> Result<T, CodecError> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| CodecError::Ends(what))?;
        self.0 = rest;
        Ok(value)
    }

    pub fn number(&mut self, what: &'static str) -> Result<u64, CodecError> {
        self.object(what)
    }

    pub fn flag(&mut self, what: &'static str) -> Result<bool, CodecError> {
        match self.object::<u8>(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Value(what)),
        }
    }

    /// A sequence of at most `most` elements. Memory is taken as they arrive.
    pub fn list<T>(
        &mut self,
        what: &'static str,
        most: usize,
        mut load: impl FnMut(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Vec<T>, CodecError> {
        let count = usize::try_from(self.number(what)?).map_err(|_| CodecError::Value(what))?;
        if count > most {
            return Err(CodecError::Value(what));
        }
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(load(self)?);
        }
        Ok(values)
    }

    pub fn option<T>(
        &mut self,
        what: &'static str,
        load: impl FnOnce(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Option<T>, CodecError> {
        if self.flag(what)? { load(self).map(Some) } else { Ok(None) }
    }
}

/// The file of a state.
pub fn encode(state: &impl Saved) -> Result<Vec<u8>, CodecError> {
    let mut writer = Writer(MAGIC.to_vec());
    writer.object(&VERSION);
    // The length, as soon as it is known.
    writer.object(&0_u32);
    state.save(&mut writer);
    let mut bytes = writer.0;
    if bytes.len() + DIGEST > MAX_LENGTH {
        return Err(CodecError::Length(bytes.len()));
    }
    let content = u32::try_from(bytes.len() - HEADER).map_err(|_| CodecError::Length(bytes.len()))?;
    bytes[HEADER - 4..HEADER].copy_from_slice(&content.to_le_bytes());
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    Ok(bytes)
}

/// The state in a file.
pub fn decode<T: Saved>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() < HEADER + DIGEST || bytes.len() > MAX_LENGTH {
        return Err(CodecError::Length(bytes.len()));
    }
    let (signed, digest) = bytes.split_at(bytes.len() - DIGEST);
    let mut reader = Reader(signed);
    if reader.object::<[u8; 8]>("its magic")? != *MAGIC {
        return Err(CodecError::Magic);
    }
    // Before the checksum: another version is no damage.
    let version = reader.object::<u32>("its version")?;
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    if reader.object::<u32>("its length")? as usize != reader.0.len() {
        return Err(CodecError::Length(bytes.len()));
    }
    if Sha256::digest(signed).as_slice() != digest {
        return Err(CodecError::Checksum);
    }
    let state = T::load(&mut reader)?;
    if reader.0.is_empty() { Ok(state) } else { Err(CodecError::Trailing) }
}

#[cfg(test)]
pub mod testing {
    use super::*;

    /// The content alone, for tests that damage it behind the checksum's back.
    pub fn content(state: &impl Saved) -> Vec<u8> {
        let mut writer = Writer::default();
        state.save(&mut writer);
        writer.0
    }

    pub fn from_content<T: Saved>(content: &[u8]) -> Result<T, CodecError> {
        T::load(&mut Reader(content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Sample {
        numbers: Vec<u64>,
        word: Option<u16>,
    }

    impl Saved for Sample {
        fn save(&self, writer: &mut Writer) {
            writer.list(&self.numbers, |writer, number| writer.number(*number));
            writer.option(self.word.as_ref(), Writer::object);
        }

        fn load(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
            Ok(Self {
                numbers: reader.list("numbers", 100, |reader| reader.number("a number"))?,
                word: reader.option("word", |reader| reader.object("word"))?,
            })
        }
    }

    fn sample() -> Sample {
        Sample { numbers: vec![1, u64::MAX, 3], word: Some(0x1234) }
    }

    #[test]
    fn a_state_comes_back() {
        let bytes = encode(&sample()).unwrap();
        assert_eq!(decode::<Sample>(&bytes).unwrap(), sample());
        assert_eq!(&bytes[..8], MAGIC);
    }

    #[test]
    fn every_truncated_file_is_refused() {
        let bytes = encode(&sample()).unwrap();
        for length in 0..bytes.len() {
            assert!(decode::<Sample>(&bytes[..length]).is_err(), "{length}");
        }
        assert!(decode::<Sample>(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = encode(&sample()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<Sample>(&damaged).is_err(), "{bit}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = encode(&sample()).unwrap();
        bytes[8] = 9;
        assert_eq!(decode::<Sample>(&bytes), Err(CodecError::Version(9)));
    }

    #[test]
    fn a_list_of_more_than_its_limit_is_refused_before_it_is_read() {
        let long = Sample { numbers: vec![0; 101], word: None };
        assert_eq!(decode::<Sample>(&encode(&long).unwrap()), Err(CodecError::Value("numbers")));
        let mut content = testing::content(&sample());
        content[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(testing::from_content::<Sample>(&content), Err(CodecError::Value("numbers")));
    }
}
