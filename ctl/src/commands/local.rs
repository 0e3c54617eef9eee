//! The commands that need no running swd: `swctl config check`, `swctl completions`, `swctl man`.

use anyhow::{Context, bail};
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use ctl::config::Config;

use crate::{
    cli::{self, Cli},
    output,
};

/// `swctl config check`.
pub(crate) fn config(command: cli::Config) -> anyhow::Result<()> {
    let cli::Config::Check { file } = command;
    Config::load(&file)?;
    output::print(format!("{}: no mistake found\n", file.display()))
}

/// `swctl completions`.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "swctl", &mut script);
    output::print(script)
}

/// `swctl man`: the page of swctl, or of one of its commands.
pub(crate) fn man(command: &[String]) -> anyhow::Result<()> {
    output::print(page(command)?)
}

fn page(command: &[String]) -> anyhow::Result<Vec<u8>> {
    let mut root = Cli::command();
    root.build();
    let mut about = &root;
    for name in command {
        let Some(found) = about.find_subcommand(name) else {
            bail!("no command '{}'; 'swctl help' lists them", command.join(" "))
        };
        about = found;
    }
    let mut page = Vec::new();
    let version = concat!("swctl ", env!("CARGO_PKG_VERSION"));
    Man::new(about.clone()).source(version).render(&mut page).context("cannot make the page")?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(command: &[&str]) -> String {
        let command: Vec<String> = command.iter().map(ToString::to_string).collect();
        String::from_utf8(page(&command).unwrap()).unwrap()
    }

    #[test]
    fn each_command_has_a_page() {
        assert!(text(&[]).contains(".TH swctl 1"));
        let page = text(&["network", "add"]);
        assert!(page.contains(".TH swctl-network-add 1"), "{page}");
        assert!(page.contains("isolate"), "{page}");
    }

    #[test]
    fn no_page_for_no_command() {
        let error = page(&["network".to_owned(), "eat".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "no command 'network eat'; 'swctl help' lists them");
    }
}
