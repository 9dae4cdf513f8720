//! A session whose work ends with it.
//!
//! Invariant: once a session is dropped, the server soon does nothing for it any more. Dropped alone, a client whose
//! statement is still being computed would leave it running to its end, with its locks, its snapshot, a slot half made or
//! an advisory lock: the connection is only closed after the answer.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::{CancelToken, Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long an idle session may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(250);
/// How long the server may take to be told to cancel.
const CANCEL: Duration = Duration::from_secs(5);

/// A client and the task that runs its connection.
pub struct SqlSession {
    // Dropped in this order: without its client an idle connection ends by itself.
    client: Client,
    ending: Ending,
}

struct Ending {
    connection: Option<JoinHandle<()>>,
    cancel: CancelToken,
    tls: Option<MakeRustlsConnect>,
}

impl SqlSession {
    pub(super) fn new(
        client: Client,
        connection: JoinHandle<()>,
        tls: Option<MakeRustlsConnect>,
    ) -> SqlSession {
        let cancel = client.cancel_token();
        SqlSession { client, ending: Ending { connection: Some(connection), cancel, tls } }
    }

    /// Ends the session, and what it does: what it held is free soon after. Dropping it does the same in the background.
    pub async fn end(self) {
        let SqlSession { client, mut ending } = self;
        drop(client);
        if let Some(connection) = ending.connection.take() {
            finish(connection, ending.cancel.clone(), ending.tls.clone()).await;
        }
    }
}

async fn finish(mut connection: JoinHandle<()>, cancel: CancelToken, tls: Option<MakeRustlsConnect>) {
    if tokio::time::timeout(GOODBYE, &mut connection).await.is_ok() {
        return;
    }
    let cancelled = async {
        match tls {
            Some(tls) => cancel.cancel_query(tls).await,
            None => cancel.cancel_query(NoTls).await,
        }
    };
    if let Ok(Err(e)) = tokio::time::timeout(CANCEL, cancelled).await {
        tracing::debug!(error = %e, "a statement that nobody waits for could not be cancelled");
    }
    // The cancelled statement's answer, and with it the end of the session.
    if tokio::time::timeout(GOODBYE, &mut connection).await.is_err() {
        connection.abort();
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and its sockets with it.
        if let (Some(connection), Ok(runtime)) =
            (self.connection.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(finish(connection, self.cancel.clone(), self.tls.clone()));
        }
    }
}

impl Deref for SqlSession {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for SqlSession {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}
