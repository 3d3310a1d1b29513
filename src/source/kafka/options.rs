//! The Kafka settings: our defaults, the user's properties over them, and the few that exactly-once forbids to change.
//!
//! This file opens no connection. Invariant: no secret is printed.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use serde::{Deserialize, Deserializer, Serialize};

use crate::source::api::SourceError;

/// Properties that are not the user's to set, and why.
const FORBIDDEN: [(&str, &str); 9] = [
    ("enable.auto.commit", "offsets are committed after the tables, never by a timer"),
    ("auto.commit.enable", "offsets are committed after the tables, never by a timer"),
    ("enable.auto.offset.store", "offsets are committed after the tables, never when a record is read"),
    ("enable.partition.eof", "the end of a partition ends `assay run --once`"),
    ("group.id", "the job file names the group"),
    ("bootstrap.servers", "set source.kafka.bootstrap_servers instead"),
    ("metadata.broker.list", "set source.kafka.bootstrap_servers instead"),
    ("transactional.id", "records are submitted without transactions"),
    ("log.queue", "the client library needs it"),
];

/// Properties of consumers, which a producer would only warn about. A dot at the end stands for any ending.
const CONSUMER_ONLY: [&str; 12] = [
    "auto.offset.reset",
    "check.crcs",
    "fetch.",
    "group.",
    "heartbeat.interval.ms",
    "isolation.level",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "partition.assignment.strategy",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "session.timeout.ms",
];

/// Properties of producers, which a consumer would only warn about. A dot at the end stands for any ending.
const PRODUCER_ONLY: [&str; 14] = [
    "acks",
    "batch.",
    "compression.",
    "delivery.timeout.ms",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "linger.ms",
    "message.send.max.retries",
    "message.timeout.ms",
    "partitioner",
    "queue.buffering.",
    "request.required.acks",
    "request.timeout.ms",
    "sticky.partitioning.linger.ms",
];

/// Where the brokers are and how to talk to them.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaOptions {
    /// `host:port`, comma-separated.
    pub bootstrap_servers: String,
    /// Any librdkafka property; wins over ours. Numbers and booleans may be written as such, and a dotted name may be
    /// written as nested tables.
    #[serde(deserialize_with = "flattened")]
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        Self { bootstrap_servers: "localhost:9092".to_owned(), properties: BTreeMap::new() }
    }
}

impl fmt::Debug for KafkaOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(key, value): (&String, &String)| {
            (key.clone(), if is_secret(key) { "(hidden)".to_owned() } else { value.clone() })
        };
        let properties: BTreeMap<_, _> = self.properties.iter().map(shown).collect();
        f.debug_struct("KafkaOptions")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("properties", &properties)
            .finish()
    }
}

impl KafkaOptions {
    /// The configuration of a member of `group`. `member` tells members of one process apart where the user asked for
    /// static membership, because two members of one instance id would fence each other.
    pub(super) fn member(&self, group: &str, member: Option<&str>) -> Result<ClientConfig, SourceError> {
        let mut config = self.base()?;
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            .set("statistics.interval.ms", "1000")
            // Bounds what one topic holds in memory, and what is fetched again after a pause.
            .set("queued.min.messages", "10000")
            .set("queued.max.messages.kbytes", "16384");
        if self.properties.get("group.protocol").is_none_or(|protocol| protocol != "consumer") {
            config.set("partition.assignment.strategy", "cooperative-sticky");
        }
        self.overlay(&mut config, &PRODUCER_ONLY);
        if let (Some(member), Some(instance)) = (member, self.properties.get("group.instance.id")) {
            config.set("group.instance.id", format!("{instance}-{member}"));
        }
        checked(config)
    }

    /// The configuration of a client that asks about topics and groups without joining one.
    pub(super) fn inspector(&self, group: Option<&str>) -> Result<ClientConfig, SourceError> {
        let mut config = self.base()?;
        // The end of a topic is its last stable offset, because that is where a member's reading ends.
        config.set("isolation.level", "read_committed");
        self.overlay(&mut config, &PRODUCER_ONLY);
        config.remove("group.instance.id");
        if let Some(group) = group {
            config.set("group.id", group).set("enable.auto.commit", "false");
        }
        checked(config)
    }

    /// The configuration of an idempotent producer.
    pub(super) fn producer(&self) -> Result<ClientConfig, SourceError> {
        let mut config = self.base()?;
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.type", "zstd")
            .set("linger.ms", "20")
            .set("queue.buffering.max.kbytes", "65536");
        self.overlay(&mut config, &CONSUMER_ONLY);
        checked(config)
    }

    fn base(&self) -> Result<ClientConfig, SourceError> {
        for (key, reason) in FORBIDDEN {
            if self.properties.contains_key(key) {
                return Err(configuration(format!("property {key:?} cannot be set: {reason}")));
            }
        }
        if self.bootstrap_servers.trim().is_empty() {
            return Err(configuration("source.kafka.bootstrap_servers is empty".to_owned()));
        }
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap_servers).set("client.id", "assay");
        Ok(config)
    }

    fn overlay(&self, config: &mut ClientConfig, without: &[&str]) {
        let foreign =
            |key: &str| without.iter().any(|name| key == *name || (name.ends_with('.') && key.starts_with(name)));
        for (key, value) in self.properties.iter().filter(|(key, _)| !foreign(key)) {
            config.set(key, value);
        }
    }
}

pub(super) fn configuration(detail: String) -> SourceError {
    SourceError::Configuration { detail }
}

/// Lets librdkafka judge names and values; its message is kept, a secret value is not.
fn checked(config: ClientConfig) -> Result<ClientConfig, SourceError> {
    match config.create_native_config() {
        Ok(_) => Ok(config),
        Err(KafkaError::ClientConfig(_, _, key, _)) if is_secret(&key) => {
            Err(configuration(format!("property {key:?} has a value that cannot be used")))
        }
        Err(KafkaError::ClientConfig(_, description, key, value)) => {
            Err(configuration(format!("property {key:?} = {value:?}: {description}")))
        }
        Err(error) => Err(configuration(error.to_string())),
    }
}

fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["password", "secret", "key", "token", "oauthbearer", "username", "credential", "jaas", "userinfo", "pem"]
        .iter()
        .any(|word| key.contains(word))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Property {
    Text(String),
    Boolean(bool),
    Integer(i64),
    Number(f64),
    Nested(BTreeMap<String, Property>),
}

fn flattened<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let mut flat = BTreeMap::new();
    flatten(String::new(), BTreeMap::deserialize(deserializer)?, &mut flat);
    Ok(flat)
}

fn flatten(prefix: String, properties: BTreeMap<String, Property>, flat: &mut BTreeMap<String, String>) {
    for (name, property) in properties {
        let key = format!("{prefix}{name}");
        let value = match property {
            Property::Text(text) => text,
            Property::Boolean(value) => value.to_string(),
            Property::Integer(value) => value.to_string(),
            Property::Number(value) => value.to_string(),
            Property::Nested(inner) => {
                flatten(format!("{key}."), inner, flat);
                continue;
            }
        };
        flat.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> KafkaOptions {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn properties_win_over_defaults_and_may_be_nested_or_typed() {
        let options = options("[properties]\n\"isolation.level\" = \"read_uncommitted\"\nsession.timeout.ms = 7000\n");
        let config = options.member("g", None).unwrap();
        assert_eq!(config.get("isolation.level"), Some("read_uncommitted"));
        assert_eq!(config.get("session.timeout.ms"), Some("7000"));
        assert_eq!(config.get("partition.assignment.strategy"), Some("cooperative-sticky"));
        assert_eq!(config.get("bootstrap.servers"), Some("localhost:9092"));
    }

    #[test]
    fn what_would_break_exactly_once_is_refused_by_name() {
        for key in ["enable.auto.commit", "enable.auto.offset.store", "enable.partition.eof", "group.id"] {
            let options = options(&format!("[properties]\n\"{key}\" = \"true\"\n"));
            assert!(options.member("g", None).unwrap_err().to_string().contains(key));
        }
    }

    #[test]
    fn an_unknown_property_and_a_bad_value_are_refused_by_name() {
        for text in ["[properties]\n\"no.such.thing\" = 1\n", "[properties]\n\"session.timeout.ms\" = \"soon\"\n"] {
            let error = options(text).member("g", None).unwrap_err().to_string();
            assert!(error.contains("no.such.thing") || error.contains("session.timeout.ms"), "{error}");
        }
    }

    #[test]
    fn the_new_protocol_gets_no_assignment_strategy() {
        let options = options("[properties]\n\"group.protocol\" = \"consumer\"\n");
        assert_eq!(options.member("g", None).unwrap().get("partition.assignment.strategy"), None);
    }

    #[test]
    fn static_members_of_one_process_have_names_of_their_own() {
        let options = options("[properties]\n\"group.instance.id\" = \"pod-1\"\n");
        assert_eq!(options.member("g", Some("ads")).unwrap().get("group.instance.id"), Some("pod-1-ads"));
        assert_eq!(options.member("g", None).unwrap().get("group.instance.id"), Some("pod-1"));
    }

    #[test]
    fn a_producer_gets_the_shared_properties_only() {
        let options = options("[properties]\n\"session.timeout.ms\" = 7000\n\"socket.keepalive.enable\" = true\n");
        let config = options.producer().unwrap();
        assert_eq!(config.get("session.timeout.ms"), None);
        assert_eq!(config.get("socket.keepalive.enable"), Some("true"));
        assert_eq!(config.get("enable.idempotence"), Some("true"));
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = "[properties]\n\"sasl.password\" = \"hunter2\"\n\"ssl.key.pem\" = \"hunter2\"\nx = \"shown\"\n";
        let printed = format!("{:?}", options(text));
        assert!(!printed.contains("hunter2") && printed.contains("shown"), "{printed}");
    }
}
