#!/bin/bash
# install-rust.sh: sees to it that `cargo` is the Rust that rust-toolchain.toml pins, by way of rustup.
#
# If it is not there, says what would be installed and, when agreed (YES=1, CI=true or a prompt), installs it: the
# package rustup where the distribution has one, else the official installer, which writes to ~/.rustup and ~/.cargo
# only and changes no shell profile.
set -euo pipefail
. "$(dirname "$0")/ask.sh"
cd "$(dirname "$0")/.."

pinned=$(sed -n 's/^channel = "\(.*\)"$/\1/p' rust-toolchain.toml)
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

# Whether cargo here is the pinned version or a later one. With rustup this may fetch the toolchain, so it comes last.
is_good() {
  local found
  found=$(cargo --version 2>/dev/null | cut -d ' ' -f 2 | cut -d - -f 1) || return 1
  [ -n "$found" ] && [ "$(printf '%s\n%s\n' "$pinned" "$found" | sort -V | head -n 1)" = "$pinned" ]
}

# Whether the toolchain is there already.
has_toolchain() {
  rustup toolchain list 2>/dev/null | grep -q "^$pinned-"
}

installer="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none --no-modify-path"

install_rustup() {
  if [ "$1" = package ]; then
    apt_install rustup >&2
  else
    RUSTUP_INIT_SKIP_PATH_CHECK=yes bash -o pipefail -c "$installer" >&2
  fi
}

if command -v rustup >/dev/null; then
  if ! has_toolchain; then
    echo "Rust $pinned (pinned in rust-toolchain.toml) is not installed; rustup would fetch it." >&2
    ask "Fetch it now?" || exit 1
    rustup toolchain install "$pinned" --profile minimal --component rustfmt --component clippy >&2
  fi
  exit 0
fi
if is_good; then
  exit 0
fi

way=installer
# Debian's rustup and its rustc exclude each other: where rustc is installed it stays.
if [ -n "$(apt-cache policy rustup 2>/dev/null | sed -n 's/^  Candidate: \([0-9].*\)/\1/p')" ] &&
  ! dpkg-query -W -f '${db:Status-Status}' rustc 2>/dev/null | grep -q '^installed'; then
  way=package
fi
echo "firn is built with Rust $pinned, which is not installed. It would be installed by rustup:" >&2
if [ $way = package ]; then
  echo "  as root: apt-get install --no-install-recommends rustup" >&2
else
  echo "  $installer" >&2
fi
echo "  rustup toolchain install $pinned --profile minimal --component rustfmt --component clippy" >&2
ask "Install Rust now?" || exit 1
if ! install_rustup $way; then
  echo "rustup could not be installed. Install Rust $pinned yourself (https://rustup.rs) and run this again." >&2
  exit 1
fi
hash -r
rustup toolchain install "$pinned" --profile minimal --component rustfmt --component clippy >&2
