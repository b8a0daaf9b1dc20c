# shellcheck shell=bash
# ask.sh: sourced by the other scripts here. `ask QUESTION` is true if the answer is yes: with YES=1 or CI=true at
# once, on a terminal by a prompt, and without a terminal it is no, so that nothing ever hangs.

ask() {
  if [ "${YES:-}" = 1 ] || [ "${CI:-}" = true ]; then
    return 0
  fi
  if [ ! -t 0 ] || [ ! -t 2 ]; then
    echo "No terminal to ask on; run again with YES=1 to agree." >&2
    return 1
  fi
  local answer
  read -r -p "$1 [y/N] " answer
  case "$answer" in y | Y | yes | Yes) return 0 ;; *) return 1 ;; esac
}

# as_root COMMAND...: as root, through sudo where needed. Without a terminal sudo must not ask for a password.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif ! command -v sudo >/dev/null; then
    echo "This needs root and there is no sudo here. As root, run: $*" >&2
    return 1
  elif [ -t 0 ]; then
    sudo "$@"
  else
    sudo -n "$@"
  fi
}

# apt_install PACKAGE...: installs packages by name, with fresh lists of what there is.
apt_install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 update &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 \
      install -y --no-install-recommends "$@"
}
