//! How long nothing is forwarded while one swd gives way to the next.

use anyhow::{Result, ensure};
use benches::figures::Figures;
use benches::machine::families;
use benches::measure::Path;
use benches::ping::Watch;
use benches::world::{C1, OUTSIDE, World};
use tests::process::{s, wait_until};
use tests::world::Change;

use crate::Size;
use crate::report::Table;

/// UDP flows of each of the two containers, so that there are 100,000 in all.
const FLOWS: u32 = 50_000;

pub(crate) fn table() -> Table {
    Table::new(
        "Gaps of a restart",
        "The longest time between two answers to pings each millisecond, from a container to the outside and to another container, while swd is replaced. \
         `tracked` are connections that the next one has taken over.",
        "100 ms for `--replace`, 1 s for the others, 2 s with 100,000 connections",
        &[
            ("quiet_ms", "before, ms"),
            ("out_ms", "to the outside, ms"),
            ("between_ms", "to a container, ms"),
            ("tracked", "tracked"),
        ],
    )
}

pub(crate) fn run(size: &Size, table: &mut Table) -> Result<()> {
    let mut world = World::new(&[], "")?;
    for _ in 0..size.rounds {
        for change in Change::ALL {
            let bar: fn(&Figures) -> bool = match change {
                Change::Replace => |f: &Figures| below(f, 100.0),
                Change::Terminate | Change::Kill => |f: &Figures| below(f, 1000.0),
            };
            table.add(name(change), gap(size, &mut world, change)?, Some(bar));
        }
    }
    if size.quick {
        return Ok(());
    }
    for _ in 0..size.rounds {
        for change in Change::ALL {
            fill(size, &world)?;
            let figures = gap(size, &mut world, change)?;
            let tracked = figures.get("tracked").unwrap_or(0.0);
            ensure!(tracked >= f64::from(FLOWS) * 1.9, "{tracked} connections were taken over only");
            let what = format!("{}, 100,000 connections", name(change));
            table.add(&what, figures, Some(|f| below(f, 2000.0)));
        }
    }
    Ok(())
}

fn below(figures: &Figures, milliseconds: f64) -> bool {
    ["out_ms", "between_ms"].iter().all(|gap| figures.get(gap).is_some_and(|gap| gap < milliseconds))
}

const fn name(change: Change) -> &'static str {
    match change {
        Change::Terminate => "SIGTERM and start",
        Change::Replace => "`--replace`",
        Change::Kill => "`kill -9` and start",
    }
}

/// Opens the flows anew: with those of before, a container would have all that one may have, and none left for a ping.
fn fill(size: &Size, world: &World) -> Result<()> {
    world.site.ctl(&["conntrack", "flush"]);
    let pids = families(&[world.site.pid()]);
    for (ns, port) in [(&world.c1.ns, 20_000), (&world.c2.ns, 21_000)] {
        let path = Path { server: &world.wan, client: ns, address: OUTSIDE, port, pids: &pids };
        size.meter.flows(path, FLOWS, 20.0)?;
    }
    Ok(())
}

fn gap(size: &Size, world: &mut World, change: Change) -> Result<Figures> {
    let log = |name: &str| size.meter.dir().join(name);
    let out = Watch::start(&world.c1.ns, OUTSIDE, &log("ping-out.log"));
    let between = Watch::start(&world.c2.ns, C1, &log("ping-between.log"));
    out.goes_on();
    let quiet = out.longest_gap(0)?;
    let from = (out.count(), between.count());
    change.happen(&mut world.site);
    out.goes_on();
    between.goes_on();
    let (out, between) = (out.longest_gap(from.0)?, between.longest_gap(from.1)?);
    let tracked = world.site.json(&["status"])["restored"]["connections"].as_f64().unwrap_or(f64::NAN);
    wait_until("the containers are connected", s(10), || world.c1.ns.pings("172.18.0.20"));
    Ok(Figures::from([("quiet_ms", quiet), ("out_ms", out), ("between_ms", between), ("tracked", tracked)]))
}
