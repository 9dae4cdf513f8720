//! Names of slot and publication: `pgtrickle_<database oid>_<8 hex of install id>_<pipeline>`.

use crate::error::{Error, ErrorKind, Result};

/// The name shared by a pipeline's slot and publication, valid for both without quoting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineNames {
    name: String,
}

impl PipelineNames {
    /// `install` is the install id's text form (a UUID).
    pub fn new(database_oid: u32, install: &str, pipeline: &str) -> Result<PipelineNames> {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if pipeline.is_empty() || pipeline.len() > 20 || !pipeline.chars().all(valid) {
            let message = format!("the pipeline name {pipeline:?} is not of the form [a-z0-9_]{{1,20}}");
            return Err(Error::new(ErrorKind::Config, message));
        }
        let short: String = install.chars().filter(char::is_ascii_hexdigit).take(8).collect();
        if short.len() < 8 {
            return Err(Error::internal("the install id has no 8 hex digits"));
        }
        Ok(PipelineNames { name: format!("pgtrickle_{database_oid}_{}_{pipeline}", short.to_lowercase()) })
    }

    pub fn slot(&self) -> &str {
        &self.name
    }

    pub fn publication(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_a_slot_and_a_bad_pipeline_is_refused() {
        let names = PipelineNames::new(u32::MAX, "3F2504E0-4F89-11D3-9A0C-0305E82C3301", "main").unwrap();
        assert_eq!(names.slot(), "pgtrickle_4294967295_3f2504e0_main");
        assert!(names.slot().len() <= 63);
        assert!(PipelineNames::new(1, "3f2504e0", "Main").is_err());
        assert!(PipelineNames::new(1, "3f2504e0", "").is_err());
    }
}
