//! Failures of scalar arithmetic, as the server reports them.
//!
//! Invariant: a fault's text is `SQLSTATE:message` with the server's own English message, so that it can become the
//! payload of [`super::Datum::Error`] without another word. It carries no row values.

use std::fmt;

/// One failure of a scalar operation (`ereport(ERROR)` in the server's `utils/adt`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fault(&'static str);

impl Fault {
    pub const DIVISION_BY_ZERO: Fault = Fault("22012:division by zero");
    pub const NUMERIC_OVERFLOW: Fault = Fault("22003:value overflows numeric format");
    pub const NUMERIC_FIELD_OVERFLOW: Fault = Fault("22003:numeric field overflow");
    pub const SMALLINT_RANGE: Fault = Fault("22003:smallint out of range");
    pub const INTEGER_RANGE: Fault = Fault("22003:integer out of range");
    pub const BIGINT_RANGE: Fault = Fault("22003:bigint out of range");
    pub const FLOAT_OVERFLOW: Fault = Fault("22003:value out of range: overflow");
    pub const FLOAT_UNDERFLOW: Fault = Fault("22003:value out of range: underflow");
    pub const NAN_TO_SMALLINT: Fault = Fault("0A000:cannot convert NaN to smallint");
    pub const NAN_TO_INTEGER: Fault = Fault("0A000:cannot convert NaN to integer");
    pub const NAN_TO_BIGINT: Fault = Fault("0A000:cannot convert NaN to bigint");
    pub const INFINITY_TO_SMALLINT: Fault = Fault("0A000:cannot convert infinity to smallint");
    pub const INFINITY_TO_INTEGER: Fault = Fault("0A000:cannot convert infinity to integer");
    pub const INFINITY_TO_BIGINT: Fault = Fault("0A000:cannot convert infinity to bigint");
    pub const LIKE_ENDS_WITH_ESCAPE: Fault = Fault("22025:LIKE pattern must not end with escape character");
    pub const INFINITE_DATES: Fault = Fault("22008:cannot subtract infinite dates");
    /// A kernel met a value that its plan can't give it: a bug of the planner, never of the data.
    pub const WRONG_OPERAND: Fault = Fault("XX000:a native expression met an operand of another type");
    /// Where server versions differ, the value is refused rather than guessed.
    pub const ROUND_SCALE: Fault =
        Fault("0A000:round(numeric, n) beyond 2000 digits depends on the server version");

    /// `SQLSTATE:message`.
    pub fn payload(self) -> &'static str {
        self.0
    }

    /// The five characters of the SQLSTATE.
    pub fn sqlstate(self) -> &'static str {
        self.0.split_once(':').map_or("XX000", |(state, _)| state)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
