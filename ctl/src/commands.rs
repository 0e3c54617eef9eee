//! The commands: what each asks of swd, and how it prints the answer.

mod capture;
mod conntrack;
mod events;
mod fdb;
mod inspect;
mod limits;
mod local;
mod mirror;
mod network;
mod policy;
mod port;
mod publish;
mod run;
mod status;
pub(crate) mod top;
mod trace;

use std::process::ExitCode;

use ctl::{api::Action, client::Client};

use crate::{
    cli::{Cli, Command},
    output::Format,
};

/// Runs the command that was given.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let client = Client::new(cli.socket);
    let format = if cli.json { Format::Json } else { Format::Human };
    match cli.command {
        Command::Status => status::status(&client, format).await?,
        Command::Network(command) => network::run(&client, format, command).await?,
        Command::Port(command) => port::run(&client, format, command).await?,
        Command::Attach(attach) => port::attach(&client, format, attach).await?,
        Command::Detach { name } => client.detach(&name).await?,
        Command::Run(command) => return run::run(&client, command).await,
        Command::RunChild { parent, nameservers, search, command } => {
            let names = (!nameservers.is_empty()).then_some(run::Settings { nameservers, search });
            return Ok(run::become_command(parent, names.as_ref(), &command));
        }
        Command::Fdb(command) => fdb::run(&client, format, command).await?,
        Command::Publish(publish) => publish::publish(&client, format, &publish.spec()).await?,
        Command::Unpublish { ports } => client.unpublish(&ports).await?,
        Command::Published => publish::list(&client, format).await?,
        Command::Allow(rule) => policy::add(&client, format, rule.rule(Action::Allow)).await?,
        Command::Deny(rule) => policy::add(&client, format, rule.rule(Action::Deny)).await?,
        Command::Policy { command } => policy::run(&client, format, command).await?,
        Command::Conntrack(command) => conntrack::run(&client, format, command).await?,
        Command::Stats { name } => port::stats(&client, format, name.as_deref()).await?,
        Command::Trace(what) => trace::trace(&client, format, what).await?,
        Command::Capture(what) => return capture::capture(&client, &what).await,
        Command::Mirror(command) => mirror::run(&client, format, command).await?,
        Command::Top { sort, interval } => top::top(&client, sort, interval).await?,
        Command::Inspect { netns } => inspect::inspect(&client, format, &netns).await?,
        Command::Drops { all } => status::drops(&client, format, all).await?,
        Command::Events => events::events(&client, format).await?,
        Command::Config(command) => local::config(command)?,
        Command::Completions { shell } => local::completions(shell)?,
        Command::Man { command } => local::man(&command)?,
    }
    Ok(ExitCode::SUCCESS)
}
