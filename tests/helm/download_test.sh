#!/usr/bin/env bash
# The init container's script against a server on loopback: fetches a sharded model, keeps what is there, refuses a wrong sum.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v curl >/dev/null && command -v python3 >/dev/null || { echo "left out: needs curl and python3"; exit 0; }
work=$(mktemp -d)
trap '[[ -z "${server:-}" ]] || kill "$server"; rm -rf "$work"' EXIT

hub="$work/hub/acme/small/resolve/v1"
mkdir -p "$hub"
echo '{"architectures": ["Small"]}' >"$hub/config.json"
echo '{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors", "c": "model-2-of-2.safetensors"}}' >"$hub/model.safetensors.index.json"
echo one >"$hub/model-1-of-2.safetensors"
echo two >"$hub/model-2-of-2.safetensors"

# Writes its port, then each path that was asked for and whether the token came along.
cat >"$work/serve.py" <<'PYTHON'
import http.server, os, sys
class Hub(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        with open(sys.argv[2], "a") as log:
            log.write(f"{self.path} {self.headers.get('Authorization', '-')}\n")
        super().do_GET()
    def log_message(self, *_): pass
os.chdir(sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
print(server.server_port, flush=True)
server.serve_forever()
PYTHON
exec 3< <(exec python3 "$work/serve.py" "$work/hub" "$work/asked")
server=$!
read -r port <&3

sum=$(sha256sum "$hub/config.json" | cut -d' ' -f1)
printf 'acme/small v1 small config.json %s\nacme/small v1 small model.safetensors.index.json -\n' "$sum" >"$work/list"
fetch() { HUB_ENDPOINT="http://127.0.0.1:$port" HUB_TOKEN=t0ken no_proxy=127.0.0.1 sh helm/files/download.sh "$1" "$work/models"; }

fetch "$work/list"
for file in config.json model.safetensors.index.json model-1-of-2.safetensors model-2-of-2.safetensors; do
  cmp "$hub/$file" "$work/models/small/$file"
done
[[ "$(grep -c 'Bearer t0ken' "$work/asked")" == 4 ]]
fetch "$work/list"
[[ "$(wc -l <"$work/asked")" == 4 ]] || { echo "what was there was fetched again"; exit 1; }

# Another revision is another file, and a wrong sum leaves the old one.
mkdir -p "$work/hub/acme/small/resolve/v2"
echo other >"$work/hub/acme/small/resolve/v2/config.json"
printf 'acme/small v2 small config.json %s\n' "$sum" >"$work/list2"
if fetch "$work/list2"; then echo "a wrong sum was accepted"; exit 1; fi
cmp "$hub/config.json" "$work/models/small/config.json"
sed -i 's/ [0-9a-f]*$/ -/' "$work/list2"
fetch "$work/list2"
grep -q other "$work/models/small/config.json"
