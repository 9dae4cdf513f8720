//! State of one group: its size, the images of its key, and one accumulator per aggregate.
//!
//! Invariant: every accumulator can take away exactly what it was given (linear ones by arithmetic, min and max by
//! holding the values), so a group after any history equals the group of the rows it has now.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use smallvec::SmallVec;

use super::account::{MAP_ENTRY, row_bytes};
use crate::kernel;
use crate::plan::expr::Order;
use crate::plan::{Aggregate, AggregateFunction};
use crate::row::accumulate::{FloatSum, IntSum, NumericSum};
use crate::row::fault::Fault;
use crate::row::key::KeyForm;
use crate::row::{Datum, Row, RowBuilder};

/// What the server says of a scalar subquery with several rows (`ExecSetParamPlan`, `ExecScanSubPlan`).
const SEVERAL_ROWS: &[u8] = b"21000:more than one row returned by a subquery used as an expression";

/// One group.
pub(super) struct Group {
    rows: i64,
    /// Images of the key columns with their multiplicity, where equal keys can look different.
    images: Option<BTreeMap<Row, i64>>,
    accumulators: Box<[Accumulator]>,
    /// The row that downstream has.
    pub emitted: Option<Row>,
    /// Already noted in the current epoch.
    pub touched: bool,
    /// Bytes of the images and of the values that accumulators hold.
    pub values: i64,
}

struct Accumulator {
    state: State,
    /// Inputs that are errors, with one of them as the result while there are any.
    errors: BTreeMap<Row, i64>,
    /// For DISTINCT: the images of each key with their counts, in their order.
    distinct: Option<HashMap<Row, Images>>,
}

/// Values that are equal but look different, in the order of their bytes, with their counts.
type Images = SmallVec<[(Row, i64); 1]>;

enum State {
    Count(i64),
    Int(IntSum),
    Numeric(NumericSum),
    Float(FloatSum),
    Extreme(BTreeMap<Ordered, i64>),
    Bool {
        trues: i64,
        falses: i64,
    },
    /// Values with NULLs, one column each.
    Single(BTreeMap<Row, i64>),
}

/// A one-column row under the order of its type; images that compare equal are told apart by their bytes.
struct Ordered {
    order: Order,
    value: Row,
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> Ordering {
        kernel::compare(self.order, self.value.get(0), other.value.get(0))
            .then_with(|| self.value.cmp(&other.value))
    }
}
impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Ordered {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Ordered {}

impl AsRef<Row> for Ordered {
    fn as_ref(&self) -> &Row {
        &self.value
    }
}

impl Group {
    /// Bytes of the group with its key.
    pub fn bytes(&self, key: &Row) -> i64 {
        let own = std::mem::size_of::<Group>() + std::mem::size_of_val(&*self.accumulators);
        let emitted = self.emitted.as_ref().map_or(0, row_bytes);
        16 + own as i64 + row_bytes(key) + emitted + self.values
    }

    pub fn new(aggregates: &[Aggregate], image_columns: Option<&[usize]>) -> Group {
        Group {
            rows: 0,
            images: image_columns.map(|_| BTreeMap::new()),
            accumulators: aggregates.iter().map(Accumulator::new).collect(),
            emitted: None,
            touched: false,
            values: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds `diff` copies of `row`.
    pub fn update(
        &mut self,
        aggregates: &[Aggregate],
        image_columns: Option<&[usize]>,
        row: &Row,
        diff: i64,
    ) {
        self.rows += diff;
        if let (Some(images), Some(columns)) = (&mut self.images, image_columns) {
            self.values += add(images, row.project(columns), diff);
        }
        if aggregates.is_empty() {
            return;
        }
        let datums = row.unpack();
        let at = |column: Option<usize>| column.and_then(|c| datums.get(c).copied());
        for (aggregate, accumulator) in aggregates.iter().zip(self.accumulators.iter_mut()) {
            match at(aggregate.filter) {
                None | Some(Datum::Bool(true)) => {}
                Some(error @ Datum::Error(_)) => {
                    self.values += accumulator.error(error, diff);
                    continue;
                }
                Some(_) => continue,
            }
            self.values += accumulator.update(aggregate, at(aggregate.argument), diff);
        }
    }

    /// The group's output row: key columns (smallest image), then the aggregates.
    pub fn row(&self, key: &Row, aggregates: &[Aggregate]) -> Row {
        let mut row = RowBuilder::default();
        if self.rows < 0 {
            row.push(Datum::Error(b"XX000:a group has a negative number of rows"));
            return row.finish();
        }
        row.extend(self.images.as_ref().and_then(|images| images.keys().next()).unwrap_or(key));
        for (aggregate, accumulator) in aggregates.iter().zip(self.accumulators.iter()) {
            accumulator.result(aggregate.function, &mut row);
        }
        row.finish()
    }
}

/// Adds `diff` copies; returns by how many bytes the map has grown.
fn add<K: Ord + AsRef<Row>>(map: &mut BTreeMap<K, i64>, key: K, diff: i64) -> i64 {
    use std::collections::btree_map::Entry;
    let bytes = MAP_ENTRY + row_bytes(key.as_ref());
    match map.entry(key) {
        Entry::Vacant(slot) => {
            slot.insert(diff);
            bytes
        }
        Entry::Occupied(mut slot) => {
            *slot.get_mut() += diff;
            if *slot.get() == 0 {
                slot.remove();
                return -bytes;
            }
            0
        }
    }
}

impl Accumulator {
    fn new(aggregate: &Aggregate) -> Accumulator {
        use AggregateFunction::*;
        let state = match aggregate.function {
            CountStar | Count => State::Count(0),
            SumInt8 | SumIntNumeric | AvgInt => State::Int(IntSum::default()),
            SumNumeric | AvgNumeric => State::Numeric(NumericSum::default()),
            SumFloat4 | SumFloat8 | AvgFloat4 | AvgFloat8 => State::Float(FloatSum::default()),
            Min(_) | Max(_) => State::Extreme(BTreeMap::new()),
            BoolAnd | BoolOr => State::Bool { trues: 0, falses: 0 },
            Single => State::Single(BTreeMap::new()),
        };
        Accumulator { state, errors: BTreeMap::new(), distinct: aggregate.distinct.map(|_| HashMap::new()) }
    }

    fn error(&mut self, error: Datum<'_>, diff: i64) -> i64 {
        add(&mut self.errors, Row::from_datums([error]), diff)
    }

    /// Returns by how many bytes the held values have grown.
    fn update(&mut self, aggregate: &Aggregate, argument: Option<Datum<'_>>, diff: i64) -> i64 {
        let datum = match (aggregate.function, argument) {
            (AggregateFunction::CountStar, _) => {
                return self.add(aggregate.function, Datum::Bool(true), diff);
            }
            (AggregateFunction::Single, Some(datum)) => {
                return match &mut self.state {
                    State::Single(values) => add(values, Row::from_datums([datum]), diff),
                    _ => 0,
                };
            }
            (_, None | Some(Datum::Null)) => return 0,
            (_, Some(error @ Datum::Error(_))) => return self.error(error, diff),
            (_, Some(datum)) => datum,
        };
        match aggregate.distinct {
            None => self.add(aggregate.function, datum, diff),
            Some(form) => self.add_distinct(aggregate.function, form, datum, diff),
        }
    }

    /// Counts a value once however often it is there. Equal values may look different (1.0, 1.00): the first image in
    /// their order counts, so that the same rows always give the same answer.
    fn add_distinct(
        &mut self,
        function: AggregateFunction,
        form: KeyForm,
        datum: Datum<'_>,
        diff: i64,
    ) -> i64 {
        let mut key = RowBuilder::default();
        form.push(datum, &mut key);
        let key = key.finish();
        let Some(values) = &mut self.distinct else { return 0 };
        let key_bytes = MAP_ENTRY + row_bytes(&key);
        let images = values.entry(key.clone()).or_default();
        let counted =
            |images: &[(Row, i64)]| images.iter().find(|(_, n)| *n > 0).map(|(image, _)| image.clone());
        let mut grown = if images.is_empty() { key_bytes } else { 0 };
        let before = counted(images);
        let image = Row::from_datums([datum]);
        match images.binary_search_by(|(known, _)| known.cmp(&image)) {
            Ok(at) => {
                if let Some((_, count)) = images.get_mut(at) {
                    *count += diff;
                    if *count == 0 {
                        grown -= row_bytes(&image);
                        images.remove(at);
                    }
                }
            }
            Err(at) => {
                grown += row_bytes(&image);
                images.insert(at, (image, diff));
            }
        }
        let after = counted(images);
        if images.is_empty() {
            values.remove(&key);
            grown -= key_bytes;
        }
        if before != after {
            if let Some(before) = before {
                grown += self.add(function, before.get(0), -1);
            }
            if let Some(after) = after {
                grown += self.add(function, after.get(0), 1);
            }
        }
        grown
    }

    fn add(&mut self, function: AggregateFunction, datum: Datum<'_>, diff: i64) -> i64 {
        let mut grown = 0;
        let understood = match (&mut self.state, datum) {
            (State::Count(n), _) => {
                *n += diff;
                true
            }
            (State::Int(sum), Datum::Int(i)) => {
                sum.add(i, diff);
                true
            }
            (State::Numeric(sum), Datum::Text(t)) => sum.add_text(t, diff),
            (State::Float(sum), Datum::Text(t)) => match function {
                AggregateFunction::SumFloat4 | AggregateFunction::AvgFloat4 => sum.add_text4(t, diff),
                _ => sum.add_text(t, diff),
            },
            (State::Extreme(values), datum) => {
                let (AggregateFunction::Min(order) | AggregateFunction::Max(order)) = function else {
                    return 0;
                };
                grown = add(values, Ordered { order, value: Row::from_datums([datum]) }, diff);
                true
            }
            (State::Bool { trues, falses }, Datum::Bool(value)) => {
                *(if value { trues } else { falses }) += diff;
                true
            }
            _ => false,
        };
        match understood {
            true => grown,
            false => self.error(Datum::Error(Fault::WRONG_OPERAND.payload().as_bytes()), diff),
        }
    }

    fn result(&self, function: AggregateFunction, row: &mut RowBuilder) {
        use AggregateFunction::*;
        if let Some(error) = self.errors.keys().next() {
            row.extend(error);
            return;
        }
        let mut text = Vec::new();
        let datum = match (&self.state, function) {
            (State::Count(n), _) => Ok(Datum::Int(*n)),
            (State::Int(sum), SumInt8) => sum.sum_int8().map(|s| s.map_or(Datum::Null, Datum::Int)),
            (State::Int(sum), SumIntNumeric) => Ok(numeric(sum.sum_numeric(), &mut text)),
            (State::Int(sum), _) => sum.avg().map(|n| numeric(n, &mut text)),
            (State::Numeric(sum), SumNumeric) => sum.sum().map(|n| numeric(n, &mut text)),
            (State::Numeric(sum), _) => sum.avg().map(|n| numeric(n, &mut text)),
            (State::Float(sum), SumFloat4) => sum.sum_f32().map(|f| {
                f.map_or(Datum::Null, |f| {
                    crate::row::float::write_f32(f, &mut text);
                    Datum::Text(&text)
                })
            }),
            (State::Float(sum), function) => {
                let value = match function {
                    AvgFloat4 | AvgFloat8 => sum.avg(),
                    _ => sum.sum_f64(),
                };
                value.map(|f| {
                    f.map_or(Datum::Null, |f| {
                        crate::row::float::write_f64(f, &mut text);
                        Datum::Text(&text)
                    })
                })
            }
            (State::Extreme(values), function) => {
                let extreme = match function {
                    Min(_) => values.keys().next(),
                    _ => values.keys().next_back(),
                };
                match extreme {
                    Some(ordered) => row.extend(&ordered.value),
                    None => row.push(Datum::Null),
                }
                return;
            }
            (State::Single(values), _) => {
                let mut rows = values.iter();
                match (rows.next(), rows.next()) {
                    (None, _) => row.push(Datum::Null),
                    (Some((value, 1)), None) => row.extend(value),
                    _ => row.push(Datum::Error(SEVERAL_ROWS)),
                }
                return;
            }
            (State::Bool { trues: 0, falses: 0 }, _) => Ok(Datum::Null),
            (State::Bool { falses, .. }, BoolAnd) => Ok(Datum::Bool(*falses == 0)),
            (State::Bool { trues, .. }, _) => Ok(Datum::Bool(*trues > 0)),
        };
        match datum {
            Ok(datum) => row.push(datum),
            Err(fault) => row.push(Datum::Error(fault.payload().as_bytes())),
        }
    }
}

fn numeric<'a>(value: Option<crate::row::numeric::Numeric>, text: &'a mut Vec<u8>) -> Datum<'a> {
    match value {
        None => Datum::Null,
        Some(n) => {
            n.write(text);
            Datum::Text(text)
        }
    }
}
