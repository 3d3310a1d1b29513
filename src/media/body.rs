//! Collecting a body of unknown length: never more than the limit, never longer without a byte than patience lasts.
//!
//! It knows neither HTTP nor object stores: what comes is a stream of chunks. The bytes are hashed as they arrive.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};

use super::api::{Media, MediaError};

/// What an announced length may reserve before the first byte has come.
const LARGEST_RESERVATION: u64 = 1 << 20;

/// Lower-case hexadecimal SHA-256.
pub fn content_hash(bytes: &[u8]) -> String {
    in_hexadecimal(&Sha256::digest(bytes))
}

/// How much of a body is taken, and how long a silence is borne.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Most bytes.
    pub limit: u64,
    /// The longest wait for the next chunk.
    pub stall: Duration,
}

/// Reads a stream to its end. `announced` is what the sender says of its length; it is believed only when it is too
/// much. A chunk's error becomes [`MediaError::Unavailable`].
pub async fn collect<S>(url: &str, announced: Option<u64>, chunks: S, patience: Patience) -> Result<Media, MediaError>
where
    S: Stream<Item = Result<Bytes, String>>,
{
    let Patience { limit, stall } = patience;
    let too_large = || MediaError::TooLarge { url: url.to_owned(), limit };
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let reservation = announced.unwrap_or(0).min(LARGEST_RESERVATION) as usize;
    let mut bytes = Vec::with_capacity(reservation);
    let mut hasher = Sha256::new();
    let mut chunks = std::pin::pin!(chunks);
    loop {
        let next = tokio::time::timeout(stall, chunks.next())
            .await
            .map_err(|_| MediaError::Stalled { url: url.to_owned(), waited: stall })?;
        let Some(chunk) = next else { break };
        let chunk = chunk.map_err(|detail| MediaError::Unavailable {
            url: url.to_owned(),
            detail: format!("the transfer broke off after {} bytes: {detail}", bytes.len()),
            retry_after: None,
        })?;
        if bytes.len() as u64 + chunk.len() as u64 > limit {
            return Err(too_large());
        }
        hasher.update(&chunk);
        bytes.extend_from_slice(&chunk);
    }
    Ok(Media { bytes: bytes.into(), sha256: in_hexadecimal(&hasher.finalize()) })
}

fn in_hexadecimal(digest: &[u8]) -> String {
    let nibbles = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    nibbles.map(|nibble| char::from_digit(nibble.into(), 16).expect("four bits are below 16")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { limit: 10, stall: Duration::from_secs(5) };

    fn chunks(texts: &[&'static str]) -> impl Stream<Item = Result<Bytes, String>> {
        futures::stream::iter(texts.iter().map(|text| Ok(Bytes::from_static(text.as_bytes()))).collect::<Vec<_>>())
    }

    #[tokio::test]
    async fn chunks_are_joined_and_hashed_as_one() {
        let media = collect("u", None, chunks(&["a", "b", "c"]), PATIENCE).await.unwrap();
        assert_eq!(&media.bytes[..], b"abc");
        assert_eq!(media.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(media.sha256, content_hash(b"abc"));
    }

    #[tokio::test]
    async fn exactly_the_limit_passes_and_one_byte_more_does_not() {
        assert_eq!(collect("u", None, chunks(&["01234", "56789"]), PATIENCE).await.unwrap().bytes.len(), 10);
        let error = collect("u", None, chunks(&["01234", "567890"]), PATIENCE).await.unwrap_err();
        assert!(matches!(error, MediaError::TooLarge { limit: 10, .. }));
    }

    #[tokio::test]
    async fn an_announced_length_over_the_limit_reads_nothing() {
        let never = futures::stream::poll_fn(|_| -> std::task::Poll<Option<Result<Bytes, String>>> { panic!("read") });
        assert!(matches!(collect("u", Some(11), never, PATIENCE).await, Err(MediaError::TooLarge { .. })));
    }

    #[tokio::test]
    async fn silence_between_two_chunks_is_a_stall() {
        let silent = chunks(&["a"]).chain(futures::stream::pending());
        let impatience = Patience { stall: Duration::from_millis(20), ..PATIENCE };
        let error = collect("u", None, silent, impatience).await.unwrap_err();
        assert!(matches!(error, MediaError::Stalled { waited, .. } if waited == impatience.stall));
    }

    #[tokio::test]
    async fn a_broken_transfer_says_how_far_it_came() {
        let broken = chunks(&["abc"]).chain(futures::stream::iter([Err("reset".to_owned())]));
        let error = collect("u", None, broken, PATIENCE).await.unwrap_err().to_string();
        assert!(error.contains("after 3 bytes: reset"), "{error}");
    }
}
