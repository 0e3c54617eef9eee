//! Answers that have no end: a JSON object a line.

use std::marker::PhantomData;
use std::path::PathBuf;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::{ClientError, MAX_LINE};

/// What happens in swd, as it happens.
#[derive(Debug)]
pub struct Lines<T> {
    socket: PathBuf,
    body: Incoming,
    /// Read but not yet returned.
    buffer: Vec<u8>,
    /// Bytes of `buffer` known to hold no line end.
    scanned: usize,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(super) fn new(socket: PathBuf, body: Incoming) -> Self {
        Self { socket, body, buffer: Vec::new(), scanned: 0, of: PhantomData }
    }

    /// Waits for the next one; `None` when swd ended the stream.
    ///
    /// Dropping the future loses nothing: the next call goes on where it was.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            while let Some(line) = self.take_line() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return match serde_json::from_slice(&line) {
                    Ok(one) => Ok(Some(one)),
                    Err(source) => Err(ClientError::Decode { socket: self.socket.clone(), source }),
                };
            }
            if self.buffer.len() > MAX_LINE {
                return Err(ClientError::TooLong { socket: self.socket.clone() });
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                Some(Err(e)) => return Err(ClientError::http(&self.socket, e)),
                None => return Ok(None),
            }
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let Some(end) = self.buffer[self.scanned..].iter().position(|&b| b == b'\n') else {
            self.scanned = self.buffer.len();
            return None;
        };
        let rest = self.buffer.split_off(self.scanned + end + 1);
        self.scanned = 0;
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}
