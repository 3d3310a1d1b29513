#!/usr/bin/env bash
# Real Apache Kafka brokers (KRaft, no container) on loopback, for the tests. `kafka.sh help` lists the verbs; README.md explains.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SELF=$HERE/$(basename "${BASH_SOURCE[0]}")
POM=$HERE/kafka-pom.xml
CHECKSUMS=$HERE/kafka.sha256
VERSION=$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$POM")
CACHE=${ASSAY_KAFKA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/assay-services/kafka-$VERSION}
HEAP=${ASSAY_KAFKA_HEAP:-256m}      # per broker
WAIT=${ASSAY_KAFKA_WAIT:-90}        # seconds until a start counts as failed
USERNAME=assay PASSWORD=assay-secret # of the SCRAM user with --secure

usage() {
  cat <<'EOF'
kafka.sh fetch                                   download the jars once (needs java and mvn)
kafka.sh up DIR [--brokers 1|3] [--secure] [--set KEY=VALUE]... [--owner PID [--temporary]]
                                                 start a cluster in the new folder DIR; it ends when PID does, and
                                                 with --temporary its folder goes, too
kafka.sh topic DIR NAME PARTITIONS [REPLICATION] create a topic
kafka.sh transactions DIR TOPIC COUNT FILE       send COUNT lines of FILE, drawn at random, without keys, in transactions
kafka.sh lag DIR GROUP                           lines of: topic partition committed end lag
kafka.sh kill-broker DIR N                       SIGKILL
kafka.sh stop-broker DIR N                       orderly stop
kafka.sh start-broker DIR N                      start it again: same port, same data
kafka.sh down DIR                                SIGKILL all, keep the files
EOF
}

die() { echo "kafka.sh: $*" >&2; exit 1; }

need() { # COMMAND...
  local command
  for command; do [[ -n $(type -P "$command") ]] || die "missing: $command is not on the PATH"; done
}

need_java() {
  local version
  need java setsid openssl
  version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
  ((${version:-0} >= 17)) || die "missing: Java 17 or newer, java is ${version:-unknown}"
}

# The cluster that is being started: it goes when the start fails or is interrupted.
STARTING=""
trap '[[ -z $STARTING ]] || kill_all "$STARTING"' EXIT
trap 'exit 130' INT TERM HUP

# --- the jars -------------------------------------------------------------------------------------------------------

classpath() { local IFS=:; local jars=("$CACHE"/lib/*.jar); echo "${jars[*]}"; }

# Sets JAVA to a command line that lacks the main class. The archive of loaded classes is ignored where it does not fit.
java_command() { # FLAG...
  JAVA=(env MALLOC_ARENA_MAX=2 java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xss512k
    -Xshare:auto -Xlog:disable -Xlog:all=error:stderr
    -Dorg.slf4j.simpleLogger.showDateTime=true -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS
    -Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn -Dlog4j2.StatusLogger.level=OFF)
  [[ ! -f $CACHE/kafka.jsa ]] || JAVA+=("-XX:SharedArchiveFile=$CACHE/kafka.jsa")
  JAVA+=(-cp "$(classpath)" "$@")
}

tool() { # MAIN ARGS...   a short-lived command that logs errors only
  java_command -Xmx128m -Dorg.slf4j.simpleLogger.defaultLogLevel=error
  "${JAVA[@]}" "$@"
}

# What a finished download was made from.
recipe() { cat "$POM" "$CHECKSUMS" | sha256sum; }

fetched() { [[ -f $CACHE/recipe.sum && $(<"$CACHE/recipe.sum") == "$(recipe)" ]]; }

# Every jar is one of the list, and every one of the list is there.
check() {
  (cd "$CACHE/lib" && sha256sum --quiet --strict -c "$CHECKSUMS") >&2 || die "the downloaded jars are not those of $CHECKSUMS"
  [[ $(find "$CACHE/lib" -name '*.jar' | wc -l) == "$(wc -l <"$CHECKSUMS")" ]] || die "$CACHE/lib holds jars that $CHECKSUMS does not list"
}

fetch() {
  local flags
  need_java
  fetched && return
  need mvn flock sha256sum
  mkdir -p "$CACHE"
  exec 9>"$CACHE.lock"
  flock 9
  if ! fetched; then
    rm -rf "${CACHE:?}"/{lib,train,kafka.jsa,recipe.sum}
    read -ra flags <<<"${ASSAY_MVN_FLAGS:-}"
    # -C: a download that does not match the repository's own checksum fails; ours are compared afterwards.
    mvn -q -B -C -Dstyle.color=never "${flags[@]}" -f "$POM" dependency:copy-dependencies -DoutputDirectory="$CACHE/lib" >&2 ||
      die "missing: the jars of Kafka $VERSION are not cached and Maven cannot download them (see above)"
    check
    train
    recipe >"$CACHE/recipe.sum"
  fi
  exec 9>&-
}

# One start and stop of a broker that leaves an archive of its loaded classes: halves the CPU time of each later start.
train() {
  local dir=$CACHE/train
  BROKERS=1 SECURE=yes STARTING=$dir
  prepare "$dir"
  launch "$dir" 1 "-XX:ArchiveClassesAtExit=$CACHE/kafka.jsa.new"
  await "$dir" 1
  tool org.apache.kafka.tools.TopicCommand --bootstrap-server "127.0.0.1:$(port "$dir" 1 PLAINTEXT)" \
    --create --topic train --partitions 1 >/dev/null
  halt "$dir" 1 TERM 60
  STARTING=""
  mv "$CACHE/kafka.jsa.new" "$CACHE/kafka.jsa" 2>/dev/null || true # a JVM that cannot write one does without
  rm -rf "$dir"
}

# --- configuration --------------------------------------------------------------------------------------------------

# A port nobody listens on, below the range the kernel hands to outgoing connections.
free_port() {
  local port
  while :; do
    port=$((10000 + (RANDOM * 32768 + RANDOM) % 20000))
    [[ " ${TAKEN:-} " == *" $port "* ]] && continue
    (exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$port") && continue
    TAKEN+=" $port"
    PORT=$port
    return
  done
}

port() { sed -n "s/^$3=//p" "$1/broker-$2/ports"; } # DIR N LISTENER

each_broker() { seq 1 "$(find "$1" -maxdepth 1 -name 'broker-*' | wc -l)"; }

joined() { # DIR LISTENER   host:port,host:port
  local n list=()
  for n in $(each_broker "$1"); do list+=("127.0.0.1:$(port "$1" "$n" "$2")"); done
  local IFS=,
  echo "${list[*]}"
}

certificates() { # DIR   a CA for clients to trust, and a certificate signed by it for all brokers
  local tls=$1/tls
  mkdir -p "$tls"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=Assay test CA" \
    -addext "keyUsage=critical,keyCertSign" -keyout "$tls/ca.key" -out "$1/ca.pem" 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=localhost" \
    -keyout "$tls/server.key" -out "$tls/server.csr" 2>/dev/null
  openssl x509 -req -in "$tls/server.csr" -CA "$1/ca.pem" -CAkey "$tls/ca.key" -CAcreateserial -days 30 \
    -extfile <(echo "subjectAltName=DNS:localhost,IP:127.0.0.1") -out "$tls/server.crt" 2>/dev/null
  cat "$tls/server.key" "$tls/server.crt" >"$tls/server.pem"
}

# Writes broker-N/{ports,server.properties} for every broker and formats their data folders.
prepare() { # DIR [KEY=VALUE...]
  local dir=$1 n listener listeners voters cluster replicas=1 insync=1 names=(PLAINTEXT CONTROLLER)
  shift
  if ((BROKERS == 3)); then replicas=3 insync=2; fi
  [[ $SECURE == no ]] || names+=(SASL_SSL SSL)
  mkdir -p "$dir"
  [[ $SECURE == no ]] || certificates "$dir"

  for n in $(seq 1 "$BROKERS"); do
    mkdir -p "$dir/broker-$n"
    for listener in "${names[@]}"; do
      free_port
      echo "$listener=$PORT"
    done >"$dir/broker-$n/ports"
  done
  voters=$(for n in $(seq 1 "$BROKERS"); do echo "$n@127.0.0.1:$(port "$dir" "$n" CONTROLLER)"; done | paste -sd,)
  cluster=$(head -c 15 /dev/urandom | base64 | tr '+/' 'ab')AA # 16 bytes in base64, as Kafka wants it

  for n in $(seq 1 "$BROKERS"); do
    listeners=$(sed 's#\(.*\)=\(.*\)#\1://127.0.0.1:\2#' "$dir/broker-$n/ports" | paste -sd,)
    {
      cat <<EOF
process.roles=broker,controller
node.id=$n
controller.quorum.voters=$voters
listeners=$listeners
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$dir/broker-$n/data

# replication
default.replication.factor=$replicas
min.insync.replicas=$insync
offsets.topic.replication.factor=$replicas
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$insync
share.coordinator.state.topic.replication.factor=$replicas
share.coordinator.state.topic.min.isr=$insync

# a dead broker loses its partitions after this long (default 9 s)
broker.session.timeout.ms=5000
broker.heartbeat.interval.ms=500

# groups react fast, and tests may ask for short timeouts
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=500
group.consumer.assignment.interval.ms=0

# small
auto.create.topics.enable=false
offsets.topic.num.partitions=$replicas
transaction.state.log.num.partitions=$replicas
share.coordinator.state.topic.num.partitions=1
num.network.threads=2
num.io.threads=4
background.threads=2
group.coordinator.threads=1
log.cleaner.dedupe.buffer.size=4194304
EOF
      if [[ $SECURE == yes ]]; then
        cat <<EOF

# TLS and SCRAM
ssl.keystore.type=PEM
ssl.keystore.location=$dir/tls/server.pem
ssl.truststore.type=PEM
ssl.truststore.location=$dir/ca.pem
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
EOF
      fi
      (($# == 0)) || printf '%s\n' "" "# --set" "$@"
    } >"$dir/broker-$n/server.properties"
  done

  local scram=() jobs=() job
  [[ $SECURE == no ]] || scram=(--add-scram "SCRAM-SHA-512=[name=$USERNAME,password=$PASSWORD]")
  for n in $(seq 1 "$BROKERS"); do
    tool kafka.tools.StorageTool format -t "$cluster" -c "$dir/broker-$n/server.properties" "${scram[@]}" \
      >"$dir/broker-$n/log" 2>&1 &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do
    wait "$job" || die "formatting failed: $(tail -n 5 "$dir"/broker-*/log)"
  done
}

write_env() { # DIR
  local dir=$1 n pids=()
  for n in $(each_broker "$dir"); do alive "$dir" "$n" && pids+=("$(<"$dir/broker-$n/pid")"); done
  {
    echo "KAFKA_BOOTSTRAP=$(joined "$dir" PLAINTEXT)"
    echo "KAFKA_PIDS=$(IFS=,; echo "${pids[*]:-}")"
    if [[ -f $dir/ca.pem ]]; then
      echo "KAFKA_SASL_SSL_BOOTSTRAP=$(joined "$dir" SASL_SSL)"
      echo "KAFKA_SSL_BOOTSTRAP=$(joined "$dir" SSL)"
      echo "KAFKA_SSL_CA_LOCATION=$dir/ca.pem"
      echo "KAFKA_SASL_MECHANISM=SCRAM-SHA-512"
      echo "KAFKA_SASL_USERNAME=$USERNAME"
      echo "KAFKA_SASL_PASSWORD=$PASSWORD"
    fi
  } >"$dir/env.new"
  mv "$dir/env.new" "$dir/env"
}

client_settings() { # DIR   what a librdkafka client needs for the two encrypted listeners
  cat <<EOF
# SCRAM over TLS
bootstrap.servers=$(joined "$1" SASL_SSL)
security.protocol=SASL_SSL
sasl.mechanism=SCRAM-SHA-512
sasl.username=$USERNAME
sasl.password=$PASSWORD
ssl.ca.location=$1/ca.pem

# TLS only
bootstrap.servers=$(joined "$1" SSL)
security.protocol=SSL
ssl.ca.location=$1/ca.pem
EOF
}

# --- processes ------------------------------------------------------------------------------------------------------

# When a process began: the time tells it from a later one with its number, and exec does not change it, as it does the arguments.
born() { # PID
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  read -ra stat <<<"${stat##*) }"
  [[ ${stat[0]} != Z ]] && echo "${stat[19]}"
}

note() { { born "$2" >"$1.born" || true; } && echo "$2" >"$1"; } # PIDFILE PID   remember a process that was just started

runs() { # PIDFILE   the process that was noted there is there
  local pid
  pid=$(cat "$1" 2>/dev/null) && [[ -s $1.born && $(born "$pid") == "$(<"$1.born")" ]]
}

alive() { runs "$1/broker-$2/pid"; } # DIR N

# In a session of its own, with no descriptor of the caller.
launch() { # DIR N FLAG...
  local dir=$1 n=$2
  shift 2
  ! alive "$dir" "$n" || die "broker $n is already running"
  java_command -Xms64m "-Xmx$HEAP" "$@"
  setsid "${JAVA[@]}" kafka.Kafka "$dir/broker-$n/server.properties" </dev/null >>"$dir/broker-$n/log" 2>&1 9>&- &
  note "$dir/broker-$n/pid" $!
}

# The number of brokers in the cluster, according to the one at PORT: a Metadata v1 request for no topics.
brokers_known() { # PORT
  local bytes
  bytes=$(
    exec 2>/dev/null 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
    printf '\0\0\0\016\0\003\0\001\0\0\0\001\377\377\0\0\0\0' >&3
    timeout 2 head -c 12 <&3 | od -An -v -tu1
  ) || return 1
  awk '{ for (i = 1; i <= NF; i++) b[++n] = $i } END { if (n < 12) exit 1; print b[12] }' <<<"$bytes"
}

await() { # DIR N...   until each of the running brokers knows all of them to be alive
  local dir=$1 n live=0 seen deadline=$((SECONDS + WAIT))
  shift
  for n in $(each_broker "$dir"); do if alive "$dir" "$n"; then live=$((live + 1)); fi; done
  for n in "$@"; do
    while :; do
      seen=$(brokers_known "$(port "$dir" "$n" PLAINTEXT)") || seen=0
      ((seen >= live)) && break
      alive "$dir" "$n" || { echo "kafka.sh: broker $n ended: $dir/broker-$n/log" >&2; return 1; }
      ((SECONDS < deadline)) || { echo "kafka.sh: broker $n knows $seen of $live brokers after $WAIT s" >&2; return 1; }
      sleep 0.05
    done
  done
}

halt() { # DIR N SIGNAL SECONDS   and SIGKILL after SECONDS
  local dir=$1 n=$2 pid deadline=$((SECONDS + $4))
  alive "$dir" "$n" || return 0
  pid=$(<"$dir/broker-$n/pid")
  kill "-$3" "$pid" 2>/dev/null || true
  while alive "$dir" "$n"; do
    ((SECONDS < deadline)) || kill -KILL "$pid" 2>/dev/null || true
    sleep 0.02
  done
  rm -f "$dir/broker-$n"/{pid,pid.born}
}

kill_all() { # DIR
  local n
  for n in $(each_broker "$1"); do halt "$1" "$n" KILL 0; done
}

# --- verbs ----------------------------------------------------------------------------------------------------------

up() {
  local dir=$1 owner="" temporary="" settings=() attempt
  shift
  BROKERS=1 SECURE=no
  while (($#)); do
    case $1 in
      --brokers) BROKERS=${2:?--brokers needs a number}; shift 2 ;;
      --secure) SECURE=yes; shift ;;
      --set) settings+=("${2:?--set needs KEY=VALUE}"); shift 2 ;;
      --owner) owner=${2:?--owner needs a PID}; shift 2 ;;
      --temporary) temporary=yes; shift ;;
      *) die "up: unknown argument $1" ;;
    esac
  done
  [[ $BROKERS == 1 || $BROKERS == 3 ]] || die "--brokers is 1 or 3"
  [[ ! -e $dir/broker-1 ]] || die "$dir already holds a cluster: choose a new folder, or start-broker"
  fetch
  STARTING=$dir
  # A port may be taken between the choice and its use: then choose again.
  for attempt in 1 2 3; do
    prepare "$dir" "${settings[@]}"
    local n
    for n in $(seq 1 "$BROKERS"); do launch "$dir" "$n"; done
    # shellcheck disable=SC2046
    await "$dir" $(seq 1 "$BROKERS") && break
    kill_all "$dir"
    if ((attempt == 3)) || ! grep -qs "BindException\|Address already in use" "$dir"/broker-*/log; then
      tail -n 20 "$dir"/broker-*/log >&2
      die "the cluster did not start"
    fi
    rm -rf "$dir"/broker-*
  done
  write_env "$dir"
  STARTING=""
  if [[ -n $owner ]]; then
    setsid "$SELF" watch "$dir" "$owner" "$(born "$owner")" "$temporary" </dev/null >/dev/null 2>&1 &
    note "$dir/watch" $!
  fi
  if [[ $SECURE == yes ]]; then client_settings "$dir" | tee "$dir/client.properties"; else cat "$dir/env"; fi
}

# Takes the cluster down when its owner is gone, however that ended.
watch() { # DIR OWNER BORN TEMPORARY-OR-EMPTY
  while [[ $(born "$2") == "$3" ]]; do
    [[ -e $1/env ]] || return 0 # it is down already
    sleep 0.5
  done
  rm -f "$1"/watch{,.born}
  down "$1"
  [[ -z $4 ]] || rm -rf "${1:?}"
}

start_broker() {
  launch "$1" "$2"
  # shellcheck disable=SC2046
  await "$1" $(for n in $(each_broker "$1"); do if alive "$1" "$n"; then echo "$n"; fi; done) || die "broker $2 did not start"
  write_env "$1"
}

down() {
  local dir=$1
  [[ -d $dir ]] || return 0
  kill_all "$dir"
  rm -f "$dir/env" # ends the watch
  while runs "$dir/watch"; do sleep 0.05; done
  rm -f "$dir"/watch{,.born}
}

topic() {
  tool org.apache.kafka.tools.TopicCommand --bootstrap-server "$(joined "$1" PLAINTEXT)" \
    --create --topic "$2" --partitions "$3" ${4:+--replication-factor "$4"}
}

transactions() { # DIR TOPIC COUNT FILE   a transaction every 100 ms; the last ends with its marker, too
  tool org.apache.kafka.tools.ProducerPerformance --bootstrap-server "$(joined "$1" PLAINTEXT)" --topic "$2" \
    --num-records "$3" --payload-file "$4" --throughput 20000 --transactional-id "$2" --transaction-duration-ms 100 >&2
}

lag() {
  local table
  table=$(tool org.apache.kafka.tools.consumer.group.ConsumerGroupCommand --bootstrap-server "$(joined "$1" PLAINTEXT)" \
    --describe --group "$2" 2>&1) || die "$(grep -m1 . <<<"$table")"
  grep -q '^GROUP ' <<<"$table" || die "$(grep -m1 . <<<"$table")"
  awk -v group="$2" '$1 == group && $3 ~ /^[0-9]+$/ { print $2, $3, $4, $5, $6 }' <<<"$table" | sort -k1,1 -k2,2n
}

main() {
  local verb=${1:-help} dir
  shift || true
  case $verb in
    fetch) fetch; echo "$CACHE"; return ;;
    help | -h | --help) usage; return ;;
  esac
  dir=$(realpath -m "${1:?kafka.sh $verb needs DIR}")
  shift
  case $verb in
    up | down | watch) "$verb" "$dir" "$@" ;;
    topic) (($# >= 2)) || die "topic DIR NAME PARTITIONS [REPLICATION]"; topic "$dir" "$@" ;;
    transactions) (($# == 3)) || die "transactions DIR TOPIC COUNT FILE"; transactions "$dir" "$@" ;;
    lag) (($# == 1)) || die "lag DIR GROUP"; lag "$dir" "$@" ;;
    kill-broker | stop-broker | start-broker)
      [[ -f $dir/broker-${1:-}/ports ]] || die "no broker '${1:-}' in $dir"
      case $verb in
        kill-broker) halt "$dir" "$1" KILL 0; write_env "$dir" ;;
        stop-broker) halt "$dir" "$1" TERM 20; write_env "$dir" ;;
        start-broker) start_broker "$dir" "$1" ;;
      esac ;;
    *) usage >&2; exit 2 ;;
  esac
}

main "$@"
