//! Requests that wait, in turn by stream table.

use std::collections::{HashMap, VecDeque};

use crate::dataflow::EvaluationRequest;
use crate::plan::ViewId;

/// Hands out the oldest request of the stream table whose turn it is, and none of a stream table that is worked for.
pub(super) struct Queue<T = EvaluationRequest> {
    /// A stream table is here while it has requests or a session works for it.
    waiting: HashMap<ViewId, VecDeque<T>>,
    /// Stream tables with requests for which no session works, in turn.
    ready: VecDeque<ViewId>,
}

/// What says for which stream table it is.
pub(super) trait OfView {
    fn of_view(&self) -> ViewId;
}

impl OfView for EvaluationRequest {
    fn of_view(&self) -> ViewId {
        self.view()
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue { waiting: HashMap::new(), ready: VecDeque::new() }
    }
}

impl<T: OfView> Queue<T> {
    pub fn push(&mut self, request: T) {
        let view = request.of_view();
        let known = self.waiting.contains_key(&view);
        self.waiting.entry(view).or_default().push_back(request);
        if !known {
            self.ready.push_back(view);
        }
    }

    /// The next request, if there is one. Its stream table gets no other session until [`Queue::done`] is told.
    pub fn next(&mut self) -> Option<T> {
        let view = self.ready.pop_front()?;
        self.waiting.get_mut(&view)?.pop_front()
    }

    pub fn done(&mut self, view: ViewId) {
        if self.waiting.get(&view).is_some_and(|w| !w.is_empty()) {
            self.ready.push_back(view);
        } else {
            self.waiting.remove(&view);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl OfView for (ViewId, u32) {
        fn of_view(&self) -> ViewId {
            self.0
        }
    }

    #[test]
    fn stream_tables_take_turns_and_each_has_its_requests_in_order() {
        let mut queue = Queue::default();
        for request in [(1, 1), (1, 2), (1, 3), (2, 4), (3, 5), (2, 6)] {
            queue.push(request);
        }
        let mut served = Vec::new();
        // Two sessions: the first keeps stream table 1 for itself.
        let held = queue.next().unwrap();
        while served.len() < 3 {
            let request = queue.next().unwrap();
            served.push(request);
            queue.done(request.0);
        }
        assert_eq!((held, served), ((1, 1), vec![(2, 4), (3, 5), (2, 6)]));
        assert!(queue.next().is_none(), "stream table 1 is not served twice at once");
        queue.done(1);
        assert_eq!(queue.next(), Some((1, 2)));
        queue.done(1);
        assert_eq!(queue.next(), Some((1, 3)));
        queue.done(1);
        assert!(queue.waiting.is_empty());
    }
}
