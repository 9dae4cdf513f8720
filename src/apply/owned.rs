//! Calls of the functions that belong to a stream table's owner.
//!
//! Invariant: users' code runs only as its owner (D7, hazard A5). A function that is not SECURITY DEFINER, or that
//! belongs to somebody else, would run with the sidecar's rights or a stranger's; so every call asks the catalog in the
//! same statement, and what was exchanged since is not run.

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use crate::error::{Error, ErrorKind, Result};
use crate::plan::ViewId;
use crate::postgres::sessions::error;

/// `apply` takes deleted and inserted rows, `recompute` nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    Apply,
    Recompute,
}

impl Function {
    fn signature(self, view: ViewId) -> String {
        match self {
            Function::Apply => {
                format!("pgtrickle_queries.apply_{view}(pg_catalog.text[], pg_catalog.text[])")
            }
            Function::Recompute => format!("pgtrickle_queries.recompute_{view}()"),
        }
    }

    /// The call, as an expression.
    pub fn call(self, view: ViewId) -> String {
        match self {
            Function::Apply => {
                format!("pgtrickle_queries.apply_{view}($1::pg_catalog.text[], $2::pg_catalog.text[])")
            }
            Function::Recompute => format!("pgtrickle_queries.recompute_{view}()"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Function::Apply => "apply",
            Function::Recompute => "recompute",
        }
    }
}

/// The statement that calls the function if it may be called; [`counts`] reads its answer.
///
/// Errors: `Apply`, 42883 if the function is missing, 42501 if it is not the owner's.
pub async fn statement(client: &Client, function: Function, view: ViewId) -> Result<String> {
    const OWNER: &str = "select c.relowner, p.oid is not null, p.prosecdef and p.proowner = c.relowner
            and s.owner = pg_catalog.pg_get_userbyid(c.relowner)
        from pgtrickle.pgt_stream_tables s join pg_catalog.pg_class c on c.oid = s.pgt_relid
        left join pg_catalog.pg_proc p on p.oid = pg_catalog.to_regprocedure($2) where s.pgt_id = $1";
    let signature = function.signature(view);
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&view, Type::INT8), (&signature, Type::TEXT)];
    let row = client.query_typed_opt(OWNER, &parameters).await.map_err(error)?;
    let Some(row) = row else {
        return Err(Error::new(ErrorKind::Apply, "the storage table was dropped")
            .with_sqlstate("42P01")
            .with_hint("remove the rest with pgtrickle.drop_stream_table, then create it again"));
    };
    let owner: u32 = row.get(0);
    if !row.get::<_, bool>(1) {
        return Err(Error::new(
            ErrorKind::Apply,
            format!("the function pgtrickle_queries.{}_{view} is missing", function.name()),
        )
        .with_sqlstate("42883")
        .with_hint(
            "let the owner call pgtrickle.suspend_stream_table and resume_stream_table: that makes it again",
        ));
    }
    if !row.get::<_, Option<bool>>(2).unwrap_or(false) {
        return Err(foreign(function, view));
    }
    Ok(format!(
        "select case when (select p.prosecdef and p.proowner = {owner} from pg_catalog.pg_proc p
             where p.oid = pg_catalog.to_regprocedure('{signature}'))
         then {}::pg_catalog.text end",
        function.call(view)
    ))
}

fn foreign(function: Function, view: ViewId) -> Error {
    Error::new(
        ErrorKind::Apply,
        format!(
            "the function pgtrickle_queries.{}_{view} does not run as the stream table's owner and is not called",
            function.name()
        ),
    )
    .with_sqlstate("42501")
    .with_hint("table, view, functions and catalog row of a stream table have one owner; drop it and create it again")
}

/// The numbers in the function's answer, `(1,2)`.
///
/// Errors: `Apply`, 42501 where the function was exchanged and therefore not called.
pub fn counts<const N: usize>(function: Function, view: ViewId, answer: Option<&str>) -> Result<[i64; N]> {
    let text = answer.ok_or_else(|| foreign(function, view))?;
    let mut numbers = text.trim_matches(['(', ')']).split(',').map(str::parse::<i64>);
    let mut counts = [0; N];
    for count in &mut counts {
        *count = match numbers.next() {
            Some(Ok(number)) => number,
            _ => {
                let context = format!(
                    "pgtrickle_queries.{}_{view} is of another version of pgtrickle",
                    function.name()
                );
                return Err(Error::new(ErrorKind::Apply, context).with_sqlstate("55000").with_hint(format!(
                    "run `pgtrickle init` as a superuser, or let the owner run: select pgtrickle._create_functions({view})"
                )));
            }
        };
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_record_of_counts_and_no_answer_means_a_foreign_function() {
        assert_eq!(counts::<3>(Function::Apply, 1, Some("(3,4,0)")).unwrap(), [3, 4, 0]);
        let older = counts::<3>(Function::Apply, 7, Some("(3,4)")).unwrap_err();
        assert!(older.hint().unwrap_or_default().contains("_create_functions(7)"));
        assert_eq!(counts::<3>(Function::Apply, 1, None).unwrap_err().sqlstate(), Some("42501"));
    }
}
