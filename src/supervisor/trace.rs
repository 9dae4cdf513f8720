//! Spans of each step on its way: `step` around `receive`, `decode`, `dataflow` and `apply`.
//!
//! They are of the level TRACE under a target of their own, so a log does not have them unless it is asked for; the
//! cargo feature `otel` sends them to a collector. Where nobody listens they cost a comparison. `decode` is entered for
//! each message: its busy time is what decoding took, its length is that of `receive`. Several steps may be applied
//! together: `apply` belongs to the first and follows from the others.

use tracing::{Span, trace_span};

/// The target of all spans here.
pub const TARGET: &str = "pgtrickle::step";

/// What is being received for the next step.
#[derive(Default)]
pub(super) struct Gathering(Option<Received>);

struct Received {
    step: Span,
    /// Open until the step is fed.
    _receive: Span,
    decode: Span,
}

/// A step in the dataflow.
pub(super) struct Computed {
    step: Span,
    _dataflow: Span,
}

impl Gathering {
    /// The span in which a message is decoded; the first one begins the step.
    pub fn decode(&mut self) -> Span {
        let begin = || {
            let step = trace_span!(target: TARGET, parent: None, "step", transactions = tracing::field::Empty, bytes = tracing::field::Empty);
            Received {
                _receive: trace_span!(target: TARGET, parent: &step, "receive"),
                decode: trace_span!(target: TARGET, parent: &step, "decode"),
                step,
            }
        };
        self.0.get_or_insert_with(begin).decode.clone()
    }

    /// What was gathered goes into the dataflow.
    pub fn fed(&mut self, transactions: usize, bytes: usize) -> Computed {
        let step = match self.0.take() {
            Some(received) => received.step,
            None => {
                trace_span!(target: TARGET, parent: None, "step", transactions = tracing::field::Empty, bytes = tracing::field::Empty)
            }
        };
        step.record("transactions", transactions).record("bytes", bytes);
        Computed { _dataflow: trace_span!(target: TARGET, parent: &step, "dataflow"), step }
    }
}

impl Computed {
    /// It is through the dataflow.
    pub fn end(self) -> Span {
        self.step
    }
}

/// The span of the transaction that writes these steps.
pub(super) fn apply(steps: &[Span]) -> Span {
    let Some((first, others)) = steps.split_first() else { return Span::none() };
    let apply = trace_span!(target: TARGET, parent: first, "apply", steps = steps.len());
    for other in others {
        apply.follows_from(other);
    }
    apply
}
