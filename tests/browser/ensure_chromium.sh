#!/usr/bin/env bash
# Installs Debian's Chromium for the browser tests where that is possible; says why where it is not. Never fails.
set -u

for name in chromium chromium-browser google-chrome google-chrome-stable; do
  if command -v "$name" >/dev/null; then
    exit 0
  fi
done
skip() {
  echo "browser tests will be skipped: no Chromium here, and $1. Install it with your system's packages (Debian: apt-get install chromium)."
  exit 0
}
command -v apt-get >/dev/null || skip "this system has no apt-get"
[ "$(id -u)" -eq 0 ] || skip "only root may install it"
echo "browser tests: installing Debian's Chromium"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update >/dev/null 2>&1 || skip "apt-get cannot reach its package lists"
apt-get -qq install -y --no-install-recommends chromium >/dev/null 2>&1 || skip "apt-get could not install it"
command -v chromium >/dev/null || skip "the package brought no chromium command"
