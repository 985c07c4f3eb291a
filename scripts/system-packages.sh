#!/usr/bin/env bash
# System packages beyond Python 3.11 with venv, pip, git and make. Today there are none: neither the commands nor the tests need one, so this script installs nothing.
# It exists so that the day a test needs a system package (a browser's libraries, say), there is one place that says so.
# Usage: scripts/system-packages.sh      checks for the basics and exits 1 naming what is missing
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
echo "nothing to install: python3 with venv, git and make are all that digpt asks of the system"
