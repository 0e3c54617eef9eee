//! `swctl run`: a command in a network namespace of its own, attached.
//!
//! A namespace belongs to a thread: one makes a new one with `unshare`, swd attaches it by that thread's entry in
//! `/proc`, and the command, started from the same thread, is born in it. So nothing needs a name or a mount, and the
//! namespace is gone with its last process, however that ends: should swctl be killed, the kernel kills the command (see
//! [`child`]), and swd finds the interface gone and cleans up.
//!
//! The command stays in swctl's process group, so the terminal treats both as one job. See [`signals`] for what that
//! means for signals.

mod child;
mod names;
mod namespace;
mod signals;

use std::{
    os::unix::process::ExitStatusExt,
    process::{self, Child, ExitCode, ExitStatus},
};

use anyhow::Context;
use ctl::client::Client;

pub(crate) use self::{child::become_command, names::Settings};
use self::{
    namespace::Namespace,
    signals::{Signal, Signals},
};
use crate::{cli, commands::publish, table};

/// What shells add to the number of the signal that killed a command.
const SIGNALLED: i32 = 128;

/// `swctl run`: the exit code is that of the command.
pub(crate) async fn run(client: &Client, run: cli::Run) -> anyhow::Result<ExitCode> {
    let cli::Run { mut endpoint, no_resolv_conf, command } = run;
    let published = endpoint.publish.clone();

    // First of all: from here on a signal leads to the cleaning up.
    let mut signals = Signals::catch().context("cannot handle signals")?;
    let namespace = Namespace::new()?;
    let name = endpoint.name.get_or_insert_with(|| format!("run-{}", process::id())).clone();
    let spec = endpoint.spec(namespace.path());
    let port = tokio::select! {
        attached = client.attach(&spec) => attached?,
        signal = signals.deadly() => {
            // swd may or may not have come to attach it.
            let _ = client.detach(&name).await;
            return Ok(killed_by(signal));
        }
    };
    if let Err(e) = publish::for_port(client, &port, &published).await {
        detach(client, &name).await;
        return Err(e);
    }

    let names = match no_resolv_conf {
        true => None,
        // A network that is gone takes its names along.
        false => client.network(&port.network).await.ok().as_ref().and_then(names::resolv_conf),
    };
    let code = match namespace.spawn(child::command(&command, names.as_ref())).await {
        Ok(child) => supervise(child, &mut signals).await.map(exit_code),
        Err(e) => Err(e).context("cannot start a process"),
    };
    detach(client, &name).await;
    code
}

/// Takes the interface away, and what was published for it along.
async fn detach(client: &Client, name: &str) {
    match client.detach(name).await {
        Err(e) if !e.is_not_found() => {
            // The command's exit code matters more; and swd itself finds out that the namespace is gone.
            eprintln!("warning: cannot detach {name}: {}", table::printable(&e.to_string()));
        }
        _ => {}
    }
}

/// Waits for the command to end, and forwards signals to it until then.
async fn supervise(mut child: Child, signals: &mut Signals) -> anyhow::Result<ExitStatus> {
    loop {
        // It is reaped here and nowhere else, so a signal forwarded below cannot hit a stranger with its process id.
        if let Some(status) = child.try_wait().context("cannot wait for the command")? {
            return Ok(status);
        }
        match signals.next().await {
            Signal::Child => {}
            Signal::Sent(signal) => signals::send(&child, signal),
            Signal::SharedByTerminal(_) => {}
        }
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, Some(signal)) => killed_by(signal),
        (None, None) => ExitCode::FAILURE,
    }
}

fn killed_by(signal: i32) -> ExitCode {
    ExitCode::from(u8::try_from(SIGNALLED + signal).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        // Wait statuses: the code in the second byte, the signal in the first; 0x80 for a core dump.
        for (status, code) in [(0x0000, 0), (0x0300, 3), (0xff00, 255), (9, 137), (15, 143), (0x8b, 139)] {
            assert_eq!(exit_code(ExitStatus::from_raw(status)), ExitCode::from(code), "{status:#x}");
        }
    }

    #[tokio::test]
    async fn a_command_is_waited_for_and_gets_forwarded_signals() {
        let mut signals = Signals::catch().unwrap();
        let mut command = process::Command::new("sh");
        command.args(["-c", "trap 'exit 7' TERM; kill -TERM $PPID; while :; do sleep 0.05; done"]);
        let child = command.spawn().unwrap();
        assert_eq!(supervise(child, &mut signals).await.unwrap().code(), Some(7));
    }
}
