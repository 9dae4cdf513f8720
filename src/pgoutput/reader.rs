//! Checked reading of one message: the only place of the module that takes bytes apart.
//!
//! Invariant: every read either advances within the slice or returns a Protocol error with message kind and offset.

use crate::error::{Error, ErrorKind, Result};

/// A cursor over one message, `at` bytes in.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    kind: u8,
}

impl<'a> Reader<'a> {
    /// Starts after the kind byte; an empty message is an error.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self> {
        match bytes.first() {
            Some(&kind) => Ok(Reader { bytes, at: 1, kind }),
            None => {
                Err(Error::new(ErrorKind::Protocol, "the server sent an empty logical replication message"))
            }
        }
    }

    pub(super) fn kind(&self) -> u8 {
        self.kind
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The bytes from offset `from` up to the cursor.
    pub(super) fn since(&self, from: usize) -> &'a [u8] {
        self.bytes.get(from..self.at).unwrap_or_default()
    }

    #[cold]
    pub(super) fn error(&self, at: usize, what: &str) -> Error {
        Error::new(
            ErrorKind::Protocol,
            format!("logical replication message '{}' at byte {at}: {what}", self.kind.escape_ascii()),
        )
    }

    pub(super) fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n);
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(part) => {
                self.at += n;
                Ok(part)
            }
            None => Err(self.error(self.at, &format!("the {what} runs past the end of the message"))),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        match self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>()) {
            Some(chunk) => {
                self.at += N;
                Ok(*chunk)
            }
            None => Err(self.error(self.at, &format!("the {what} runs past the end of the message"))),
        }
    }

    pub(super) fn u8(&mut self, what: &str) -> Result<u8> {
        Ok(u8::from_be_bytes(self.array(what)?))
    }

    pub(super) fn u16(&mut self, what: &str) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array(what)?))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    pub(super) fn i32(&mut self, what: &str) -> Result<i32> {
        Ok(i32::from_be_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array(what)?))
    }

    pub(super) fn i64(&mut self, what: &str) -> Result<i64> {
        Ok(i64::from_be_bytes(self.array(what)?))
    }

    /// An int32 length, then that many bytes.
    pub(super) fn counted(&mut self, what: &str) -> Result<&'a [u8]> {
        let at = self.at;
        let length = self.i32(what)?;
        match usize::try_from(length) {
            Ok(n) => self.take(n, what),
            Err(_) => Err(self.error(at, &format!("the length of the {what} is negative"))),
        }
    }

    /// Bytes up to a NUL, which is consumed.
    pub(super) fn c_bytes(&mut self, what: &str) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match rest.iter().position(|&b| b == 0) {
            Some(n) => {
                let text = self.take(n, what)?;
                self.at += 1;
                Ok(text)
            }
            None => Err(self.error(self.at, &format!("the {what} has no terminating NUL"))),
        }
    }

    /// An identifier; the connection's client_encoding is UTF8.
    pub(super) fn name(&mut self, what: &str) -> Result<&'a str> {
        let at = self.at;
        let bytes = self.c_bytes(what)?;
        std::str::from_utf8(bytes).map_err(|_| {
            self.error(at, &format!("the {what} is not valid UTF-8"))
                .with_hint("the replication connection needs client_encoding = UTF8 and a database whose encoding converts to it")
        })
    }

    /// Nothing may follow: a longer message means that this is not the format we think it is.
    pub(super) fn end(&self) -> Result<()> {
        if self.at == self.bytes.len() {
            return Ok(());
        }
        Err(self.error(self.at, &format!("{} unexpected bytes follow", self.bytes.len() - self.at)))
    }
}
