//! Plans of queries, as text, and reasons for refusals: the same on every major.

use std::collections::HashMap;

use pgtrickle::analyzer::facts::StreamTable;
use pgtrickle::analyzer::{Analysis, TreeSource, analyze};
use pgtrickle::plan::explain::explain;

use super::analyzer_deparse::{Server, servers};

const SCHEMA: &str = "
    create schema plans;
    set search_path = plans;
    create type mood as enum ('sad', 'ok');
    create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
";
