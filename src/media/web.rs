//! Reading from web hosts: one GET, no redirect followed, no proxy asked, no address of the inside connected to.
//!
//! It does not go through object_store, whose HTTP store takes only answers that announce their length and keeps
//! neither the query of a URL nor `Retry-After`. All reads share one connection pool.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::{Client, Response, header, redirect};
use url::Url;

use super::address::{AddressRefused, GuardedResolver};
use super::allow::AllowList;
use super::api::{Media, MediaError};
use super::body::{Patience, collect};
use super::failure::{Refusal, find, in_words, retry_after};
use super::options::{Options, OptionsError};

/// A client for all listed web hosts.
#[derive(Debug)]
pub struct Web {
    client: Client,
    response_timeout: Duration,
    stall_timeout: Duration,
}

impl Web {
    pub fn new(options: &Options, allow: &AllowList) -> Result<Self, OptionsError> {
        let client = Client::builder()
            .user_agent(concat!("assay/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.connect_timeout)
            .redirect(redirect::Policy::none())
            // A proxy would resolve names out of the guard's sight.
            .no_proxy()
            .dns_resolver(Arc::new(GuardedResolver::new(allow)))
            .build()
            .map_err(|error| OptionsError::Client { detail: in_words(&error) })?;
        Ok(Self { client, response_timeout: options.response_timeout, stall_timeout: options.stall_timeout })
    }

    /// Reads `location`, which has passed the allow-list; `url` is the reference as it was written.
    pub async fn read(&self, url: &str, location: Url, limit: u64) -> Result<Media, MediaError> {
        let answer = tokio::time::timeout(self.response_timeout, self.client.get(location).send()).await;
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(not_answered(url, error)),
            Err(_) => {
                let detail = format!("no answer within {:?}", self.response_timeout);
                return Err(MediaError::Unavailable { url: url.to_owned(), detail, retry_after: None });
            }
        };
        if !response.status().is_success() {
            return Err(refusal(&response).meaning_from_web(url));
        }
        let announced = response.content_length();
        let chunks = futures::stream::try_unfold(response, |mut response| async move {
            match response.chunk().await {
                Ok(chunk) => Ok(chunk.map(|chunk| (chunk, response))),
                Err(error) => Err(in_words(&error.without_url())),
            }
        });
        collect(url, announced, chunks, Patience { limit, stall: self.stall_timeout }).await
    }
}

fn not_answered(url: &str, error: reqwest::Error) -> MediaError {
    let url = url.to_owned();
    if let Some(refused) = find::<AddressRefused>(&error) {
        return MediaError::Forbidden { url, detail: refused.to_string() };
    }
    if error.is_builder() {
        return MediaError::Malformed { url, detail: in_words(&error.without_url()) };
    }
    MediaError::Unavailable { url, detail: in_words(&error.without_url()), retry_after: None }
}

fn refusal(response: &Response) -> Refusal {
    let text = |name| response.headers().get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
    Refusal {
        status: response.status().as_u16(),
        retry_after: text(header::RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now())),
        location: text(header::LOCATION).map(str::to_owned),
        body: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::dns::{Name, Resolve, Resolving};

    struct Inwards;

    impl Resolve for Inwards {
        fn resolve(&self, name: Name) -> Resolving {
            let refused = AddressRefused { host: name.as_str().to_owned(), address: [169, 254, 169, 254].into() };
            Box::pin(async move { Err(refused.into()) })
        }
    }

    #[tokio::test]
    async fn a_name_that_resolves_inwards_is_forbidden_not_retried() {
        let client = Client::builder().no_proxy().dns_resolver(Arc::new(Inwards)).build().unwrap();
        let patience = Duration::from_secs(5);
        let web = Web { client, response_timeout: patience, stall_timeout: patience };
        let url = "http://cdn.example.com/a.jpg";
        let error = web.read(url, url.parse().unwrap(), 10).await.unwrap_err();
        assert!(matches!(error, MediaError::Forbidden { .. }), "{error}");
        assert!(error.to_string().contains("169.254.169.254"), "{error}");
    }
}
