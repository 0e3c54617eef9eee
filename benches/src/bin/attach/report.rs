//! The table, for people and for programs: Markdown and JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use benches::figures::{Spread, short};

use crate::{CALLERS, Run, Side, Task};

/// Every task with its title, in the table's order.
const TASKS: [(Task, &str); 12] = [
    (Task::Run, "`docker run -d`"),
    (Task::None, "the same with `--network none`"),
    (Task::Share, "what the network adds: the difference, round by round"),
    (Task::Publish, "`docker run -d -p 5000:80`"),
    (Task::Range, "`docker run -d -p 6000-6099:6000-6099`"),
    (Task::Connect, "`docker network connect`"),
    (Task::Disconnect, "`docker network disconnect`"),
    (Task::Remove, "`docker rm -f`"),
    (Task::Crowd, "many `docker run -d` at once, for each"),
    (Task::Attach, "a bare namespace: `swctl attach`, or seven `ip` commands"),
    (Task::Detach, "`swctl detach`, or `ip link del`"),
    (Task::AttachCrowd, "many bare namespaces at once, for each"),
];

/// Writes `attach.md` and `attach.json` into a folder; gives the text.
pub(crate) fn write(folder: &Path, run: &Run) -> Result<String> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let save = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    save("attach.json", &format!("{}\n", serde_json::to_string_pretty(run)?))?;
    let mut text = format!(
        "# Time per attach\n\n\
         Written by `make bench-attach`; not edited by hand. {}; {}.\n\n\
         Two engines side by side, each on a host of its own: one with swd as its network driver and Docker's rules off \
         (as in [docker.md](../docker.md)), one with Docker's bridge driver as it comes, with iptables and the userland proxy. \
         Milliseconds from starting the command to its end: median [least–greatest] of {} rounds in turn (bare namespaces: three times as many). \
         \"At once\" is {} of them by {CALLERS} callers.\n\n\
         | | swd | bridge | swd × bridge |\n|---|---|---|---|\n",
        run.machine.sentence(),
        run.engine,
        run.rounds,
        run.crowd,
    );
    for (task, title) in TASKS {
        let of = |side: Side| {
            Spread::of(run.samples.iter().filter(|s| s.side == side && s.task == task).map(|s| s.ms))
        };
        let (Some(swd), Some(bridge)) = (of(Side::Swd), of(Side::Bridge)) else { continue };
        let ratio = short(swd.median / bridge.median);
        let _ = writeln!(text, "| {title} | {} | {} | {ratio} |", swd.show(), bridge.show());
    }
    save("attach.md", &text)?;
    Ok(text)
}
