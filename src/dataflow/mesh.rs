//! The connections over which the workers of several processes exchange rows and progress.
//!
//! They come in connected and authenticated (`crate::cluster`). timely's threads panic when a connection fails; here a
//! failure ends the engine instead, and these threads wait until no worker runs any more. Invariant: after a connection is
//! lost no byte is made up and none is left out before a worker has stopped: an epoch that needed it never completes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use timely::communication::Hooks;
use timely::communication::allocator::AllocatorBuilder;
use timely::communication::allocator::ProcessBuilder;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::zero_copy::stream::Stream;

use super::ending::Ending;
use crate::error::{Error, ErrorKind, Result};

/// The place of a process among others.
pub struct Mesh {
    /// Its number.
    pub process: usize,
    /// One connection per process, by number; `None` at its own place.
    pub peers: Vec<Option<TcpStream>>,
}

/// What ends the connections.
pub(super) struct Links(Vec<TcpStream>);

impl Drop for Links {
    fn drop(&mut self) {
        for stream in &self.0 {
            // One that is closed already is what is wanted.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Mesh {
    /// Builders of the workers' channels, for `workers` of them in each process.
    pub(super) fn build(self, workers: usize, ending: &Ending) -> Result<(Vec<AllocatorBuilder>, Links)> {
        let failed = |e: io::Error| Error::internal("the processes can't be connected").with_source(e);
        let mut ends = Vec::new();
        let mut links = Vec::new();
        for (peer, stream) in self.peers.into_iter().enumerate() {
            let link = match stream {
                None => None,
                Some(stream) => {
                    // Progress travels in small pieces, one after the other.
                    stream.set_nodelay(true).map_err(failed)?;
                    ends.push(stream.try_clone().map_err(failed)?);
                    Some(Link { stream, peer, ending: ending.clone() })
                }
            };
            links.push(link);
        }
        let ends = Links(ends);
        let hooks = Hooks::default();
        let local = ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), None);
        let (builders, guard) =
            initialize_networking_from_sockets(local, links, self.process, workers, hooks).map_err(failed)?;
        // It would join the threads and panic about those that a lost connection has ended; they end by themselves.
        std::mem::forget(guard);
        Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), ends))
    }
}

/// One connection, as timely's threads see it.
struct Link {
    stream: TcpStream,
    peer: usize,
    ending: Ending,
}

impl Link {
    fn lost(&self, why: &str) {
        let peer = self.peer;
        let text = format!("the connection to process {peer} was lost: {why}");
        self.ending.end(Some(Error::new(ErrorKind::Cluster, text)));
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let why = loop {
            match self.stream.read(buffer) {
                Ok(0) => break "it was closed".to_owned(),
                Ok(count) => return Ok(count),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break e.to_string(),
            }
        };
        self.lost(&why);
        // timely would poison the queues of workers that still run. Without a hook's message: it was told already.
        self.ending.wait_idle();
        std::panic::resume_unwind(Box::new("the connection was lost"))
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.ending.is_ended() {
            return Ok(bytes.len());
        }
        match self.stream.write(bytes) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                self.lost(&e.to_string());
                Ok(bytes.len())
            }
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Link {
    fn try_clone(&self) -> io::Result<Self> {
        let stream = self.stream.try_clone()?;
        Ok(Link { stream, peer: self.peer, ending: self.ending.clone() })
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.stream.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self.stream.shutdown(how) {
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
            outcome => outcome,
        }
    }
}
