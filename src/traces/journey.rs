//! What is noted while one asset is on its way: when which stage worked on it, how it ended, and when its row was durable.
//!
//! It knows no stage by name and sends nothing itself. Invariant: a journey is handed over exactly once, by
//! [`Journey::finish`].

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::mpsc;

use super::context::Context;

/// The last part of every journey: from the outcome until its row is durable.
const COMMIT: &str = "commit";

/// One asset on its way. Stages of one asset follow each other, so the lock is never waited for.
#[derive(Debug)]
pub struct Journey {
    notes: Mutex<Option<Notes>>,
    finished: mpsc::Sender<Notes>,
}

/// Everything that is known of a journey.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Notes {
    pub(super) context: Context,
    pub(super) began: SystemTime,
    pub(super) ended: SystemTime,
    /// Names and texts that tell this asset from others.
    pub(super) attributes: Vec<(&'static str, String)>,
    pub(super) parts: Vec<Part>,
    /// `annotated`, `removed` or `rejected`, the latter with a reason; none when the asset was dropped.
    pub(super) outcome: Option<(&'static str, Option<&'static str>)>,
}

/// A stretch of a journey.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) began: SystemTime,
    pub(super) ended: Option<SystemTime>,
}

impl Journey {
    pub(super) fn begin(
        context: Context,
        attributes: Vec<(&'static str, String)>,
        finished: mpsc::Sender<Notes>,
    ) -> Self {
        let now = SystemTime::now();
        let notes = Notes { context, began: now, ended: now, attributes, parts: Vec::new(), outcome: None };
        Self { notes: Mutex::new(Some(notes)), finished }
    }

    /// A stage begins to work, or goes on after a pause.
    pub fn enter(&self, stage: &'static str) {
        self.note(|notes| match notes.parts.last_mut() {
            Some(last) if last.name == stage => last.ended = None,
            _ => notes.open(stage),
        });
    }

    /// The stage that was entered last does not work any more.
    pub fn leave(&self) {
        self.note(Notes::close);
    }

    /// The asset has its outcome; what follows is the commit of its row.
    pub fn settle(&self, outcome: &'static str, reason: Option<&'static str>) {
        self.note(|notes| {
            notes.close();
            notes.outcome = Some((outcome, reason));
            notes.open(COMMIT);
        });
    }

    /// The row is durable, or the asset was given up. Only the first call counts.
    pub fn finish(&self) {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut notes) = notes {
            notes.close();
            notes.ended = SystemTime::now();
            // A collector that is slow or down must not hold assets up: what finds no room is lost.
            let _ = self.finished.try_send(notes);
        }
    }

    fn note(&self, change: impl FnOnce(&mut Notes)) {
        if let Some(notes) = self.notes.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            change(notes);
        }
    }
}

impl Notes {
    fn open(&mut self, name: &'static str) {
        self.close();
        self.parts.push(Part { name, began: SystemTime::now(), ended: None });
    }

    fn close(&mut self) {
        if let Some(last) = self.parts.last_mut() {
            last.ended.get_or_insert_with(SystemTime::now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journey() -> (Journey, mpsc::Receiver<Notes>) {
        let (finished, received) = mpsc::channel(1);
        (Journey::begin(Context::of(&[]), vec![("topic", "t".to_owned())], finished), received)
    }

    #[test]
    fn parts_follow_each_other_and_end_with_the_commit() {
        let (journey, mut received) = journey();
        journey.enter("fetch");
        journey.leave();
        journey.enter("fetch");
        journey.enter("infer");
        journey.settle("rejected", Some("media_not_found"));
        journey.finish();
        journey.finish();
        let notes = received.try_recv().unwrap();
        assert_eq!(notes.parts.iter().map(|part| part.name).collect::<Vec<_>>(), ["fetch", "infer", "commit"]);
        assert!(notes.parts.iter().all(|part| part.ended.is_some()));
        assert_eq!(notes.outcome, Some(("rejected", Some("media_not_found"))));
        assert!(received.try_recv().is_err(), "a journey is handed over once");
    }

    #[test]
    fn nothing_is_noted_after_the_end_and_nobody_waits_for_a_full_channel() {
        let (journey, mut received) = journey();
        let full = journey.finished.clone();
        journey.finish();
        journey.enter("fetch");
        assert!(received.try_recv().unwrap().parts.is_empty());
        let second = Journey::begin(Context::of(&[]), Vec::new(), full.clone());
        let third = Journey::begin(Context::of(&[]), Vec::new(), full);
        second.finish();
        third.finish();
        assert!(received.try_recv().is_ok() && received.try_recv().is_err());
    }
}
