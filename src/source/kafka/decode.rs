//! From librdkafka's message to a [`Record`]; the payload stays as it is.
//!
//! Invariant: nothing that a producer can put into a message makes this fail, or one bad message would stop its
//! partition for ever.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::message::{BorrowedMessage, Headers, Message};

use crate::domain::{Epoch, Origin, TopicPartition};
use crate::source::api::Record;

/// Copies the message out of the client's memory. Times become microseconds, text is decoded with replacement.
pub fn record(message: &BorrowedMessage<'_>, partition: TopicPartition, epoch: Epoch) -> Record {
    let origin = Origin {
        partition,
        offset: message.offset(),
        key: message.key().map(text),
        message_time: message.timestamp().to_millis().map(|millis| millis.saturating_mul(1000)),
        headers: message.headers().map(headers).unwrap_or_default(),
    };
    Record { origin, epoch, payload: message.payload().map(Into::into) }
}

fn headers<H: Headers>(headers: &H) -> Vec<(String, Option<String>)> {
    // The client library panics on a header name that is not UTF-8, which any producer can send.
    let header = |index| {
        catch_unwind(AssertUnwindSafe(|| {
            let header = headers.get(index);
            (header.key.to_owned(), header.value.map(text))
        }))
    };
    (0..headers.count()).map(|index| header(index).unwrap_or_else(|_| ("\u{FFFD}".to_owned(), None))).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;

    struct Hostile;

    impl Headers for Hostile {
        fn count(&self) -> usize {
            2
        }

        fn try_get(&self, index: usize) -> Option<Header<'_, &[u8]>> {
            assert!(index != 0, "what the library does on a name that is not UTF-8");
            Some(Header { key: "good", value: Some(b"\xffx") })
        }
    }

    #[test]
    fn headers_keep_their_order_and_null_values() {
        let owned = OwnedHeaders::new()
            .insert(Header { key: "b", value: Some("1") })
            .insert(Header { key: "a", value: None::<&str> });
        assert_eq!(headers(&owned), [("b".to_owned(), Some("1".to_owned())), ("a".to_owned(), None)]);
    }

    #[test]
    fn a_header_name_that_is_not_text_costs_only_itself() {
        let expected = [("\u{FFFD}".to_owned(), None), ("good".to_owned(), Some("\u{FFFD}x".to_owned()))];
        assert_eq!(headers(&Hostile), expected);
    }
}
