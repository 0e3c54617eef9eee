//! Messages in a stream: each after its length, in two bytes (RFC 1035 section 4.2.2). Pure.

/// The longest question that is taken: names, EDNS options and padding have room in a fraction of it.
pub const LONGEST_QUESTION: usize = 4096;
const LENGTH: usize = 2;

/// A question longer than [`LONGEST_QUESTION`]: what follows it cannot be told apart any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a question of {0} bytes; at most {LONGEST_QUESTION} are taken")]
pub struct TooLong(pub usize);

/// What has come of a stream and was not taken yet: never more than one question's worth.
#[derive(Debug, Default)]
pub struct Questions(Vec<u8>);

impl Questions {
    /// How many bytes there is room for. Not none, while [`Questions::take`] has nothing.
    pub fn room(&self) -> usize {
        (LENGTH + LONGEST_QUESTION).saturating_sub(self.0.len())
    }

    /// Adds what has come; gives how much of it there was room for.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.0.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// The next question, if it is there as a whole.
    ///
    /// # Errors
    /// When it is too long.
    pub fn take(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let Some(length) = self.0.first_chunk::<LENGTH>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > LONGEST_QUESTION {
            return Err(TooLong(length));
        }
        if self.0.len() < LENGTH + length {
            return Ok(None);
        }
        let rest = self.0.split_off(LENGTH + length);
        let mut question = std::mem::replace(&mut self.0, rest);
        question.drain(..LENGTH);
        Ok(Some(question))
    }
}

/// A message as it goes into a stream; none if it is longer than 65,535 bytes.
pub fn framed(message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    Some([&length.to_be_bytes(), message].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_come_out_however_they_came_in() {
        let sent = [framed(b"first").unwrap(), framed(b"").unwrap(), framed(&[7; 4096]).unwrap()].concat();
        for piece in [1, 2, 3, 1000, sent.len()] {
            let (mut questions, mut got) = (Questions::default(), Vec::new());
            let mut left = &sent[..];
            while !left.is_empty() {
                let taken = questions.push(&left[..piece.min(left.len())]);
                assert!(taken > 0, "stuck");
                left = &left[taken..];
                while let Some(question) = questions.take().unwrap() {
                    got.push(question);
                }
            }
            assert_eq!(got, [b"first".to_vec(), Vec::new(), vec![7; 4096]], "in pieces of {piece}");
        }
    }

    #[test]
    fn one_that_is_too_long_is_the_end() {
        let mut questions = Questions::default();
        questions.push(&[0x10, 0x01, 0]);
        assert_eq!(questions.take(), Err(TooLong(4097)));
        assert_eq!(framed(&[0; 65_536]), None);
    }
}
