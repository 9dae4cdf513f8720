//! Integration tests against real servers.
mod suites {
    mod analyzer_deparse;
    mod analyzer_load;
    mod analyzer_plans;
    mod expressions;
}
