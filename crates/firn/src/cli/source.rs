//! From the arguments of a command to a machine's disks and files.

use super::context::Context;
use super::snapshots::{self, parse_address};
use super::{luks, nbd, output, restore, snap};
use crate::address::{Address, Image, Target};
use crate::machine::{Machine, Mounted};
use clap::{Args, ValueHint};
use firn_disk::{Error, Result, SharedDisk};
use firn_format::fs;
use firn_format::image::{self, ImageFormat};
use firn_pool::Manifest;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// How to get at the disks and files that an address names.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// In place of ADDRESS: this image file, whatever characters its name has
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Source")]
    image: Option<PathBuf>,
    /// With --image: this layer, as vda2 or vg0/root (repeatable, each inside the one before)
    #[arg(long, value_name = "LAYER", requires = "image", help_heading = "Source")]
    layer: Vec<String>,
    /// With --image: this path
    #[arg(long, value_name = "PATH", requires = "image", help_heading = "Source")]
    path: Option<OsString>,
    /// Let an image stand on files in this folder, too (repeatable)
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Source")]
    allow_backing: Vec<PathBuf>,
    /// Take the files for this format, whatever they begin with
    #[arg(long, value_name = "FORMAT", value_parser = restore::parse_input_format, help_heading = "Source")]
    input_format: Option<ImageFormat>,
    /// Read even what a running QEMU writes to: old and new may be mixed
    #[arg(long, help_heading = "Source")]
    torn: bool,
    /// Show the file system without its journal: the newest files are missing
    #[arg(long, help_heading = "Source")]
    no_replay: bool,
    /// The journal of the file system, where it is on another disk: an image, an address, or #LAYER of the same disks
    #[arg(long, value_name = "ADDRESS", value_hint = ValueHint::FilePath, help_heading = "Source")]
    external_journal: Option<OsString>,
    #[command(flatten)]
    luks: luks::LuksArgs,
}

/// What an address stands for, open.
#[derive(Debug)]
pub struct Source {
    /// The disks, each with its name.
    pub disks: Vec<(String, SharedDisk)>,
    /// The images behind the disks, each with its file; none for a snapshot in the pool.
    pub images: Vec<(PathBuf, image::Image)>,
    /// The snapshot in the pool.
    pub manifest: Option<Manifest>,
}

impl Source {
    /// Opens the disks of `target`.
    ///
    /// # Errors
    /// As [`image::open`] and [`snapshots::pick`].
    pub fn open(context: &Context, target: &Target, options: &image::OpenOptions) -> Result<Self> {
        match target {
            Target::Machine { name, moment } => {
                if context.location().is_err() {
                    let error = Error::not_found(format!("there is no file {name}, and no pool was named"));
                    return Err(error.hint("for a machine in a pool, name the pool by --pool POOL or in FIRN_POOL"));
                }
                let pool = context.open_pool()?;
                let (_, manifest) = snapshots::pick(context, &pool, name, moment.as_ref())?;
                let disk = |record| std::sync::Arc::new(pool.disk(record)) as SharedDisk;
                let disks = manifest.disks.iter().map(|record| (record.name.clone(), disk(record))).collect();
                Ok(Self { disks, images: Vec::new(), manifest: Some(manifest) })
            }
            Target::Images(named) => {
                let open = |Image { file, snapshot }: &Image| {
                    let options = image::OpenOptions { snapshot: snapshot.clone(), ..options.clone() };
                    Ok((file.clone(), image::open(file, &options)?))
                };
                let images = named.iter().map(open).collect::<Result<Vec<_>>>()?;
                let disk = |(number, (_, image)): (usize, &(PathBuf, image::Image))| {
                    (snap::default_name(number), image.disk.clone())
                };
                Ok(Self { disks: images.iter().enumerate().map(disk).collect(), images, manifest: None })
            }
            Target::Uri(uri) => {
                let disks = vec![(snap::default_name(0), nbd::open(uri, options.torn)?)];
                Ok(Self { disks, images: Vec::new(), manifest: None })
            }
        }
    }
}

impl SourceArgs {
    /// The address that was given, in one piece or in parts.
    ///
    /// # Errors
    /// `Invalid` when there is none, or both; otherwise as [`Address::parse`].
    pub fn address(&self, given: Option<&OsStr>) -> Result<Address> {
        match (&self.image, given) {
            (None, Some(text)) => parse_address(text),
            (Some(file), None) => Ok(Address::from_parts(file.clone(), self.layer.clone(), self.path.clone())),
            (None, None) => Err(Error::invalid("no address was given").hint("name an image file or a machine")),
            (Some(_), Some(text)) => {
                let text = text.to_string_lossy();
                Err(Error::invalid(format!("with --image there is no address, but {text:?} was given")))
            }
        }
    }

    /// Whether the address comes by --image.
    pub fn has_image(&self) -> bool {
        self.image.is_some()
    }

    fn image_options(&self) -> image::OpenOptions {
        image::OpenOptions {
            format: self.input_format,
            snapshot: None,
            allow_backing: self.allow_backing.clone(),
            torn: self.torn,
        }
    }

    /// Opens the disks of an address.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open(&self, context: &Context, address: &Address) -> Result<Source> {
        Source::open(context, &address.target, &self.image_options())
    }

    /// Looks at disks, with the keys that were given or, where there are none, asked for.
    ///
    /// # Errors
    /// When a key cannot be read.
    pub fn machine(&self, disks: Vec<(String, SharedDisk)>) -> Result<Machine> {
        let keys = self.luks.keys()?;
        let machine = Machine::with_keys(disks.clone(), &keys);
        let asked = if keys.is_empty() { luks::ask(machine.layers())? } else { None };
        Ok(asked.map_or(machine, |keys| Machine::with_keys(disks, &keys)))
    }

    /// How file systems of `machine` are opened.
    ///
    /// # Errors
    /// When the external journal cannot be found or opened.
    pub fn file_options(&self, context: &Context, machine: &Machine) -> Result<fs::OpenOptions> {
        let journal = self.external_journal.as_ref();
        let external_journal = journal.map(|text| self.journal(context, machine, text)).transpose()?;
        Ok(fs::OpenOptions { replay: !self.no_replay, external_journal })
    }

    fn journal(&self, context: &Context, machine: &Machine, text: &OsStr) -> Result<SharedDisk> {
        let explain = |error: Error| error.context("the external journal");
        if let Some(layers) = text.as_bytes().strip_prefix(b"#") {
            let layers = String::from_utf8_lossy(layers);
            let selectors: Vec<&str> = layers.split('#').collect();
            let found = machine.layers().resolve(&selectors).and_then(|id| machine.layers().disk(id));
            return found.map_err(explain);
        }
        let address = parse_address(text).map_err(explain)?;
        let source = self.open(context, &address).map_err(explain)?;
        match source.disks.as_slice() {
            [(_, disk)] if address.selectors.is_empty() => Ok(disk.clone()),
            _ => {
                let other = self.machine(source.disks)?;
                other.layers().resolve(&address.selectors).and_then(|id| other.layers().disk(id)).map_err(explain)
            }
        }
    }

    /// Opens the file system that an address means; which of several it was is told on stderr.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`Machine::files`].
    pub fn mount(&self, context: &Context, address: &Address) -> Result<Mounted> {
        let machine = self.machine(self.open(context, address)?.disks)?;
        let options = self.file_options(context, &machine)?;
        let mounted = machine.files(&address.selectors, &options)?;
        if !mounted.passed_over.is_empty() && !context.quiet {
            let others = mounted.passed_over.join(", ");
            eprintln!("firn: files of {}; not of {}", output::plain(&mounted.address), output::plain(&others));
        }
        Ok(mounted)
    }
}

/// The path of an address as bytes, the root folder where there is none.
///
/// # Errors
/// `Unsupported` for a path on a drive.
pub fn path_of(address: &Address) -> Result<&[u8]> {
    let path = address.path.as_ref().map_or(b"/".as_slice(), |path| path.as_bytes());
    if path.first() == Some(&b'/') {
        return Ok(path);
    }
    let what = format!("{}: drive letters are not known yet", String::from_utf8_lossy(path));
    Err(Error::unsupported(what).hint("name the partition, and a path from / on"))
}
