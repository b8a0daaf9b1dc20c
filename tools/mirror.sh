# mirror.sh: sourced by scripts that bootstrap a guest or read another suite. `debian_mirror` prints MIRROR, or the
# address that this system's own apt uses first.

debian_mirror() {
  local found=${MIRROR:-}
  if [ -z "$found" ]; then
    found=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' \
      /etc/apt/sources.list.d/*.sources /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
      grep -v security | head -n 1) || true
  fi
  if [ -z "$found" ]; then
    echo "No Debian mirror is configured here; name one in MIRROR." >&2
    return 1
  fi
  echo "$found"
}
