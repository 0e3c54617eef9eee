//! Answers of others, kept for as long as they said: RFC 1035 section 7.4, RFC 2308. Bounded; pure but for the time that it is told.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::RData;

/// Most answers.
const MOST: usize = 4096;
/// Longest that an answer is kept, whatever it says.
const LONGEST: Duration = Duration::from_secs(3600);
/// Longest that it is kept that there is none.
const LONGEST_NEGATIVE: Duration = Duration::from_secs(300);

/// What makes a question another one: the name, type and class, whether signatures are wanted, and whether they are to be checked.
type Key = (Query, bool, bool);

#[derive(Debug)]
struct Entry {
    answer: Message,
    since: Instant,
    until: Instant,
}

/// The cache.
#[derive(Debug, Default)]
pub(super) struct Cache(HashMap<Key, Entry, foldhash::fast::RandomState>);

/// The key of a question.
fn key(request: &Message) -> Option<Key> {
    let mut query = request.queries.first()?.clone();
    let name = query.name().to_lowercase();
    query.set_name(name);
    let signed = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
    Some((query, signed, request.metadata.checking_disabled))
}

impl Cache {
    /// What is known, its times counted down.
    pub(super) fn get(&self, request: &Message, now: Instant) -> Option<Message> {
        let entry = self.0.get(&key(request)?).filter(|entry| now < entry.until)?;
        let mut answer = entry.answer.clone();
        let age = u32::try_from(now.duration_since(entry.since).as_secs()).unwrap_or(u32::MAX);
        let sections = [&mut answer.answers, &mut answer.authorities, &mut answer.additionals];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(answer)
    }

    /// Keeps an answer, if it may be kept.
    pub(super) fn put(&mut self, request: &Message, answer: &Message, now: Instant) {
        let (Some(key), Some(kept)) = (key(request), lifetime(answer)) else { return };
        if self.0.len() >= MOST && !self.0.contains_key(&key) {
            self.0.retain(|_, entry| now < entry.until);
        }
        // Any of them: with random keys of the table nobody can choose which.
        if self.0.len() >= MOST
            && let Some(victim) = self.0.keys().next().cloned()
        {
            self.0.remove(&victim);
        }
        self.0.insert(key, Entry { answer: answer.clone(), since: now, until: now + kept });
    }
}

/// How long an answer may be kept; none if not at all.
fn lifetime(answer: &Message) -> Option<Duration> {
    let seconds = |ttl: u32| Duration::from_secs(ttl.into());
    let code = answer.metadata.response_code;
    if answer.metadata.truncation || !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return None;
    }
    let soa = answer.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(seconds(record.ttl.min(soa.minimum)).min(LONGEST_NEGATIVE)),
        _ => None,
    });
    let answers = answer.answers.iter().map(|record| seconds(record.ttl)).min();
    let kept = match (answers, code) {
        (Some(ttl), ResponseCode::NoError) => ttl.min(LONGEST),
        (ttl, _) => soa?.min(ttl.unwrap_or(LONGEST)),
    };
    (kept > Duration::ZERO).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, Record, RecordType};

    fn pair(name: &str, ttl: u32) -> (Message, Message) {
        let name = Name::from_ascii(name).unwrap();
        let mut request = Message::query();
        request.add_query(Query::query(name.clone(), RecordType::A));
        let mut answer = request.clone().into_response();
        answer.add_answer(Record::from_rdata(name, ttl, RData::A(A([1, 2, 3, 4].into()))));
        (request, answer)
    }

    #[test]
    fn an_answer_ages_and_ends() {
        let (mut cache, start) = (Cache::default(), Instant::now());
        let (request, answer) = pair("Example.org.", 60);
        cache.put(&request, &answer, start);
        let later = |secs| cache.get(&pair("example.org.", 0).0, start + Duration::from_secs(secs));
        assert_eq!(later(20).unwrap().answers[0].ttl, 40);
        assert!(later(60).is_none());
    }

    #[test]
    fn it_has_an_end_and_keeps_no_failures() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for n in 0..=MOST {
            let (request, answer) = pair(&format!("n{n}.example."), 60);
            cache.put(&request, &answer, now);
        }
        assert_eq!(cache.0.len(), MOST);
        let (request, mut answer) = pair("failed.example.", 60);
        answer.metadata.response_code = ResponseCode::ServFail;
        cache.put(&request, &answer, now);
        assert!(cache.get(&request, now).is_none());
        answer.metadata.response_code = ResponseCode::NXDomain;
        answer.answers.clear();
        cache.put(&request, &answer, now);
        assert!(cache.get(&request, now).is_none(), "RFC 2308: not without an SOA");
    }
}
