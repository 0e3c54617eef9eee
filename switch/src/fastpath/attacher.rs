//! Puts ingress programs in force on interfaces of one namespace, when they first have a busy flow.
//!
//! The kernel waits for a grace period of RCU with each program that comes or goes (kernel/bpf/tcx.c), some ten milliseconds under
//! the lock of all interfaces. So a thread does it that nobody waits for, and not for ports that never need it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sys::bpf::{Link, Program};
use crate::sys::netns::NetNs;

enum Errand {
    Attach(u32, usize),
    Release(Vec<Link>),
    Run(Box<dyn FnOnce() + Send>),
}

#[derive(Debug, Default)]
struct Attached {
    /// By interface index, with the number of the program.
    links: HashMap<u32, (usize, Link)>,
    /// Interfaces whose errand is under way, or was in vain.
    asked: HashSet<u32>,
}

/// Which interfaces have which of the programs: one each.
#[derive(Debug)]
pub(super) struct Attacher {
    attached: Arc<Mutex<Attached>>,
    errands: Sender<Errand>,
}

impl Attacher {
    /// Starts the thread. It ends with what is returned here.
    pub(super) fn start(programs: Vec<Program>, netns: NetNs) -> io::Result<Self> {
        let attached: Arc<Mutex<Attached>> = Arc::default();
        let (errands, inbox) = channel();
        let theirs = Arc::clone(&attached);
        std::thread::Builder::new().name("attacher".into()).spawn(move || {
            if let Err(e) = netns.enter_for_good() {
                tracing::warn!("no fast path: cannot enter the namespace: {e}");
                return;
            }
            for errand in inbox {
                match errand {
                    Errand::Attach(ifindex, number) => {
                        let Some(program) = programs.get(number) else { continue };
                        match program.attach_interface(ifindex) {
                            Ok(link) => _ = lock(&theirs).links.insert(ifindex, (number, link)),
                            Err(e) => tracing::debug!("no fast path from interface {ifindex}: {e}"),
                        }
                    }
                    Errand::Release(links) => drop(links),
                    Errand::Run(errand) => errand(),
                }
            }
        })?;
        Ok(Self { attached, errands })
    }

    /// Whether an interface has the program of this number. If not, it gets it soon. Never waits for the kernel.
    pub(super) fn has(&self, ifindex: u32, number: usize) -> bool {
        let mut attached = lock(&self.attached);
        let has = attached.links.get(&ifindex).is_some_and(|(has, _)| *has == number);
        if !has && attached.asked.insert(ifindex) {
            // Without the thread there is no fast path.
            let _ = self.errands.send(Errand::Attach(ifindex, number));
        }
        has
    }

    /// Has the thread do something else that takes its time.
    pub(super) fn run(&self, errand: impl FnOnce() + Send + 'static) {
        let _ = self.errands.send(Errand::Run(Box::new(errand)));
    }

    /// Forgets all other interfaces, which are to be asked for anew. Their programs are in force until [`Attacher::release`].
    pub(super) fn forget(&self, wanted: impl Fn(u32) -> bool) -> Vec<Link> {
        let mut attached = lock(&self.attached);
        attached.asked.retain(|ifindex| wanted(*ifindex));
        attached.links.extract_if(|ifindex, _| !wanted(*ifindex)).map(|(_, (_, link))| link).collect()
    }

    /// Takes programs away, soon.
    pub(super) fn release(&self, links: Vec<Link>) {
        if !links.is_empty() {
            let _ = self.errands.send(Errand::Release(links));
        }
    }

    /// Takes the programs from all other interfaces, soon.
    pub(super) fn keep(&self, wanted: impl Fn(u32) -> bool) {
        self.release(self.forget(wanted));
    }
}

fn lock(attached: &Mutex<Attached>) -> MutexGuard<'_, Attached> {
    attached.lock().unwrap_or_else(PoisonError::into_inner)
}
