#!/usr/bin/env bash
# System packages beyond Python 3.11 with venv, pip, git and make: Chromium, for the tests in a browser (`make test-browser`). Everything else works without it.
# Usage: scripts/system-packages.sh      exits 1 naming what is missing: the basics, which it leaves to you, or Chromium, where apt could not install it
set -euo pipefail

missing=()
for tool in python3 git make; do
  command -v "$tool" >/dev/null || missing+=("$tool")
done
if command -v python3 >/dev/null && ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
  missing+=("python3-venv")
fi
if [ "${#missing[@]}" -gt 0 ]; then
  echo "missing: ${missing[*]}; install them with the system's package manager" >&2
  exit 1
fi

for browser in chromium chromium-browser google-chrome google-chrome-stable; do
  if command -v "$browser" >/dev/null; then
    echo "nothing to install: python3 with venv, git, make and $browser are here"
    exit 0
  fi
done

root=()
if [ "$(id -u)" -ne 0 ]; then root=(sudo -n); fi  # -n: rather fail than ask for a password that nobody types
if ! command -v apt-get >/dev/null || ! "${root[@]}" true 2>/dev/null; then
  echo "missing: chromium; install it with the system's package manager (here that takes apt and root)" >&2
  exit 1
fi
# Every wait has an end: an index that cannot be reached must not hold up whoever runs this.
apt=(timeout 600 "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o DPkg::Lock::Timeout=60)
echo "installing chromium with apt"
if ! "${apt[@]}" update || ! "${apt[@]}" install --yes --no-install-recommends chromium; then
  echo "missing: chromium, which apt could not install (see above); the tests in a browser need it, nothing else does" >&2
  exit 1
fi
