//! What a refusing server said, and what it means for the one who reads: the bridge from HTTP to [`MediaError`].
//!
//! It knows status codes and headers, no connections. A refusal by a web host is the reference's fault (an expired
//! signature, a page that moved); a refusal by a bucket is the operator's (credentials, region), because the
//! operator listed the bucket. Overload and outages are always the world's.

use std::error::Error;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use super::api::MediaError;

/// A store may ask for patience, but not for more than this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// An answer that is no success.
#[derive(Debug, Clone, thiserror::Error)]
#[error("status {status}")]
pub struct Refusal {
    pub status: u16,
    pub retry_after: Option<Duration>,
    /// Where a redirect leads.
    pub location: Option<String>,
    /// The beginning of the body, where it was worth reading.
    pub body: String,
}

impl Refusal {
    /// The meaning of an answer by a web host.
    pub fn meaning_from_web(self, url: &str) -> MediaError {
        let url = url.to_owned();
        match self.status {
            404 | 410 => MediaError::NotFound { url },
            300..=399 => MediaError::Forbidden { url, detail: self.redirect() },
            408 | 425 | 429 | 500..=599 => self.unavailable(url),
            401 | 403 => {
                let detail = format!("its host answers {}; if the URL is signed, it may have expired", self.status);
                MediaError::Refused { url, detail }
            }
            status => MediaError::Refused { url, detail: format!("its host answers {status}") },
        }
    }

    /// The meaning of an answer by an object store.
    pub fn meaning_from_bucket(self, url: &str) -> MediaError {
        let url = url.to_owned();
        let says = |code: &str| self.body.contains(code);
        match self.status {
            404 if says("NoSuchBucket") || says("ContainerNotFound") => self.unavailable(url),
            404 | 410 => MediaError::NotFound { url },
            403 if says("InvalidObjectState") => {
                MediaError::Refused { url, detail: "the object is archived; restore it".to_owned() }
            }
            300..=403 | 407 | 408 | 425 | 429 | 500..=599 => self.unavailable(url),
            status => MediaError::Refused { url, detail: format!("the store answers {status}{}", self.explanation()) },
        }
    }

    fn unavailable(&self, url: String) -> MediaError {
        let hint = match self.status {
            301 | 307 => "; is the bucket in another region?",
            401 | 403 => "; check the credentials (without the right to list, a missing object reads like this too)",
            404 => "; does the bucket exist?",
            _ => "",
        };
        let detail = format!("the store answers {}{}{hint}", self.status, self.explanation());
        MediaError::Unavailable { url, detail, retry_after: self.retry_after }
    }

    fn redirect(&self) -> String {
        let target = self.location.as_deref().unwrap_or("an unnamed place");
        // A query may carry a signature that has no place in a table of rejections.
        let target = target.split(['?', '#']).next().unwrap_or(target);
        format!("it redirects to {target:?}, and redirects are not followed; refer to the target itself")
    }

    fn explanation(&self) -> String {
        let code = self.body.split("<Code>").nth(1).and_then(|rest| rest.split("</Code>").next());
        code.map(|code| format!(" ({})", code.chars().take(60).collect::<String>())).unwrap_or_default()
    }
}

/// Reads a `Retry-After` header: seconds, or an HTTP date.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => http_date(value)?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that servers still send (RFC 9110, 5.6.7).
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()
}

/// The first cause of type `T` in a chain of errors.
pub fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// An error with its causes in one line, each said once.
pub fn in_words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            let _ = write!(text, ": {words}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Blame;

    fn refusal(status: u16, body: &str) -> Refusal {
        Refusal { status, retry_after: None, location: None, body: body.to_owned() }
    }

    #[test]
    fn a_web_host_that_refuses_blames_the_asset_and_one_that_is_down_does_not() {
        for (status, reason, blame) in [
            (404, "media_not_found", Blame::Asset),
            (410, "media_not_found", Blame::Asset),
            (400, "media_refused", Blame::Asset),
            (401, "media_refused", Blame::Asset),
            (403, "media_refused", Blame::Asset),
            (302, "media_forbidden", Blame::Asset),
            (408, "media_unavailable", Blame::World),
            (429, "media_unavailable", Blame::World),
            (500, "media_unavailable", Blame::World),
            (503, "media_unavailable", Blame::World),
        ] {
            let error = refusal(status, "").meaning_from_web("https://a/b");
            assert_eq!((error.reason(), error.blame()), (reason, blame), "{status}");
        }
    }

    #[test]
    fn a_bucket_that_refuses_is_for_the_operator_unless_the_object_is_at_fault() {
        for (status, body, reason) in [
            (404, "<Code>NoSuchKey</Code>", "media_not_found"),
            (404, "<Code>NoSuchBucket</Code>", "media_unavailable"),
            (404, "<Code>ContainerNotFound</Code>", "media_unavailable"),
            (403, "<Code>AccessDenied</Code>", "media_unavailable"),
            (403, "<Code>InvalidObjectState</Code>", "media_refused"),
            (400, "<Code>ExpiredToken</Code>", "media_unavailable"),
            (301, "", "media_unavailable"),
            (409, "<Code>BlobArchived</Code>", "media_refused"),
            (503, "<Code>SlowDown</Code>", "media_unavailable"),
        ] {
            assert_eq!(refusal(status, body).meaning_from_bucket("s3://a/b").reason(), reason, "{status} {body}");
        }
        let text = refusal(403, "<Error><Code>AccessDenied</Code></Error>").meaning_from_bucket("s3://a/b").to_string();
        assert!(text.contains("AccessDenied") && text.contains("credentials"), "{text}");
    }

    #[test]
    fn a_redirect_names_its_target_without_the_query() {
        let refusal = Refusal { location: Some("https://other/x?signature=1".to_owned()), ..refusal(302, "") };
        let text = refusal.meaning_from_web("https://a/b").to_string();
        assert!(text.contains("https://other/x") && !text.contains("signature"), "{text}");
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let now = humantime::parse_rfc3339("1994-11-06T08:49:07Z").unwrap();
        assert_eq!(retry_after("7", now), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(30)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("999999", now), Some(LONGEST_RETRY_AFTER));
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("Sun, é6 Nov 1994 08:49:37 GMT", now), None);
    }
}
