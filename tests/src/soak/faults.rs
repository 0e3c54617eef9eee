//! What happens to swd.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::noise::Random;
use crate::process::{ms, s, wait_until};
use crate::site::Way;
use crate::world::{Change, World};

use super::extras::Extras;
use super::garbage::Garbage;

/// One of the things that happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Attach,
    Detach,
    Die,
    Publish,
    Kill,
    Terminate,
    Replace,
    KillKeeper,
    Stand,
    FlapUplink,
    ChangeUplinkAddress,
    FlapPort,
    RenamePort,
    Policy,
    Limits,
    Capture,
    Mirror,
    FlushMacs,
    GarbageFrames,
    GarbageRequests,
}

impl Fault {
    /// Each of them.
    pub(super) const ALL: [Self; 20] = [
        Self::Attach,
        Self::Detach,
        Self::Die,
        Self::Publish,
        Self::Kill,
        Self::Terminate,
        Self::Replace,
        Self::KillKeeper,
        Self::Stand,
        Self::FlapUplink,
        Self::ChangeUplinkAddress,
        Self::FlapPort,
        Self::RenamePort,
        Self::Policy,
        Self::Limits,
        Self::Capture,
        Self::Mirror,
        Self::FlushMacs,
        Self::GarbageFrames,
        Self::GarbageRequests,
    ];

    /// Its name, for the summary.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Die => "container-death",
            Self::Publish => "publish",
            Self::Kill => "kill-9",
            Self::Terminate => "sigterm",
            Self::Replace => "replace",
            Self::KillKeeper => "keeper-killed",
            Self::Stand => "sigstop",
            Self::FlapUplink => "uplink-flap",
            Self::ChangeUplinkAddress => "uplink-address",
            Self::FlapPort => "port-flap",
            Self::RenamePort => "port-renamed",
            Self::Policy => "policy",
            Self::Limits => "limits",
            Self::Capture => "capture",
            Self::Mirror => "mirror",
            Self::FlushMacs => "fdb-flush",
            Self::GarbageFrames => "garbage-frames",
            Self::GarbageRequests => "garbage-requests",
        }
    }

    /// Whether another process is swd afterwards.
    pub(super) const fn is_restart(self) -> bool {
        matches!(self, Self::Kill | Self::Terminate | Self::Replace)
    }

    /// Lets it happen, and what it began end.
    #[track_caller]
    pub(super) fn happen(
        self,
        random: &mut Random,
        world: &mut World,
        extras: &mut Extras,
        garbage: &mut Garbage,
    ) {
        match self {
            Self::Attach => extras.attach(random, world),
            Self::Detach => extras.remove(random, world),
            Self::Die => extras.die(random, world),
            Self::Publish => extras.publish(random, world),
            Self::Kill => Change::Kill.happen(&mut world.site),
            Self::Terminate => Change::Terminate.happen(&mut world.site),
            Self::Replace => Change::Replace.happen(&mut world.site),
            Self::KillKeeper => kill_keeper(world),
            Self::Stand => {
                world.site.signal(Signal::SIGSTOP);
                std::thread::sleep(ms(random.below(500) as u64));
                world.site.signal(Signal::SIGCONT);
            }
            Self::FlapUplink => {
                world.site.host.ip(&["link", "set", "eth0", "down"]);
                std::thread::sleep(ms(random.below(400) as u64));
                world.site.host.ip(&["link", "set", "eth0", "up"]);
                // The kernel forgets it with the link.
                world.site.host.ip(&["route", "replace", "default", "via", "172.16.0.1"]);
            }
            Self::ChangeUplinkAddress => {
                let address = format!("172.16.7.{}/16", 1 + random.byte() % 250);
                world.site.host.ip(&["addr", "add", &address, "dev", "eth0"]);
                std::thread::sleep(ms(random.below(300) as u64));
                world.site.host.ip(&["addr", "del", &address, "dev", "eth0"]);
            }
            Self::FlapPort | Self::RenamePort => change_port(self, random, world, extras),
            Self::Policy => {
                let rule = random.pick(&[["deny", "default", "other"], ["allow", "default", "other"]]);
                world.site.ctl(&rule);
            }
            Self::Limits => limit(random, world, extras),
            Self::Capture => {
                let name = extras.one(random, world);
                let file = world.site.file("capture.pcapng").display().to_string();
                let point = random.pick(&[&name[..], "uplink", "drops", "web"]);
                let log = world.site.file("capture.log");
                let words = ["capture", point, "-w", &file];
                let capture = crate::process::Background::start(&mut world.site.swctl_command(&words), &log);
                std::thread::sleep(ms(100 + random.below(300) as u64));
                // It is killed: swd notices by itself.
                drop(capture);
            }
            Self::Mirror => {
                let name = extras.one(random, world);
                let of = random.pick(&["web", "job"]);
                world.site.ctl(&["mirror", "add", of, &name]);
                std::thread::sleep(ms(random.below(300) as u64));
                world.site.ctl(&["mirror", "rm", of, &name]);
            }
            Self::FlushMacs => drop(world.site.ctl(&["fdb", "flush"])),
            Self::GarbageFrames => {
                let name = extras.one(random, world);
                let networks = world.site.row(&["network", "ls"], "name", "default").expect("the network");
                let gateway = networks["gateway_mac"].as_str().expect("a MAC");
                if random.one_in(2) {
                    world.site.unguard(&[&name]);
                }
                garbage.frames(random, &extras.container(&name).0.ns, gateway);
            }
            Self::GarbageRequests => garbage.requests(random, &world.site),
        }
    }
}

#[track_caller]
fn kill_keeper(world: &World) {
    let old = world.site.keepers();
    for pid in &old {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    wait_until("there is another keeper", s(10), || {
        let new = world.site.keepers();
        !new.is_empty() && new.iter().all(|pid| !old.contains(pid))
    });
    // It has been given everything once swd can be asked again.
    world.site.ctl(&["status"]);
}

/// The switch's end of a container's cable.
#[track_caller]
fn change_port(fault: Fault, random: &mut Random, world: &World, extras: &mut Extras) {
    let name = extras.one(random, world);
    if extras.container(&name).1 == Way::Tap {
        let inside = &extras.container(&name).0.ns;
        inside.ip(&["link", "set", "eth0", "down"]);
        inside.ip(&["link", "set", "eth0", "up"]);
        return;
    }
    let ifname = world.site.port(&name)["ifname"].as_str().expect("a name").to_owned();
    let switch = world.site.switch();
    switch.ip(&["link", "set", &ifname, "down"]);
    std::thread::sleep(ms(random.below(200) as u64));
    let mut called = ifname.clone();
    if fault == Fault::RenamePort {
        called = format!("v-{name}r{}", random.below(90));
        switch.ip(&["link", "set", &ifname, "name", &called]);
    }
    switch.ip(&["link", "set", &called, "up"]);
    wait_until("the port is up, under its name", s(20), || {
        let port = world.site.port(&name);
        port["ifname"] == called.as_str() && port["state"] == "up"
    });
}

#[track_caller]
fn limit(random: &mut Random, world: &World, extras: &mut Extras) {
    let name = extras.one(random, world);
    let limit = random.pick(&[
        ["--rate-in", "5mbit"],
        ["--rate-out", "1mbit"],
        ["--storm", "100pps"],
        ["--max-connections", "10"],
    ]);
    world.site.ctl(&["port", "set", &name, limit[0], limit[1]]);
    std::thread::sleep(ms(random.below(200) as u64));
    world.site.ctl(&["port", "set", &name, limit[0], "none"]);
}
