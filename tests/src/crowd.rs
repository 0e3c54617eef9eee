//! Many things at once.

use std::sync::Mutex;
use std::thread;

/// Does `work` with all of them, `callers` at once; gives the results in no particular order.
///
/// # Panics
/// When `work` does.
pub fn at_once<T: Send, R: Send>(callers: usize, all: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let (queue, results) = (Mutex::new(all), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..callers {
            scope.spawn(|| {
                loop {
                    let Some(one) = queue.lock().expect("no panic").pop() else { return };
                    let result = work(one);
                    results.lock().expect("no panic").push(result);
                }
            });
        }
    });
    results.into_inner().expect("no panic")
}
