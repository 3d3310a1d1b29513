#!/usr/bin/env bash
# Installs what the build needs where it is missing; says so; changes nothing when all is there.
set -euo pipefail
export PATH="$HOME/.cargo/bin:$PATH"
minimum=1.95

missing=()
for tool in cmake gcc g++ make perl pkg-config curl; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
if ((${#missing[@]})); then
  if [ "$(id -u)" = 0 ]; then as_root=()
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as_root=(sudo -n)
  else
    echo "setup: missing: ${missing[*]}. Install them (with ca-certificates) and try again: no root here." >&2
    exit 1
  fi
  echo "setup: installing system packages for: ${missing[*]}" >&2
  if command -v apt-get >/dev/null; then
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq cmake gcc g++ make perl pkg-config curl ca-certificates
  elif command -v dnf >/dev/null; then
    "${as_root[@]}" dnf install -y -q cmake gcc gcc-c++ make perl pkgconf-pkg-config curl ca-certificates
  elif command -v apk >/dev/null; then
    "${as_root[@]}" apk add -q cmake gcc g++ make perl pkgconf curl ca-certificates musl-dev linux-headers
  else
    echo "setup: no apt-get, dnf or apk here; install: ${missing[*]}" >&2
    exit 1
  fi
fi

version=$(cargo --version 2>/dev/null | awk '{print $2}' || true)
if [ -z "$version" ] || [ "$(printf '%s\n' "$minimum" "$version" | sort -V | head -n 1)" != "$minimum" ]; then
  echo "setup: cargo is ${version:-missing}, $minimum or newer is needed; installing stable through rustup" >&2
  if command -v rustup >/dev/null; then
    rustup toolchain install stable --profile minimal --component rustfmt,clippy
    echo "setup: if cargo is still old, run: rustup default stable" >&2
  else
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --no-modify-path --profile minimal --component rustfmt,clippy
  fi
fi
