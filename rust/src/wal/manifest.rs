//! The identity of a directory: written once, durable before anything else is.

use crate::env::{Env, Site};
use crate::error::Error;
use crate::types::codec::{Cursor, Stamp, put_u32, put_u64};
use crate::types::{Config, FORMAT_VERSION, PartitionId};

const MAGIC: &[u8; 4] = b"EMAN";
const LEN: usize = 96;
pub const MANIFEST_PATH: &str = "MANIFEST";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub id: [u8; 16],
    /// Signs the session tokens of this directory.
    pub key: [u8; 32],
    pub partitions: u32,
    pub created: i64,
}

impl Manifest {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        Stamp::put(&mut out, MAGIC, FORMAT_VERSION);
        out.extend_from_slice(&self.id);
        put_u32(&mut out, self.partitions);
        put_u32(&mut out, 0);
        put_u64(&mut out, self.created.cast_unsigned());
        out.extend_from_slice(&self.key);
        out.resize(LEN - 8, 0);
        let sum = xxhash_rust::xxh3::xxh3_64(&out);
        put_u64(&mut out, sum);
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        Stamp::check(bytes, MAGIC, FORMAT_VERSION).map_err(|e| e.into_error(MANIFEST_PATH))?;
        let damaged = || Error::corrupted(MANIFEST_PATH, 0, "the checksum does not match");
        let (plain, sum) = bytes.split_at_checked(LEN - 8).ok_or_else(damaged)?;
        if sum != xxhash_rust::xxh3::xxh3_64(plain).to_le_bytes() {
            return Err(damaged());
        }
        let mut c = Cursor::new(&plain[Stamp::LEN..]);
        let id = c.take(16).and_then(|b| b.try_into().ok()).ok_or_else(damaged)?;
        let partitions = c.u32().filter(|n| (1..=256).contains(n)).ok_or_else(damaged)?;
        c.u32();
        let created = c.i64().ok_or_else(damaged)?;
        let key = c.take(32).and_then(|b| b.try_into().ok()).ok_or_else(damaged)?;
        Ok(Self { id, key, partitions, created })
    }

    /// Reads the manifest; None in a directory that holds nothing of ours.
    pub fn read(env: &Env) -> Result<Option<Self>, Error> {
        match env.files.read(MANIFEST_PATH) {
            Ok(bytes) => Self::decode(&bytes).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let held = ["catalogue/log", "partition-000/log"];
                let used = |dir: &&str| env.files.list(dir).is_ok_and(|all| !all.is_empty());
                match held.iter().find(|d| used(d)) {
                    Some(dir) => {
                        Err(Error::corrupted(MANIFEST_PATH, 0, format!("the file is missing, but {dir} holds data")))
                    }
                    None => Ok(None),
                }
            }
            Err(e) => Err(Error::io(MANIFEST_PATH, &e)),
        }
    }

    /// Makes the tree, then the manifest: a directory with a manifest is whole.
    pub fn create(env: &Env, config: &Config) -> Result<Self, Error> {
        let files = &*env.files;
        let io = |path: &str| {
            let path = path.to_owned();
            move |e: std::io::Error| Error::io(&path, &e)
        };
        let mut tree = vec!["catalogue".to_owned(), "catalogue/log".to_owned(), "quarantine".to_owned()];
        for i in 0..config.partitions {
            let dir = partition_dir(PartitionId(i));
            tree.extend([dir.clone(), format!("{dir}/log"), format!("{dir}/rows")]);
        }
        for dir in &tree {
            files.create_dir(dir).map_err(io(dir))?;
        }
        for dir in tree.iter().filter(|d| !d.contains('/')).map(String::as_str).chain([""]) {
            files.sync_dir(dir, Site::TreeDir).map_err(io(dir))?;
        }
        let (mut id, mut key) = ([0; 16], [0; 32]);
        for word in id.chunks_exact_mut(8).chain(key.chunks_exact_mut(8)) {
            word.copy_from_slice(&env.random.next_u64().to_le_bytes());
        }
        let manifest = Self { id, key, partitions: config.partitions, created: env.clock.wall_micros() };
        let tmp = format!("{MANIFEST_PATH}.tmp");
        let file = files.create(&tmp).map_err(io(&tmp))?;
        file.write_at(0, &[&manifest.encode()]).map_err(io(&tmp))?;
        file.sync(Site::ManifestSync).map_err(io(&tmp))?;
        files.rename(&tmp, MANIFEST_PATH, Site::ManifestRename).map_err(io(MANIFEST_PATH))?;
        files.sync_dir("", Site::ManifestDir).map_err(io(MANIFEST_PATH))?;
        Ok(manifest)
    }
}

pub fn partition_dir(id: PartitionId) -> String {
    format!("partition-{:03}", id.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_manifest_counts() {
        let manifest = Manifest { id: [9; 16], key: [5; 32], partitions: 4, created: 77 };
        let mut bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
