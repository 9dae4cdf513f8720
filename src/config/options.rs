//! Every option of the program, as a table: its names, its default, its meaning.
//!
//! Invariant: an option has one row here and no other list of options exists: reading, the keys of the file, the
//! command line's check and `docs/configuration.md` go by this table (tests compare).

/// One option. It can be said as a flag (where `flag` has a name), as an environment variable, and in the file under
/// `key`.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    pub key: &'static str,
    /// Without the dashes; `None` where the command line must not hold it (it is visible to other users).
    pub flag: Option<&'static str>,
    pub variable: &'static str,
    /// In words.
    pub default: &'static str,
    pub meaning: &'static str,
}

macro_rules! choices {
    ($($name:ident: $key:literal, $flag:expr, $variable:literal, $default:literal, $meaning:literal;)*) => {
        $(pub const $name: &Choice = &Choice {
            key: $key, flag: $flag, variable: $variable, default: $default, meaning: $meaning,
        };)*
        /// All options, in the order in which the documentation has them.
        pub const CHOICES: &[&Choice] = &[$($name),*];
    };
}

choices! {
    DATABASE_URL: "database_url", Some("database-url"), "DATABASE_URL", "the `PG*` variables of libpq",
        "`postgresql://user@host:port/database`: the database to serve";
    PASSWORD_FILE: "password_file", Some("password-file"), "PGTRICKLE_PASSWORD_FILE",
        "`PGPASSWORD`, else `PGPASSFILE` or `~/.pgpass`",
        "file that holds the password alone; read again at every connect";
    SSLMODE: "sslmode", None, "PGSSLMODE", "`verify-full`; on this machine `prefer`",
        "protection of all sessions: `disable`, `prefer`, `require`, `verify-ca` or `verify-full`";
    SSLROOTCERT: "sslrootcert", None, "PGSSLROOTCERT", "`~/.postgresql/root.crt`, else `system`",
        "file of the certificate authorities that may vouch for the server, or `system`";
    SSLCERT: "sslcert", None, "PGSSLCERT", "`~/.postgresql/postgresql.crt`", "file of the client certificate";
    SSLKEY: "sslkey", None, "PGSSLKEY", "`~/.postgresql/postgresql.key`",
        "file of the client certificate's key, readable by its owner alone";
    PIPELINE: "pipeline", Some("pipeline"), "PGTRICKLE_PIPELINE", "`main`",
        "name of the pipeline: 1 to 20 lower-case letters, digits and `_`";
    STANDBY: "standby", Some("standby"), "PGTRICKLE_STANDBY", "`false`",
        "wait while another sidecar serves the pipeline and take over when it has gone, instead of ending";
    WORKERS: "workers", Some("workers"), "PGTRICKLE_WORKERS", "`1`", "threads of the dataflow";
    MEMORY_LIMIT: "memory_limit", Some("memory-limit"), "PGTRICKLE_MEMORY_LIMIT",
        "75 % of the control group's limit or of the machine's memory",
        "memory for the state of all stream tables, such as `512MB` or `2GiB`; at least `16MB`";
    CDC_MODE: "cdc_mode", Some("cdc-mode"), "PGTRICKLE_CDC_MODE", "the database's setting `cdc_mode`, else `auto`",
        "how changes are captured: `auto`, `wal` or `trigger`";
    ALL_DATABASES: "all_databases", Some("all-databases"), "PGTRICKLE_ALL_DATABASES", "`false`",
        "serve every pipeline of every database of the server that has the schema; the database named is only where they are listed";
    CLUSTER: "cluster", Some("cluster"), "PGTRICKLE_CLUSTER", "one process",
        "hosts file of a cluster: a line `host:port` for each process that shares the state ([scaling](scaling.md))";
    PROCESS: "process", Some("process"), "PGTRICKLE_PROCESS", "needed in a cluster",
        "number of this process: its line in the hosts file, from 0; process 0 alone has a database";
    CLUSTER_SECRET_FILE: "cluster_secret_file", Some("cluster-secret-file"), "PGTRICKLE_CLUSTER_SECRET_FILE",
        "needed in a cluster", "file with the secret that all its processes share, at least 16 bytes";
    CLUSTER_TIMEOUT: "cluster_timeout", Some("cluster-timeout"), "PGTRICKLE_CLUSTER_TIMEOUT", "`10s`",
        "how long another process may be silent before the run ends and starts again; at least `1s`";
    HTTP: "http", Some("http"), "PGTRICKLE_HTTP", "`127.0.0.1:9642`",
        "where dashboard, numbers and health are served, or `off`";
    HTTP_TOKEN_FILE: "http_token_file", Some("http-token-file"), "PGTRICKLE_HTTP_TOKEN_FILE", "nobody is asked",
        "file with the secret that is asked for, as bearer token or as password; needed beyond loopback";
    HTTP_USER: "http_user", Some("http-user"), "PGTRICKLE_HTTP_USER", "`pgtrickle`",
        "user name that goes with the secret in a browser";
    HTTP_TLS_CERT: "http_tls_cert", Some("http-tls-cert"), "PGTRICKLE_HTTP_TLS_CERT", "no HTTPS",
        "PEM file of the certificate chain: HTTPS is served";
    HTTP_TLS_KEY: "http_tls_key", Some("http-tls-key"), "PGTRICKLE_HTTP_TLS_KEY", "no HTTPS",
        "PEM file of the certificate's key";
    HTTP_HOSTS: "http_hosts", Some("http-hosts"), "PGTRICKLE_HTTP_HOSTS", "localhost and loopback addresses",
        "further names under which it is asked for, separated by commas; checked where no secret is asked for";
    HTTP_QUERIES: "http_queries", Some("http-queries"), "PGTRICKLE_HTTP_QUERIES", "`on`",
        "whether queries and plans, with their constants, are shown: `on` or `off`";
    HTTP_INSECURE: "http_insecure", Some("http-insecure"), "PGTRICKLE_HTTP_INSECURE", "`false`",
        "serve an address that others can reach without asking for a secret";
    EVALUATION_SESSIONS: "evaluation_sessions", Some("evaluation-sessions"), "PGTRICKLE_EVALUATION_SESSIONS", "`4`",
        "sessions in which PostgreSQL computes expressions and groups, 1 to 64; a stream table uses one at a time";
    EVALUATION_TIMEOUT: "evaluation_timeout", Some("evaluation-timeout"), "PGTRICKLE_EVALUATION_TIMEOUT", "`10min`",
        "a stream table whose expressions or groups need longer for one batch is suspended; `off`: never";
    LOG: "log", Some("log"), "PGTRICKLE_LOG", "`RUST_LOG`, else `info`",
        "`error`, `warn`, `info`, `debug`, `trace`, `off`, or a list such as `warn,pgtrickle=debug`";
    LOG_FORMAT: "log_format", Some("log-format"), "PGTRICKLE_LOG_FORMAT", "`text`", "`text` or `json`";
}
