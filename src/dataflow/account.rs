//! What each stream table holds in memory, and the end of one that holds too much.
//!
//! Invariant: everything that an operator keeps is charged to the account of its stream table (a shared arrangement or a
//! source: to nobody's, but to the total), over all workers, and taken back when it is let go. The account that passes
//! its limit is marked; the workers drop its dataflow before they go on, in the middle of an epoch if need be. Figures
//! follow the memory closely enough to stop in time; they are no exact measure of it.
//!
//! ```text
//!  operator ──Held──────────┐
//!  arrangement ─log─▶Ledger─┴─▶ Charge ─▶ Part (explain) + Account (limit) + Accounts (limit of all)
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use super::protocol::{Excess, InstanceId, Limits, PartUsage, Usage, ViewUsage};
use crate::plan::ViewId;
use crate::row::Row;

mod elsewhere;
mod held;

use elsewhere::Elsewhere;
pub use elsewhere::{Marked, Report};
pub(super) use held::Held;

/// Bytes that a row takes on the heap: its shared header and its packed columns, as allocators round them.
pub(super) fn row_bytes(row: &Row) -> i64 {
    ((16 + row.byte_len() + 15) & !15) as i64
}

/// Bytes of an entry of an arrangement by key besides its rows: two handles, time, multiplicity, offsets.
pub(super) const KEYED_ENTRY: i64 = 64;
/// As [`KEYED_ENTRY`] for a set of rows.
pub(super) const SET_ENTRY: i64 = 48;
/// Bytes of an entry of a table or tree of rows: handle, multiplicity, its share of free places.
pub(super) const MAP_ENTRY: i64 = 48;

/// Rows and bytes of one operator's state, over all workers.
#[derive(Debug, Default)]
pub(super) struct Part {
    rows: AtomicI64,
    bytes: AtomicI64,
    /// Records that went into arrangements, and their bytes, as far as the workers' meters have told.
    noted: AtomicI64,
    noted_bytes: AtomicI64,
}

impl Part {
    /// Notes records that went into an arrangement.
    pub fn note(&self, records: i64, bytes: i64) {
        self.noted.fetch_add(records, Ordering::Relaxed);
        self.noted_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Records that were noted, and their bytes.
    pub fn noted(&self) -> (i64, i64) {
        (self.noted.load(Ordering::Relaxed), self.noted_bytes.load(Ordering::Relaxed))
    }

    pub fn usage(&self) -> Usage {
        let known = |value: &AtomicI64| u64::try_from(value.load(Ordering::Relaxed)).unwrap_or(0);
        Usage { rows: known(&self.rows), bytes: known(&self.bytes) }
    }
}

/// Which operator of a plan (its place in a walk from the top), and which part of its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub operator: usize,
    pub role: &'static str,
}

struct Listed {
    place: Place,
    shared: bool,
    part: Arc<Part>,
}

const WITHIN: u8 = 0;
const BYTES: u8 = 1;
const PAIRS: u8 = 2;
const TOTAL: u8 = 3;

/// The account of one installed stream table.
pub(super) struct Account {
    view: ViewId,
    /// Which installation: every worker counts them alike.
    installation: u64,
    /// Workers that have it open. Until the last of them has let go, what it holds counts as leaving.
    users: AtomicU64,
    bytes: AtomicI64,
    limit: AtomicU64,
    /// Pairs that joins made in the open epoch.
    pairs: AtomicU64,
    pair_limit: AtomicU64,
    excess: AtomicU8,
    /// What was passed in another process.
    reason: OnceLock<Excess>,
    /// What was held then: workers let go of it before all of them have looked.
    marked_with: OnceLock<ViewUsage>,
    parts: Mutex<Vec<Listed>>,
    accounts: Accounts,
}

/// All accounts of an engine.
#[derive(Clone)]
pub(super) struct Accounts(Arc<Inner>);

struct Inner {
    views: Mutex<BTreeMap<ViewId, Arc<Account>>>,
    sources: Mutex<BTreeMap<InstanceId, Arc<Part>>>,
    /// Shared arrangements, by the hash of their definition; kept only as long as somebody uses them.
    shared: Mutex<BTreeMap<u64, Weak<Part>>>,
    total: AtomicI64,
    limit: u64,
    /// Raised whenever an account is marked.
    marks: AtomicU64,
    /// Said once: the limit is passed by what belongs to no stream table.
    told: AtomicBool,
    /// What the other processes of a cluster hold.
    elsewhere: Elsewhere,
}

fn own(account: &Arc<Account>) -> u64 {
    u64::try_from(account.bytes.load(Ordering::Relaxed)).unwrap_or(0)
}

/// A thread that panicked with the lock has ended the engine already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Accounts {
    /// `limit`: bytes that all state together may take.
    pub fn new(limit: u64) -> Accounts {
        Accounts(Arc::new(Inner {
            views: Mutex::default(),
            sources: Mutex::default(),
            shared: Mutex::default(),
            total: AtomicI64::new(0),
            limit,
            marks: AtomicU64::new(0),
            told: AtomicBool::new(false),
            elsewhere: Elsewhere::default(),
        }))
    }

    /// The account of an installation: the first worker that comes opens it.
    pub fn open(&self, view: ViewId, installation: u64, limits: Limits) -> Arc<Account> {
        let mut views = lock(&self.0.views);
        if let Some(account) = views.get(&view).filter(|a| a.installation >= installation) {
            account.users.fetch_add(1, Ordering::Relaxed);
            return account.clone();
        }
        let account = Arc::new(Account {
            view,
            installation,
            users: AtomicU64::new(1),
            bytes: AtomicI64::new(0),
            limit: AtomicU64::new(limits.bytes),
            pairs: AtomicU64::new(0),
            pair_limit: AtomicU64::new(limits.pairs),
            excess: AtomicU8::new(WITHIN),
            reason: OnceLock::new(),
            marked_with: OnceLock::new(),
            parts: Mutex::default(),
            accounts: self.clone(),
        });
        views.insert(view, account.clone());
        drop(views);
        self.mark_early(&account);
        account
    }

    /// One worker lets go of an installation.
    pub fn close(&self, account: &Account) {
        let mut views = lock(&self.0.views);
        let last = account.users.fetch_sub(1, Ordering::Relaxed) == 1;
        if last && views.get(&account.view).is_some_and(|a| a.installation == account.installation) {
            views.remove(&account.view);
        }
    }

    pub fn source(&self, instance: InstanceId) -> Arc<Part> {
        lock(&self.0.sources).entry(instance).or_default().clone()
    }

    pub fn forget_source(&self, instance: InstanceId) {
        lock(&self.0.sources).remove(&instance);
    }

    /// The part of a shared arrangement.
    pub fn shared(&self, definition: u64) -> Arc<Part> {
        let mut shared = lock(&self.0.shared);
        shared.retain(|_, part| part.strong_count() > 0);
        if let Some(part) = shared.get(&definition).and_then(Weak::upgrade) {
            return part;
        }
        let part = Arc::<Part>::default();
        shared.insert(definition, Arc::downgrade(&part));
        part
    }

    /// Charges nobody's state: what stream tables share.
    pub fn common(&self, part: Arc<Part>) -> Charge {
        Charge { part, account: None, accounts: self.clone() }
    }

    /// How often an account was marked so far.
    pub fn marks(&self) -> u64 {
        self.0.marks.load(Ordering::Acquire)
    }

    /// Everything that is held.
    pub fn total(&self) -> u64 {
        u64::try_from(self.0.total.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// What every stream table holds now, operator by operator.
    pub fn usage(&self) -> Vec<ViewUsage> {
        let views: Vec<_> = lock(&self.0.views).values().cloned().collect();
        views.iter().map(|account| account.usage()).collect()
    }

    /// Whether more is held than may be, also when all that were marked are gone.
    pub fn is_too_much(&self) -> bool {
        self.remains_too_much(&lock(&self.0.views))
    }

    fn remains_too_much(&self, views: &BTreeMap<ViewId, Arc<Account>>) -> bool {
        let leaving: u64 = views.values().filter(|a| a.is_marked()).map(own).sum();
        self.total().saturating_sub(leaving) > self.0.limit
    }

    /// Marks stream tables until what remains fits: the one with the largest state of its own first.
    fn relieve(&self) {
        let views = lock(&self.0.views);
        if !self.remains_too_much(&views) {
            return;
        }
        match views.values().filter(|a| !a.is_marked() && own(a) > 0).max_by_key(|a| own(a)) {
            Some(largest) => largest.mark(TOTAL),
            None if !self.0.told.swap(true, Ordering::Relaxed) => {
                tracing::warn!(
                    held_mb = self.total() >> 20,
                    limit_mb = self.0.limit >> 20,
                    "the rows of the sources alone are larger than the memory limit"
                );
            }
            None => {}
        }
    }
}

impl Account {
    /// The part at `place`, made by the first who asks.
    pub fn part(&self, place: Place) -> Arc<Part> {
        let mut parts = lock(&self.parts);
        if let Some(known) = parts.iter().find(|l| l.place == place && !l.shared) {
            return known.part.clone();
        }
        let part = Arc::<Part>::default();
        parts.push(Listed { place, shared: false, part: part.clone() });
        part
    }

    /// Lists what the stream table uses together with others.
    pub fn uses(&self, place: Place, part: Arc<Part>) {
        let mut parts = lock(&self.parts);
        if !parts.iter().any(|l| l.place == place && l.shared) {
            parts.push(Listed { place, shared: true, part });
        }
    }

    pub fn charge(self: &Arc<Self>, place: Place) -> Charge {
        Charge { part: self.part(place), account: Some(self.clone()), accounts: self.accounts.clone() }
    }

    pub fn held(self: &Arc<Self>, place: Place) -> Held {
        Held::new(self.charge(place))
    }

    /// Notes pairs that a join has made; `false`: no more are wanted.
    pub fn paired(&self, pairs: u64) -> bool {
        let all = self.pairs.fetch_add(pairs, Ordering::Relaxed) + pairs;
        if all > self.pair_limit.load(Ordering::Relaxed) {
            self.mark(PAIRS);
        }
        !self.is_marked()
    }

    /// Whether it passed a limit. That never changes back.
    pub fn is_marked(&self) -> bool {
        self.excess() != WITHIN
    }

    /// What belongs to no stream table is too much while this one is installed.
    pub fn mark_total(&self) {
        self.mark(TOTAL);
    }
    /// An epoch is complete.
    pub fn completed(&self) {
        self.pairs.store(0, Ordering::Relaxed);
    }

    pub fn set_limits(&self, limits: Limits) {
        self.limit.store(limits.bytes, Ordering::Relaxed);
        self.pair_limit.store(limits.pairs, Ordering::Relaxed);
        self.examine();
    }

    fn examine(&self) {
        let bytes = u64::try_from(self.bytes.load(Ordering::Relaxed)).unwrap_or(0);
        if bytes > self.limit.load(Ordering::Relaxed) {
            self.mark(BYTES);
        }
    }

    fn excess(&self) -> u8 {
        self.excess.load(Ordering::Relaxed)
    }

    fn mark(&self, excess: u8) {
        if self.is_marked() {
            return;
        }
        // Before anybody can see the mark and let go; another thread may have been first.
        let _ = self.marked_with.set(self.usage());
        let marked = self.excess.compare_exchange(WITHIN, excess, Ordering::AcqRel, Ordering::Relaxed);
        if marked.is_ok() {
            self.accounts.0.marks.fetch_add(1, Ordering::Release);
            self.tell();
        }
    }

    /// `Some` if the dataflow has to go.
    pub fn exceeded(&self) -> Option<Excess> {
        let total = self.accounts.total();
        if let Some(reason) = self.reason.get() {
            return Some(*reason);
        }
        match self.excess() {
            BYTES => Some(Excess::State { limit: self.limit.load(Ordering::Relaxed) }),
            PAIRS => Some(Excess::Pairs { limit: self.pair_limit.load(Ordering::Relaxed) }),
            TOTAL => Some(Excess::Total { held: total, limit: self.accounts.0.limit }),
            _ => None,
        }
    }

    /// What was held when the limit was passed.
    pub fn marked_with(&self) -> ViewUsage {
        self.marked_with.get().cloned().unwrap_or_else(|| self.usage())
    }

    pub fn usage(&self) -> ViewUsage {
        let list = |l: &Listed| PartUsage {
            operator: l.place.operator,
            role: l.place.role,
            shared: l.shared,
            usage: l.part.usage(),
        };
        let mut usage = ViewUsage { view: self.view, parts: lock(&self.parts).iter().map(list).collect() };
        self.accounts.0.elsewhere.add_to(&mut usage, self.installation);
        usage
    }
}

/// Where something that is held is counted.
#[derive(Clone)]
pub(super) struct Charge {
    part: Arc<Part>,
    account: Option<Arc<Account>>,
    accounts: Accounts,
}

impl Charge {
    pub fn add(&self, rows: i64, bytes: i64) {
        self.part.rows.fetch_add(rows, Ordering::Relaxed);
        self.part.bytes.fetch_add(bytes, Ordering::Relaxed);
        let total = self.accounts.0.total.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(account) = &self.account {
            account.bytes.fetch_add(bytes, Ordering::Relaxed);
            if bytes > 0 {
                account.examine();
            }
        }
        if bytes > 0 && u64::try_from(total).unwrap_or(0) > self.accounts.0.limit {
            self.accounts.relieve();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { operator: 0, role: "rows" };
    const MUCH: Limits = Limits { bytes: 1 << 40, pairs: 1 << 40 };

    #[test]
    fn an_account_that_passes_its_limit_is_marked_once_and_others_are_not() {
        let accounts = Accounts::new(1 << 40);
        let small = accounts.open(1, 1, Limits { bytes: 1000, pairs: 10 });
        let large = accounts.open(2, 2, MUCH);
        let (mut a, mut b) = (small.held(PLACE), large.held(PLACE));
        a.set(1, 900);
        b.set(1, 5000);
        assert_eq!((small.exceeded(), large.exceeded(), accounts.marks()), (None, None, 0));
        a.set(2, 1100);
        a.set(3, 1300);
        assert_eq!(small.exceeded(), Some(Excess::State { limit: 1000 }));
        assert_eq!((large.exceeded(), accounts.marks()), (None, 1));
    }

    #[test]
    fn when_all_together_is_too_much_the_largest_goes_and_only_as_many_as_needed() {
        let accounts = Accounts::new(1000);
        let [first, second, third] = [1, 2, 3].map(|n| accounts.open(n, n as u64, MUCH));
        let (mut a, mut b, mut c) = (first.held(PLACE), second.held(PLACE), third.held(PLACE));
        a.set(1, 300);
        b.set(1, 500);
        c.set(1, 250);
        assert_eq!(second.exceeded(), Some(Excess::Total { held: 1050, limit: 1000 }));
        assert_eq!((first.exceeded(), third.exceeded()), (None, None));
        drop(b);
        assert_eq!(accounts.total(), 550);
    }

    #[test]
    fn what_one_worker_has_dropped_and_another_not_yet_takes_nobody_else_with_it() {
        let accounts = Accounts::new(1000);
        let here = accounts.open(1, 1, MUCH);
        let there = accounts.open(1, 1, MUCH);
        let other = accounts.open(2, 2, MUCH);
        let (mut a, mut b, mut c) = (here.held(PLACE), there.held(PLACE), other.held(PLACE));
        c.set(1, 100);
        a.set(1, 500);
        b.set(1, 2000);
        assert!(here.exceeded().is_some());
        drop(a);
        accounts.close(&here);
        c.set(2, 200);
        assert_eq!((other.exceeded(), accounts.marks()), (None, 1));
        drop(b);
        accounts.close(&there);
        assert_eq!((accounts.usage().len(), accounts.total()), (1, 200));
    }

    #[test]
    fn a_new_installation_has_an_account_of_its_own_and_all_workers_share_it() {
        let accounts = Accounts::new(1 << 40);
        let old = accounts.open(1, 1, Limits { bytes: 10, pairs: 1 });
        assert!(!old.paired(2));
        let new = accounts.open(1, 2, MUCH);
        assert!(new.paired(2) && new.exceeded().is_none());
        accounts.close(&old);
        assert_eq!(accounts.usage().len(), 1);
        assert!(Arc::ptr_eq(&accounts.open(1, 2, MUCH), &new));
        let mut here = new.held(PLACE);
        let mut there = accounts.open(1, 2, MUCH).held(PLACE);
        here.add(1, 10);
        here.settle();
        there.set(2, 30);
        assert_eq!(new.usage().parts[0].usage, Usage { rows: 3, bytes: 40 });
    }
}
