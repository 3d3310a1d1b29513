//! What travels between stages: a value, the ticket of its record and the permits it holds.
//!
//! Invariant: every ticket reports exactly once. [`Tracked::settle`] reports an outcome; a `Tracked` that is dropped
//! without one reports itself as abandoned, so that nothing is lost in silence.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::domain::{Origin, Outcome, Rejection, Stage};
use crate::ledger::Ticket;
use crate::source::Record;
use crate::traces::{Journey, Tracer};

use super::patience::{Patience, Work};

/// A value on its way, with everything that its end must release.
pub(super) struct Tracked<T> {
    pub(super) value: T,
    baggage: Baggage,
}

/// The part of a [`Tracked`] that stays the same from stage to stage.
struct Baggage {
    /// Taken when it reports; a drop that still finds it reports an abandoned ticket.
    ticket: Option<Ticket>,
    record: Arc<Record>,
    patience: Arc<Patience>,
    outcomes: mpsc::Sender<Settled>,
    held: Option<Held>,
    media: Option<OwnedSemaphorePermit>,
}

/// The report of one ticket.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) ticket: Ticket,
    /// None when a stage dropped the asset.
    pub(super) outcome: Option<Outcome>,
    pub(super) record: Arc<Record>,
    pub(super) stage: Stage,
    /// Kept until the row is durable, so that rows waiting for a commit count against the limits.
    pub(super) held: Option<Held>,
}

/// The permits of one asset.
pub(super) struct Permits {
    pub(super) held: Held,
    /// For the bytes of its media; free once model inputs are made of them.
    pub(super) media: Option<OwnedSemaphorePermit>,
}

/// Permits for the asset itself and the bytes of its message, which stay in memory until the row is durable.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) _asset: OwnedSemaphorePermit,
    pub(super) _message: OwnedSemaphorePermit,
    /// Ends with these permits: when the row is durable.
    pub(super) journey: Option<Arc<Journey>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(journey) = &self.journey {
            journey.finish();
        }
    }
}

impl Tracked<Arc<Record>> {
    /// Sends a record on its way.
    pub(super) fn new(
        ticket: Ticket,
        record: Arc<Record>,
        patience: Arc<Patience>,
        permits: Permits,
        outcomes: mpsc::Sender<Settled>,
    ) -> Self {
        let baggage = Baggage {
            ticket: Some(ticket),
            record: record.clone(),
            patience,
            outcomes,
            held: Some(permits.held),
            media: permits.media,
        };
        Self { value: record, baggage }
    }
}

impl<T> Tracked<T> {
    /// The same asset with another value.
    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Tracked<U> {
        Tracked { value: change(self.value), baggage: self.baggage }
    }

    /// The same asset with what a stage made of it, or its end.
    pub(super) fn and_then<U>(self, change: impl FnOnce(T) -> Result<U, Rejection>) -> Option<Tracked<U>> {
        let Self { value, baggage } = self;
        match change(value) {
            Ok(value) => Some(Tracked { value, baggage }),
            Err(rejection) => {
                baggage.settle(Outcome::Rejected(rejection));
                None
            }
        }
    }

    /// Takes the value out and leaves the rest to be settled.
    pub(super) fn split(self) -> (T, Tracked<()>) {
        (self.value, Tracked { value: (), baggage: self.baggage })
    }

    /// Ends this asset's way.
    pub(super) fn settle(self, outcome: Outcome) {
        self.baggage.settle(outcome);
    }

    /// Gives back the bytes of media: no stage holds them any longer.
    pub(super) fn release_media(&mut self) {
        self.baggage.media = None;
    }

    /// Starts this asset's clock.
    pub(super) fn work(&self, stage: Stage) -> Work {
        self.baggage.patience.work(stage)
    }

    /// Names the stage without starting the clock.
    pub(super) fn enter(&self, stage: Stage) {
        self.baggage.patience.enter(stage);
    }

    /// True when nobody waits for the outcome any more; drop the asset then.
    pub(super) fn is_cancelled(&self) -> bool {
        self.baggage.patience.is_cancelled()
    }
}

impl Baggage {
    fn settle(mut self, outcome: Outcome) {
        self.report(Some(outcome));
    }

    fn report(&mut self, outcome: Option<Outcome>) {
        let Some(ticket) = self.ticket.take() else { return };
        if let Some(outcome) = &outcome {
            self.patience.settled(outcome);
        }
        let settled = Settled {
            ticket,
            outcome,
            record: self.record.clone(),
            stage: self.patience.stage(),
            held: self.held.take(),
        };
        // The channel is as wide as the permits, so it is full only when nobody listens any more.
        let _ = self.outcomes.try_send(settled);
    }
}

impl Drop for Baggage {
    fn drop(&mut self) {
        self.report(None);
    }
}

/// Begins to note the way of one record, when it is to be traced.
pub(super) fn journey(tracer: &Tracer, job: &str, origin: &Origin) -> Option<Arc<Journey>> {
    tracer.begin(&origin.headers, || attributes(job, origin))
}

/// What tells the trace of one asset from others; the names are those of OpenTelemetry's conventions for messaging.
fn attributes(job: &str, origin: &Origin) -> Vec<(&'static str, String)> {
    let mut attributes = vec![
        ("messaging.system", "kafka".to_owned()),
        ("messaging.destination.name", origin.partition.topic.to_string()),
        ("messaging.destination.partition.id", origin.partition.partition.to_string()),
        ("messaging.kafka.offset", origin.offset.to_string()),
        ("assay.job", job.to_owned()),
    ];
    attributes.extend(origin.key.clone().map(|key| ("messaging.kafka.message.key", key)));
    attributes
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::domain::{Blame, Epoch, Origin, TopicPartition};

    /// A record that holds three of the permits.
    pub(in crate::pipeline) fn tracked(
        outcomes: mpsc::Sender<Settled>,
        permits: &Arc<Semaphore>,
    ) -> Tracked<Arc<Record>> {
        let partition = TopicPartition::new("assets", 0);
        let origin =
            Origin { partition: partition.clone(), offset: 4, key: None, message_time: None, headers: Vec::new() };
        let record = Arc::new(Record { origin, epoch: Epoch(1), payload: None });
        let permit = || permits.clone().try_acquire_owned().expect("permits are left");
        let ticket = Ticket { partition, epoch: Epoch(1), offset: 4 };
        let permits =
            Permits { held: Held { _asset: permit(), _message: permit(), journey: None }, media: Some(permit()) };
        Tracked::new(ticket, record, Arc::default(), permits, outcomes)
    }

    #[test]
    fn a_dropped_asset_reports_itself_as_abandoned() {
        let (sender, mut receiver) = mpsc::channel(4);
        let permits = Arc::new(Semaphore::new(3));
        drop(tracked(sender, &permits));
        let settled = receiver.try_recv().unwrap();
        assert!(settled.outcome.is_none());
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn a_rejected_asset_reports_once_and_keeps_its_permit_until_it_is_durable() {
        let (sender, mut receiver) = mpsc::channel(4);
        let permits = Arc::new(Semaphore::new(3));
        let rejection = Rejection {
            asset_id: None,
            stage: Stage::Decode,
            reason: "json_malformed",
            detail: String::new(),
            blame: Blame::Asset,
            attempts: 1,
        };
        let next = tracked(sender, &permits).and_then(|_| Err::<(), _>(rejection.clone()));
        assert!(next.is_none());
        let settled = receiver.try_recv().unwrap();
        assert_eq!(settled.outcome, Some(Outcome::Rejected(rejection)));
        assert!(receiver.try_recv().is_err());
        assert_eq!(permits.available_permits(), 1, "the media are free");
        drop(settled);
        assert_eq!(permits.available_permits(), 3);
    }
}
