//! The struct that both sides exchange, and contents from which a reader can tell a torn value.

use bytecheck::CheckBytes;
use rkyv::{AlignedVec, Archive, Deserialize, Serialize};

/// The example struct of mmap-sync.
#[derive(Archive, Deserialize, Serialize, Debug, PartialEq)]
#[archive_attr(derive(CheckBytes))]
pub struct HelloWorld {
    pub version: u32,
    pub messages: Vec<String>,
}

/// Length of the filling of `version`: 0 to 4095, scattered (Knuth's multiplicative hash), and for
/// one version of 64 nine times that, so that the data files keep growing by pages for a while.
pub fn fill_length(version: u32) -> usize {
    let length = (version.wrapping_mul(2_654_435_761) >> 20) as usize;
    length * if version % 64 == 63 { 9 } else { 1 }
}

/// Letter of the filling of `version`; neighbours in the same data file differ.
pub fn fill_letter(version: u32) -> u8 {
    b'a' + (version % 26) as u8
}

/// The one value that belongs to `version`: its number, a filling, its number again.
pub fn hello(version: u32) -> HelloWorld {
    let number = version.to_string();
    let fill = (fill_letter(version) as char)
        .to_string()
        .repeat(fill_length(version));
    HelloWorld {
        version,
        messages: vec![number.clone(), fill, number],
    }
}

/// Whether `value` is exactly `hello(value.version)`.
pub fn is_whole(value: &ArchivedHelloWorld) -> bool {
    let version = value.version;
    let [first, fill, last] = value.messages.as_slice() else {
        return false;
    };
    first.as_str().parse() == Ok(version)
        && last.as_str() == first.as_str()
        && fill.len() == fill_length(version)
        && fill.bytes().all(|byte| byte == fill_letter(version))
}

/// The archive, as `Synchronizer::write` would publish it.
pub fn archive(value: &HelloWorld) -> AlignedVec {
    rkyv::to_bytes::<_, 1024>(value).expect("a HelloWorld can always be archived")
}
