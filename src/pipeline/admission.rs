//! Who may enter: two semaphores, assets and bytes, taken before an asset starts its way.
//!
//! A record that finds no room waits here, alone; while it does, nothing more is taken from the source, whose bounded
//! channel fills and which then pauses its partitions.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::source::Record;

use super::options::Options;
use super::tracked::{Held, Permits};

/// One permit stands for this many bytes, because semaphores count in 32 bits.
const UNIT: u64 = 1024;

/// A record that waits goes on when there is room for this many of its size: who lets one in for each that leaves is
/// woken for each.
const TOGETHER: u32 = 32;

pub(super) struct Admission {
    assets: Arc<Semaphore>,
    capacity: usize,
    bytes: Arc<Semaphore>,
    byte_units: u32,
    media_units: u32,
    /// Permits for the waiting record that are already held.
    asset: Option<OwnedSemaphorePermit>,
    waiting: Option<Record>,
}

impl Admission {
    pub(super) fn new(options: &Options, media_per_asset: usize) -> Self {
        let units = |bytes: u64| u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX / 2).max(1);
        let byte_units = units(options.bytes.as_u64());
        Self {
            assets: Arc::new(Semaphore::new(options.assets.max(1))),
            capacity: options.assets.max(1),
            bytes: Arc::new(Semaphore::new(byte_units as usize)),
            byte_units,
            media_units: units(options.media_reserve.as_u64() * media_per_asset as u64),
            asset: None,
            waiting: None,
        }
    }

    /// Permits for a record, or none: then the record waits here and comes out of [`Self::next`].
    pub(super) fn admit(&mut self, record: Record) -> Option<(Record, Permits)> {
        let asset = self.assets.clone().try_acquire_owned().ok();
        let bytes = self.bytes.clone().try_acquire_many_owned(self.cost(&record)).ok();
        match (asset, bytes) {
            (Some(asset), Some(bytes)) => Some((record, self.permits(asset, bytes))),
            (asset, _) => {
                self.asset = asset;
                self.waiting = Some(record);
                None
            }
        }
    }

    /// Assets that hold a permit: from their entry until their row is durable.
    pub(super) fn in_flight(&self) -> usize {
        self.capacity - self.assets.available_permits()
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Waits for room for the waiting record. Cancel-safe: a permit that was got is kept.
    pub(super) async fn next(&mut self) -> (Record, Permits) {
        let Some(record) = &self.waiting else { return std::future::pending().await };
        let cost = self.cost(record);
        if self.asset.is_none() {
            let asset = self.assets.clone().acquire_owned().await.expect("the semaphore is never closed");
            self.asset = Some(asset);
        }
        // A share of all there is at most, because some of it comes back only with the next commit.
        let room = cost.max(cost.saturating_mul(TOGETHER).min(self.byte_units / 4));
        let mut bytes = self.bytes.clone().acquire_many_owned(room).await.expect("the semaphore is never closed");
        drop(bytes.split((room - cost) as usize));
        let record = self.waiting.take().expect("checked above; nobody else takes it");
        let asset = self.asset.take().expect("acquired above");
        (record, self.permits(asset, bytes))
    }

    /// Parts the bytes into those of the media, which are given back early, and those of the message.
    fn permits(&self, asset: OwnedSemaphorePermit, mut bytes: OwnedSemaphorePermit) -> Permits {
        let media = bytes.split((self.media_units as usize).min(bytes.num_permits() - 1));
        Permits { held: Held { _asset: asset, _message: bytes, journey: None }, media }
    }

    /// Forgets the waiting record; the source brings it again after a new assignment.
    pub(super) fn forget_waiting(&mut self) {
        self.waiting = None;
        self.asset = None;
    }

    /// A record larger than all there is may still enter, alone.
    fn cost(&self, record: &Record) -> u32 {
        let message = record.payload.as_ref().map_or(0, |payload| payload.len() as u64);
        let media = if record.payload.is_some() { self.media_units } else { 0 };
        u32::try_from(message.div_ceil(UNIT)).unwrap_or(u32::MAX / 2).saturating_add(media).clamp(1, self.byte_units)
    }
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;

    use super::*;
    use crate::domain::{Epoch, Origin, TopicPartition};

    fn record(bytes: usize) -> Record {
        let partition = TopicPartition::new("assets", 0);
        let origin = Origin { partition, offset: 0, key: None, message_time: None, headers: Vec::new() };
        Record { origin, epoch: Epoch(1), payload: Some(vec![0; bytes].into()) }
    }

    #[tokio::test]
    async fn a_record_waits_until_there_is_room_for_it() {
        let options = Options { assets: 1, bytes: ByteSize::kib(8), ..Options::default() };
        let mut admission = Admission::new(&options, 0);
        let (_, first) = admission.admit(record(10)).unwrap();
        assert!(admission.admit(record(10)).is_none());
        assert!(futures::future::poll_immediate(admission.next()).await.is_none());
        drop(first);
        assert!(futures::future::poll_immediate(admission.next()).await.is_some());
        assert!(!admission.is_waiting());
    }

    #[tokio::test]
    async fn a_waiting_record_goes_on_when_there_is_room_for_several() {
        let options = Options { assets: 1000, bytes: ByteSize::kib(200), ..Options::default() };
        let mut admission = Admission::new(&options, 0);
        // Each takes two units of the 200: one for its message, one for media.
        let mut inside: Vec<_> = (0..100).map(|_| admission.admit(record(10)).unwrap()).collect();
        assert!(admission.admit(record(10)).is_none());
        inside.truncate(76);
        assert!(futures::future::poll_immediate(admission.next()).await.is_none());
        inside.truncate(75);
        assert!(futures::future::poll_immediate(admission.next()).await.is_some());
        let more = (0..24).filter(|_| admission.admit(record(10)).is_some()).count();
        assert_eq!(more, 24, "the room that it did not need is given back");
    }

    #[tokio::test]
    async fn a_record_larger_than_the_limit_enters_alone() {
        let options = Options { assets: 4, bytes: ByteSize::kib(8), ..Options::default() };
        let mut admission = Admission::new(&options, 0);
        let (_, large) = admission.admit(record(1_000_000)).unwrap();
        assert!(admission.admit(record(10)).is_none());
        drop(large);
        assert!(futures::future::poll_immediate(admission.next()).await.is_some());
    }
}
