//! Every setting with its value and its origin, and every error at once: what `pgtrickle config check` shows.
//!
//! Invariant: no secret is in it. A connection is shown as host, port and database; what is called a password or a token
//! is shown as `***`. A bad value is noted, left out, and the rest is read again, so that one error hides no other.

use super::{Origin, Sources, options};
use crate::error::Error;

/// A setting as it would be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Key of the configuration file.
    pub key: String,
    /// As it was written, or what the default is; `None`: it has no value.
    pub value: Option<String>,
    pub origin: Origin,
    /// Why it can't be used.
    pub error: Option<String>,
    pub hint: Option<String>,
}

impl Sources {
    /// Reads everything as `run` would, without connecting.
    ///
    /// # Errors
    /// What can't be blamed on a single value, such as a database that is not named, when no value is wrong otherwise;
    /// wrong values are in the answer.
    pub fn check(mut self) -> (Vec<Setting>, Option<Error>) {
        let mut wrong: Vec<Setting> = Vec::new();
        // It has no database.
        if self.logs().is_ok() && self.member().is_ok_and(|member| member.is_some()) {
            return (self.listed(&wrong, |_| None), None);
        }
        loop {
            self.seen.borrow_mut().clear();
            let read = self.logs().and_then(|logs| Ok((logs, self.settings()?)));
            let error = match read {
                Ok((logs, settings)) => {
                    let defaults = |key: &str| match key {
                        "pipeline" => Some(settings.pipeline.value.clone()),
                        "workers" => Some(settings.workers.value.to_string()),
                        "memory_limit" => Some(format!("{}MB", settings.memory_limit.value >> 20)),
                        "cdc_mode" => Some("as the database says".to_owned()),
                        "all_databases" => Some(settings.all_databases.value.to_string()),
                        "standby" => Some(settings.standby.value.to_string()),
                        "http" => settings.http.value.map(|a| a.to_string()),
                        "log" => Some(logs.filter.value.clone()),
                        "log_format" => Some("text".to_owned()),
                        _ => None,
                    };
                    let mut all = self.listed(&wrong, defaults);
                    let connection = Setting {
                        key: "database_url".to_owned(),
                        value: Some(settings.target.describe()),
                        origin: settings.connection.clone(),
                        error: None,
                        hint: None,
                    };
                    all.insert(0, connection);
                    all.extend(wrong);
                    return (all, None);
                }
                Err(error) => error,
            };
            let Some((key, value, origin)) = self.culprit(&error) else {
                let mut all = self.listed(&wrong, |_| None);
                all.extend(wrong);
                return (all, Some(error));
            };
            let said =
                error.context().strip_prefix(&format!("{origin}: ")).unwrap_or(error.context()).to_owned();
            self.forget(&origin);
            wrong.push(Setting {
                value: Some(shown(&key, &value)),
                key,
                origin,
                error: Some(said),
                hint: error.hint().map(str::to_owned),
            });
        }
    }

    /// What was asked for, in the order in which it was; what is wrong is left to the caller.
    fn listed(&self, wrong: &[Setting], defaults: impl Fn(&str) -> Option<String>) -> Vec<Setting> {
        let mut all: Vec<Setting> = Vec::new();
        for (key, given) in self.seen.borrow().iter() {
            if wrong.iter().chain(&all).any(|s| s.key == *key) {
                continue;
            }
            let (value, origin) = match given {
                Some(given) => (Some(shown(key, &given.value)), given.origin.clone()),
                None => (defaults(key), Origin::Default),
            };
            all.push(Setting { key: key.clone(), value, origin, error: None, hint: None });
        }
        all
    }

    /// The value whose origin the error names.
    fn culprit(&self, error: &Error) -> Option<(String, String, Origin)> {
        let names = |origin: &Origin| error.context().starts_with(&format!("{origin}: "));
        let seen = self.seen.borrow();
        let mut found = seen.iter().filter_map(|(key, given)| Some((key, given.as_ref()?)));
        let found = found.rfind(|(_, given)| names(&given.origin));
        if let Some((key, given)) = found
            && self.may_forget(&given.origin)
        {
            return Some((key.clone(), given.value.clone(), given.origin.clone()));
        }
        // The connection is put together elsewhere; its text may hold a password.
        let origins = [
            Origin::Flag("database-url"),
            Origin::Environment("DATABASE_URL"),
            Origin::Environment("PGPORT"),
            Origin::Environment("PGSSLMODE"),
        ];
        let file = self.file.get("database_url").map(|v| v.origin.clone());
        let origin =
            origins.into_iter().chain(file).find(|origin| names(origin) && self.may_forget(origin))?;
        Some(("database_url".to_owned(), "***".to_owned(), origin))
    }

    /// Whether [`Sources::forget`] would change anything: otherwise the same error would come for ever.
    fn may_forget(&self, origin: &Origin) -> bool {
        match origin {
            Origin::Flag(name) => key_of(name).is_some_and(|key| self.flags.values.contains_key(key)),
            Origin::Environment(name) => self.environment.contains_key(*name),
            Origin::File { key, .. } => self.file.contains_key(key),
            Origin::Default => false,
        }
    }

    fn forget(&mut self, origin: &Origin) {
        match origin {
            Origin::Flag(name) => {
                if let Some(key) = key_of(name) {
                    self.flags.values.remove(key);
                }
            }
            Origin::Environment(name) => drop(self.environment.remove(*name)),
            Origin::File { key, .. } => drop(self.file.remove(key)),
            Origin::Default => {}
        }
    }
}

/// Key of the option that has this flag.
fn key_of(flag: &str) -> Option<&'static str> {
    options::CHOICES.iter().find(|choice| choice.flag == Some(flag)).map(|choice| choice.key)
}

fn shown(key: &str, value: &str) -> String {
    let secret = |word: &str| key.contains(word) && !key.ends_with("_file");
    match secret("password") || secret("token") || secret("secret") || key.ends_with("_url") {
        true => "***".to_owned(),
        false => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Environment, Flags};
    use super::*;

    fn sources(flags: Flags, environment: &[(&str, &str)]) -> Sources {
        let environment: Environment =
            environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Sources::read(flags, environment).unwrap()
    }

    #[test]
    fn all_errors_come_at_once_and_no_secret_is_shown() {
        let mut flags = Flags::default();
        flags.set(options::WORKERS, Some("0".to_owned()));
        flags.set(options::LOG, Some("debug".to_owned()));
        let environment = [
            ("DATABASE_URL", "postgresql://me:geheim@127.0.0.1:x/db"),
            ("PGTRICKLE_MEMORY_LIMIT", "lots"),
            ("PGTRICKLE_LOG_FORMAT", "xml"),
        ];
        let (settings, error) = sources(flags, &environment).check();
        let wrong: Vec<&str> =
            settings.iter().filter(|s| s.error.is_some()).map(|s| s.key.as_str()).collect();
        assert_eq!(wrong, ["log_format", "workers", "memory_limit", "database_url"]);
        // Without the wrong URL there is none.
        assert!(error.is_some_and(|e| e.context().contains("no database is named")));
        assert!(!format!("{settings:?}").contains("geheim"));
        assert!(settings.iter().any(|s| s.key == "log" && s.origin == Origin::Flag("log")));
    }

    #[test]
    fn every_value_has_its_origin() {
        let mut flags = Flags::default();
        flags.set(options::WORKERS, Some("2".to_owned()));
        let (settings, error) = sources(flags, &[("DATABASE_URL", "postgresql://me:geheim@h:7/db")]).check();
        assert!(error.is_none(), "{error:?}");
        let of = |key: &str| {
            let s = settings.iter().find(|s| s.key == key).unwrap();
            (s.value.clone().unwrap_or_default(), s.origin.to_string())
        };
        assert_eq!(of("database_url"), ("h:7/db".to_owned(), "environment variable DATABASE_URL".to_owned()));
        assert_eq!(of("workers"), ("2".to_owned(), "flag --workers".to_owned()));
        assert_eq!(of("http"), ("127.0.0.1:9642".to_owned(), "default".to_owned()));
        assert!(!format!("{settings:?}").contains("geheim"));
    }
}
