//! The command's process before it is the command.
//!
//! `swctl run` starts itself once more, and that process becomes the command. In between it asks the kernel to be
//! killed when swctl is: a `kill -9` of swctl can be told to nobody else, and would leave the command running in a
//! namespace that nobody knows of. It is the command that dies, not what it has started itself, and the wish ends where
//! the command takes other privileges (a set-user-ID program): prctl(2), `PR_SET_PDEATHSIG`.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    process::{self, Command, ExitCode},
};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Pid, getppid},
};

use super::{Settings, killed_by, table};

/// The hidden command that [`become_command`] is behind.
const SUBCOMMAND: &str = "run-child";
/// The command is there, but cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// There is no such command.
const NOT_FOUND: u8 = 127;

/// The process to start for a command: swctl itself. It must be started by a thread that lives as long as swctl, because
/// the kernel takes that thread for the parent.
pub(super) fn command(words: &[OsString], names: Option<&Settings>) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("swctl").arg(SUBCOMMAND);
    if let Some(Settings { nameservers, search }) = names {
        command.args(nameservers.iter().map(|ip| format!("--nameserver={ip}")));
        command.arg(format!("--search={search}"));
    }
    command.arg(process::id().to_string()).arg("--").args(words);
    command
}

/// Becomes the command; returns only when that is not possible, or swctl (process `parent`) is gone.
pub(crate) fn become_command(parent: i32, names: Option<&Settings>, words: &[OsString]) -> ExitCode {
    let [program, arguments @ ..] = words else { return ExitCode::from(NOT_FOUND) };
    if let Err(e) = prctl::set_pdeathsig(Signal::SIGKILL) {
        eprintln!("error: cannot tie the command to swctl: {}", e.desc());
        return ExitCode::FAILURE;
    }
    // Who died before the wish was made is not followed.
    if getppid() != Pid::from_raw(parent) {
        return killed_by(Signal::SIGKILL as i32);
    }
    if let Some(Err(e)) = names.map(Settings::mount) {
        eprintln!("warning: the command keeps the host's /etc/resolv.conf: {e}");
    }
    let e = Command::new(program).args(arguments).exec();
    eprintln!("error: {}", table::printable(&format!("cannot run '{}': {e}", program.display())));
    ExitCode::from(if e.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_whose_parent_is_gone_does_not_become_the_command() {
        // -1 is nobody's process id. Were it taken for the parent, the whole test program would become `false` and fail.
        let code = become_command(-1, None, &["false".into()]);
        prctl::set_pdeathsig(None).unwrap();
        assert_eq!(code, ExitCode::from(137));
    }

    #[test]
    fn the_command_line_is_kept_as_it_is() {
        let words: Vec<_> =
            command(&["ls".into(), "--json".into()], None).get_args().map(OsString::from).collect();
        let pid = process::id().to_string();
        assert_eq!(words, [SUBCOMMAND, &pid, "--", "ls", "--json"].map(OsString::from));
    }
}
