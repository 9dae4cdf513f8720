//! Why a test fails, said when it fails: beside its name, and not only where the test binary repeats it at its end.

use std::io::Write;
use std::sync::Once;

/// How much of a reason is said at once; the whole follows at the end. Characters.
const ENOUGH: usize = 700;

/// From now on every panic is said on standard error, past the capture of the test binary.
pub fn are_said_at_once() {
    static SET: Once = Once::new();
    SET.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            let payload = panic.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let what = text.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
            let what: String = what.chars().take(ENOUGH).map(|c| if c == '\n' { ' ' } else { c }).collect();
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            // One write, so that what runs beside does not come between.
            let line = format!("reason: {} at {place}: {what}\n", thread.name().unwrap_or("a worker"));
            let _ = std::io::stderr().write_all(line.as_bytes());
            before(panic);
        }));
    });
}
