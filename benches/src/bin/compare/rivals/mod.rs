//! The rivals, each behind one trait.

mod bare_veth;
mod bridge;
mod docker_proxy;
mod open_vswitch;
mod pasta;
mod slirp4netns;
mod swd;
mod vde;

use std::fmt::Debug;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use benches::machine::{families, find_program, first_line};
use tests::process::Background;

use crate::subjects::Road;
use crate::topology::Topology;

/// The name of the rival that all others are held against.
pub(crate) const REFERENCE: &str = "bridge";

/// Something that carries frames between containers, or packets between them and the outside.
pub(crate) trait Rival: Debug {
    /// Short name.
    fn name(&self) -> &'static str;

    /// What it is, and how it is set up, in a line.
    fn about(&self) -> &'static str;

    /// Programs that it needs, each with its Debian package.
    fn needs(&self) -> &'static [(&'static str, &'static str)];

    /// What it can do.
    fn roads(&self) -> &'static [Road];

    /// Its version.
    fn version(&self) -> Result<String>;

    /// Makes it carry. It is torn down when what comes back is dropped; what it left in the namespaces goes with them.
    fn set_up(&self, topology: &Topology) -> Result<Box<dyn Running>>;
}

/// A rival that carries.
pub(crate) trait Running: Debug {
    /// Its processes; none for what the kernel does.
    fn pids(&self) -> Vec<u32>;
}

impl Running for Vec<Background> {
    fn pids(&self) -> Vec<u32> {
        families(&self.iter().map(Background::pid).collect::<Vec<_>>())
    }
}

/// All rivals, in the order of the tables. `arguments` are for swd.
pub(crate) fn all(arguments: &[String]) -> Vec<Box<dyn Rival>> {
    let mut all: Vec<Box<dyn Rival>> = vec![Box::new(bridge::Bridge)];
    for swd in swd::Swd::all(arguments) {
        all.push(Box::new(swd));
    }
    all.extend([
        Box::new(open_vswitch::OpenVswitch) as Box<dyn Rival>,
        Box::new(vde::Vde),
        Box::new(slirp4netns::Slirp4netns),
        Box::new(pasta::Pasta),
        Box::new(docker_proxy::DockerProxy),
        Box::new(bare_veth::BareVeth),
    ]);
    all
}

/// The Debian packages of the programs that a rival needs and this machine does not have.
pub(crate) fn missing(rival: &dyn Rival) -> Vec<&'static str> {
    let missing = rival.needs().iter().filter(|(program, _)| find(program).is_err());
    missing.map(|(_, package)| *package).collect()
}

/// Where a program is: of the system, or unpacked by `install-rivals.sh` beside the build.
fn find(program: &str) -> Result<PathBuf> {
    let unpacked = || {
        let me = std::env::current_exe().ok()?;
        let path = me.parent()?.parent()?.join("rivals").join(program);
        path.is_file().then_some(path)
    };
    find_program(program).or_else(unpacked).with_context(|| format!("no program '{program}'"))
}

/// The first line of a program's `--version`, or of what it prints instead.
fn version_of(program: &str, argument: &str) -> Result<String> {
    Ok(first_line(Command::new(find(program)?).arg(argument)))
}

/// The version of a Debian package, for programs that do not tell theirs.
fn package_version(package: &str) -> String {
    first_line(Command::new("dpkg-query").args(["-W", "-f=${Package} ${Version}", package]))
}
