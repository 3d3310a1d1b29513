//! Runs the scripts that start and stop servers, and reads the settings they leave.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A folder that the server's watcher removes when this process has ended.
pub fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("assay-test-{name}-{:016x}", rand::random::<u64>()))
}

/// Starts a server in a new folder with an owner: this process. None when something that it needs is missing.
pub fn up(script: &str, folder: &Path, flags: &[&str]) -> Option<BTreeMap<String, String>> {
    let owner = std::process::id().to_string();
    let output = command(script)
        .arg("up")
        .arg(folder)
        .args(flags)
        .args(["--owner", &owner, "--temporary"])
        .output()
        .expect("bash is there");
    if output.status.success() {
        return Some(settings(folder));
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let Some(missing) = told.lines().find(|line| line.contains("missing: ")) else {
        panic!("{script} did not start its server: {told}");
    };
    assert!(!is_required(), "{missing}");
    say(&format!("LEFT OUT, tests that need {script} {}: {missing}", flags.join(" ")));
    None
}

/// Runs another verb of a script.
pub fn run(script: &str, verb: &str, folder: &Path, arguments: &[&str]) {
    let output = command(script).arg(verb).arg(folder).args(arguments).output().expect("bash is there");
    assert!(output.status.success(), "{script} {verb}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Says something on standard error that the test harness does not hold back.
pub fn say(text: &str) {
    // Nobody may read it.
    let _ = writeln!(std::io::stderr(), "\n{text}");
}

fn is_required() -> bool {
    std::env::var_os("ASSAY_SERVICES").is_some_and(|value| value == "required")
}

fn command(script: &str) -> Command {
    let mut command = Command::new("bash");
    command.arg(format!("{}/tests/services/{script}", env!("CARGO_MANIFEST_DIR"))).stdin(Stdio::null());
    command
}

/// The lines `KEY=VALUE` of the file `env`.
fn settings(folder: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(folder.join("env")).expect("the script wrote it");
    text.lines().filter_map(|line| line.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::worker::until;

    /// Starts a server for an owner that kills itself; gives the server's process.
    fn orphan(script: &str, folder: &Path, pid: &str) -> Option<String> {
        let line = "bash \"$0\" up \"$1\" --owner $$ --temporary; kill -KILL $$";
        let path = format!("{}/tests/services/{script}", env!("CARGO_MANIFEST_DIR"));
        let output = Command::new("bash").args(["-c", line, &path]).arg(folder).output().expect("bash is there");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        told.lines().find_map(|line| line.strip_prefix(pid)?.strip_prefix('=')).map(str::to_owned)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_ends_and_its_folder_goes_when_its_owner_is_killed() {
        for (script, pid) in [("objectstore.sh", "OBJECTSTORE_PID"), ("kafka.sh", "KAFKA_PIDS")] {
            let folder = folder("orphan");
            let Some(process) = tokio::task::block_in_place(|| orphan(script, &folder, pid)) else {
                assert!(!is_required(), "{script} does not start");
                continue;
            };
            let process = PathBuf::from(format!("/proc/{process}/exe"));
            until("the server has ended", || process.read_link().is_err()).await;
            until("its folder is gone", || !folder.exists()).await;
        }
    }
}
