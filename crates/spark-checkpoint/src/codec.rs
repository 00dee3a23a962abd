//! How the files of the state are compressed: LZ4 in the blocks of the Java library that Spark uses (not the LZ4 frame format), or zstd.

use perennial_core::error::{Error, Result};
use twox_hash::XxHash32;

use crate::{damaged, refused};

const MAGIC: &[u8; 8] = b"LZ4Block";
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const HEADER: usize = 21;
const STORED: u8 = 0x10;
const COMPRESSED: u8 = 0x20;
const SEED: u32 = 0x9747_b28c;
/// Of 32 KiB, as Spark's: their level is 5, for 1024 << 5.
const BLOCK_BYTES: usize = 32 << 10;
const LEVEL: u8 = 5;

/// `spark.sql.streaming.stateStore.compression.codec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Lz4,
    Zstd,
}

impl Codec {
    pub(crate) fn parse(name: &str) -> Result<Self> {
        match name {
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            other => Err(refused(format!("the state is compressed with `{other}`; lz4 and zstd can be read"))),
        }
    }

    /// What is in a file. `path` is for messages.
    pub(crate) fn decompress(self, path: &str, bytes: &[u8]) -> Result<Vec<u8>> {
        match self {
            Self::Lz4 => read_blocks(bytes).map_err(|what| damaged(path, what)),
            Self::Zstd if !bytes.starts_with(&ZSTD_MAGIC) => Err(damaged(path, "it is not compressed with zstd")),
            Self::Zstd => zstd::decode_all(bytes).map_err(|error| damaged(path, format!("zstd: {error}"))),
        }
    }

    pub(crate) fn compress(self, bytes: &[u8]) -> Result<Vec<u8>> {
        match self {
            Self::Lz4 => Ok(write_blocks(bytes)),
            Self::Zstd => {
                zstd::encode_all(bytes, 3).map_err(|error| Error::bug(format!("zstd does not compress: {error}")))
            }
        }
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    XxHash32::oneshot(SEED, bytes) & 0x0fff_ffff
}

fn read_blocks(mut bytes: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::new();
    loop {
        if bytes.len() < HEADER {
            return Err("it is torn: its last block is missing");
        }
        let (header, rest) = bytes.split_at(HEADER);
        if !header.starts_with(MAGIC) {
            return Err("it is not a sequence of LZ4 blocks");
        }
        let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (token, stored, original, sum) = (header[8], number(9) as usize, number(13) as usize, number(17));
        if stored == 0 && original == 0 {
            return if !rest.is_empty() {
                Err("something stands behind its last block")
            } else if sum == 0 {
                Ok(out)
            } else {
                Err("its last block is damaged")
            };
        }
        if rest.len() < stored || original > 1 << (10 + (token & 0x0f)) {
            return Err("it is torn, or the length of a block is damaged");
        }
        let (block, rest) = rest.split_at(stored);
        let start = out.len();
        match token & 0xf0 {
            STORED if stored == original => out.extend_from_slice(block),
            COMPRESSED => {
                out.resize(start + original, 0);
                match lz4_flex::block::decompress_into(block, &mut out[start..]) {
                    Ok(length) if length == original => {}
                    _ => return Err("a block cannot be decompressed"),
                }
            }
            _ => return Err("a block is of an unknown kind"),
        }
        if checksum(&out[start..]) != sum {
            return Err("a block does not fit its checksum");
        }
        bytes = rest;
    }
}

fn write_blocks(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut block = |kind: u8, content: &[u8], original: usize, sum: u32| {
        out.extend_from_slice(MAGIC);
        out.push(kind | LEVEL);
        for number in [content.len() as u32, original as u32, sum] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(content);
    };
    for chunk in bytes.chunks(BLOCK_BYTES) {
        let compressed = lz4_flex::block::compress(chunk);
        match compressed.len() < chunk.len() {
            true => block(COMPRESSED, &compressed, chunk.len(), checksum(chunk)),
            false => block(STORED, chunk, chunk.len(), checksum(chunk)),
        }
    }
    block(STORED, &[], 0, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_compressed_comes_back_and_damage_is_noticed() {
        let text: Vec<u8> = (0..100_000_u32).flat_map(|n| (n / 7 % 251).to_le_bytes()).collect();
        for content in [&text[..], &text[..5], &[]] {
            for codec in [Codec::Lz4, Codec::Zstd] {
                let packed = codec.compress(content).unwrap();
                assert_eq!(codec.decompress("f", &packed).unwrap(), content);
                for cut in [0, 1, packed.len() / 2, packed.len() - 1] {
                    let error = codec.decompress("state/0/1/7.delta", &packed[..cut]).unwrap_err().to_string();
                    assert!(error.contains("state/0/1/7.delta"), "{error}");
                }
            }
            let packed = Codec::Lz4.compress(content).unwrap();
            for at in (0..packed.len()).step_by(1 + packed.len() / 500) {
                let mut flipped = packed.clone();
                flipped[at] ^= 0x10;
                // A flip that changes nothing of the content (where a copy begins among equal bytes) is no damage.
                let read = Codec::Lz4.decompress("f", &flipped).ok();
                assert!(read.is_none_or(|read| read == *content), "a flip at {at}");
            }
        }
        assert!(Codec::parse("snappy").unwrap_err().to_string().contains("snappy"));
    }
}
