//! Encryption, log-ins and secrets: TLS and SCRAM against a real broker, and nothing secret in any output.

use crate::services::kafka::Kafka;
use crate::stage::deployment::{Deployment, Worker};
use crate::stage::tables::places;
use crate::stage::worker::JOB;

const PASSWORD: &str = "ASSAY__SOURCE__KAFKA__PROPERTIES__SASL_PASSWORD";

/// Sections for one of the encrypted listeners.
fn sections(kafka: &Kafka, listener: &str, properties: &str) -> String {
    format!(
        "[source.kafka]\nbootstrap_servers = \"{}\"\n[source.kafka.properties]\n\"security.protocol\" = \"{listener}\"\n\
         \"ssl.ca.location\" = \"{}\"\n{properties}[tables]\nurl = \"tables\"\n",
        kafka.setting(&format!("KAFKA_{listener}_BOOTSTRAP")),
        kafka.setting("KAFKA_SSL_CA_LOCATION"),
    )
}

/// A user of the broker; the password is not in the file.
fn log_in(kafka: &Kafka) -> String {
    let (mechanism, user) = (kafka.setting("KAFKA_SASL_MECHANISM"), kafka.setting("KAFKA_SASL_USERNAME"));
    format!("\"sasl.mechanism\" = \"{mechanism}\"\n\"sasl.username\" = \"{user}\"\n")
}

async fn is_refused(worker: &mut Worker, words: &str) -> String {
    let status = worker.ended().await;
    let told = worker.log();
    assert_eq!(status.code(), Some(4), "{told}");
    assert!(told.contains(words), "{told}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_logs_in_over_tls_with_a_password_from_the_environment_and_prints_it_nowhere() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic = "logged-in";
    kafka.create_topic(topic, 2).await;
    kafka.submit(topic, 2, 0..40).await;
    let deployment = Deployment::new(topic, &sections(kafka, "SASL_SSL", &log_in(kafka)));
    let password = kafka.setting("KAFKA_SASL_PASSWORD");
    for verb in [&["check"][..], &["run", "--job", JOB, "--once", "--log", "trace"], &["dlq", "retry", "--all"]] {
        let output = deployment.verb(verb).env(PASSWORD, password).output().expect("the binary starts");
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(output.status.success(), "{verb:?}: {told}");
        assert!(!told.contains(password), "{verb:?} prints the password");
    }
    assert_eq!(places(&deployment.run.tables(), JOB).await.len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reads_over_tls_alone() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic = "over-tls";
    kafka.create_topic(topic, 2).await;
    kafka.submit(topic, 2, 0..40).await;
    let deployment = Deployment::new(topic, &sections(kafka, "SSL", ""));
    deployment.once().await;
    assert_eq!(places(&deployment.run.tables(), JOB).await.len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_ends_the_worker_and_is_not_printed() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic = "wrong-password";
    kafka.create_topic(topic, 1).await;
    let wrong = format!("{}\"sasl.password\" = \"open-sesame\"\n", log_in(kafka));
    let deployment = Deployment::new(topic, &sections(kafka, "SASL_SSL", &wrong));
    let mut worker = deployment.worker("refused", &["--log", "trace"]);
    let told = is_refused(&mut worker, "credentials").await;
    assert!(!told.contains("open-sesame"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_librdkafka_does_not_take_is_named_without_the_secrets_beside_it() {
    let Some(kafka) = Kafka::shared() else { return };
    let wrong = format!("{}\"sasl.password\" = \"open-sesame\"\n\"session.timeout.ms\" = \"soon\"\n", log_in(kafka));
    let deployment = Deployment::new("never-read", &sections(kafka, "SASL_SSL", &wrong));
    for verb in [&["check"][..], &["run", "--job", JOB], &["dlq", "retry", "--all"]] {
        let output = deployment.verb(verb).output().expect("the binary starts");
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told);
        assert!(!told.contains("open-sesame"), "{verb:?}: {told}");
    }
}
