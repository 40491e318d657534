#!/bin/sh
# Makes the image slipway-base:bookworm from Debian packages, where no image registry can be reached.
#
# It holds Debian 12's Python 3.11 with venv and pip, and this machine's CA certificates, so that pip works
# behind a proxy that inspects TLS. Does nothing when the image is there, unless FORCE=1. Needs root (for
# debootstrap's chroot), debootstrap, and a Docker engine.
set -eu

IMAGE="${IMAGE:-slipway-base:bookworm}"
CERTIFICATES=/etc/ssl/certs/ca-certificates.crt

if [ "${FORCE:-0}" != 1 ] && docker image inspect "$IMAGE" >/dev/null 2>&1; then
    echo "$IMAGE is there already (FORCE=1 makes it anew)"
    exit 0
fi
if [ "$(id -u)" != 0 ]; then
    echo "make base-image needs root: debootstrap unpacks Debian in a chroot. Try: sudo make base-image" >&2
    exit 1
fi
if ! command -v debootstrap >/dev/null; then
    echo "make base-image needs debootstrap: apt-get install debootstrap" >&2
    exit 1
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
trap 'exit 130' INT TERM

debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root"
if [ -f "$CERTIFICATES" ]; then
    cp "$CERTIFICATES" "$root$CERTIFICATES"
fi

# What no program reads in a container. Debian's pip needs nothing of it; the licences stay.
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/debconf/* "$root"/var/log/* \
    "$root"/usr/share/man "$root"/usr/share/info "$root"/usr/share/locale "$root"/usr/share/lintian
find "$root"/usr/share/doc -mindepth 2 ! -name copyright ! -type d -delete
find "$root" -xdev -name __pycache__ -type d -prune -exec rm -rf {} +

tar -C "$root" --one-file-system --numeric-owner -c . |
    docker import --change 'CMD ["bash"]' --change 'ENV LANG=C.UTF-8' \
        --change 'LABEL org.opencontainers.image.title=slipway-base' \
        --message "debootstrap --variant=minbase bookworm" - "$IMAGE" >/dev/null
docker image inspect --format "made $IMAGE: {{.Size}} bytes" "$IMAGE"
