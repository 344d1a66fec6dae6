//! A backup as files: a folder, or one tar file.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, BufReader, Read, Write},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::HEXLOWER;

use super::manifest::{Entry, Manifest, NAME, is_plain};

/// Bytes copied at once.
const BLOCK: usize = 1 << 20;

/// No manifest is longer.
const MANIFEST_MAX: u64 = 64 << 20;

/// Where a backup is written to.
pub(super) enum Sink {
    /// A folder.
    Directory(PathBuf),
    /// A tar file.
    Tar(tar::Builder<File>),
}

impl Sink {
    /// Makes the folder or file, in the place of what an earlier attempt may have left.
    pub(super) fn create(path: &Path, is_tar: bool) -> io::Result<Self> {
        remove(path);
        if is_tar {
            Ok(Self::Tar(tar::Builder::new(create_private(path)?)))
        } else {
            DirBuilder::new().mode(0o700).create(path)?;
            Ok(Self::Directory(path.to_owned()))
        }
    }

    /// Copies a file as long as it is now; `None` if there is none.
    pub(super) fn add(&mut self, name: &str, path: &Path) -> io::Result<Option<Entry>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let bytes = file.metadata()?.len();
        let mut reader = Hashing::new(file.take(bytes));
        self.put(name, bytes, &mut reader)?;
        let (read, sha256) = reader.finish();
        if read != bytes {
            return Err(io::Error::other(
                "it became shorter while it was copied; try again",
            ));
        }
        let name = name.to_owned();
        Ok(Some(Entry {
            name,
            bytes,
            sha256,
        }))
    }

    /// Writes the last file and makes all durable.
    pub(super) fn finish(mut self, name: &str, text: &[u8]) -> io::Result<()> {
        self.put(name, text.len() as u64, &mut &text[..])?;
        match self {
            Self::Directory(path) => {
                let output = path.join("output");
                if output.exists() {
                    sync_directory(&output)?;
                }
                sync_directory(&path)
            }
            Self::Tar(tar) => tar.into_inner()?.sync_all(),
        }
    }

    fn put(&mut self, name: &str, bytes: u64, reader: &mut impl Read) -> io::Result<()> {
        match self {
            Self::Directory(path) => write_private(&path.join(name), reader),
            Self::Tar(tar) => {
                let mut header = tar::Header::new_gnu();
                header.set_size(bytes);
                header.set_mode(0o600);
                tar.append_data(&mut header, name, reader)
            }
        }
    }
}

/// Gives a backup that is whole its name, which nothing may have.
pub(super) fn put_in_place(whole: &Path, to: &Path) -> io::Result<()> {
    if whole.is_dir() {
        if to.symlink_metadata().is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(whole, to)?;
    } else {
        // A rename would replace a file that came meanwhile.
        fs::hard_link(whole, to)?;
        fs::remove_file(whole)?;
    }
    sync_directory(super::parent(to))
}

/// Copies what a backup holds to a folder. Returns its manifest, and the other files as they are.
pub(super) fn unpack(from: &Path, staged: &Path) -> io::Result<(Manifest, Vec<Entry>)> {
    if from.is_dir() {
        let text = read_manifest(&mut File::open(from.join(NAME)).map_err(|error| {
            let why =
                format!("{NAME} cannot be read ({error}): it is no backup, or not a whole one");
            io::Error::new(error.kind(), why)
        })?)?;
        let mut found = Vec::new();
        for entry in &text.files {
            if !is_plain(&entry.name) {
                return Err(odd(&entry.name));
            }
            match File::open(from.join(&entry.name)) {
                // Found missing by who compares.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => found.push(take(&entry.name, &mut opened?, staged)?),
            }
        }
        return Ok((text, found));
    }
    let mut manifest = None;
    let mut found = Vec::new();
    let damaged = |error: io::Error| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is no tar file that can be read ({error})"),
        )
    };
    let mut tar = tar::Archive::new(BufReader::with_capacity(BLOCK, File::open(from)?));
    for entry in tar.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = entry
            .path()
            .map_err(damaged)?
            .to_string_lossy()
            .into_owned();
        if name == NAME {
            manifest = Some(read_manifest(&mut entry)?);
        } else if entry.header().entry_type().is_file() && is_plain(&name) {
            found.push(take(&name, &mut entry, staged)?);
        } else {
            return Err(odd(&name));
        }
    }
    let manifest = manifest.ok_or_else(|| {
        let why = format!("it has no {NAME}: it is no backup, or not a whole one");
        io::Error::new(io::ErrorKind::InvalidData, why)
    })?;
    Ok((manifest, found))
}

fn odd(name: &str) -> io::Error {
    let why = format!("it names a file {name:?}, which no backup has");
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn read_manifest(reader: &mut impl Read) -> io::Result<Manifest> {
    let mut text = Vec::new();
    reader.take(MANIFEST_MAX).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|error| {
        let why = format!("{NAME} cannot be read: {error}");
        io::Error::new(io::ErrorKind::InvalidData, why)
    })
}

fn take(name: &str, reader: &mut impl Read, staged: &Path) -> io::Result<Entry> {
    let mut reader = Hashing::new(reader);
    write_private(&staged.join(name), &mut reader)?;
    let (bytes, sha256) = reader.finish();
    Ok(Entry {
        name: name.to_owned(),
        bytes,
        sha256,
    })
}

/// Removes a folder or file that is nobody's any more.
pub(super) fn remove(path: &Path) {
    let _ = fs::remove_dir_all(path).or_else(|_| fs::remove_file(path));
}

/// Makes the names in a folder durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn write_private(path: &Path, reader: &mut impl Read) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
    }
    let mut file = create_private(path)?;
    copy(reader, &mut file)?;
    file.sync_all()
}

fn create_private(path: &Path) -> io::Result<File> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn copy(reader: &mut impl Read, writer: &mut impl Write) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        match reader.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(read) => writer.write_all(&block[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Hashes what passes through it.
struct Hashing<R> {
    reader: R,
    context: Context,
    bytes: u64,
}

impl<R: Read> Hashing<R> {
    fn new(reader: R) -> Self {
        Self {
            reader,
            context: Context::new(&SHA256),
            bytes: 0,
        }
    }

    fn finish(self) -> (u64, String) {
        (self.bytes, HEXLOWER.encode(self.context.finish().as_ref()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.context.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}
