# A small Debian, kept between runs outside the clone, and the packages of this clone: to be sourced after gateway.sh.
# shellcheck shell=bash disable=SC2034

# The host's own release where that is a Debian, whose mirror it has; DEBIAN_SUITE goes first.
# shellcheck disable=SC1091 # os-release(5)
SUITE=${DEBIAN_SUITE:-$(. /etc/os-release && if [[ $ID == debian ]]; then echo "${VERSION_CODENAME:-}"; fi)}
SUITE=${SUITE:-bookworm}
# What it has beside what is essential.
DEBIAN_PACKAGES=systemd,systemd-sysv,dbus

# `debian_root FOLDER`: a fresh copy of it, for this run to change. Needs root.
debian_root() {
    local cache key made
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/pushgate-boot
    key=$SUITE-$(dpkg --print-architecture)-$(cksum <<<"$DEBIAN_PACKAGES" | cut -d' ' -f1)
    mkdir -p "$cache"
    # One run makes it, others wait.
    exec {lock}>"$cache/$key.lock"
    flock "$lock"
    if [[ ! -d $cache/$key ]]; then
        say "a Debian $SUITE, to be kept in $cache"
        made=$cache/$key.partial
        rm -rf --one-file-system "$made"
        # shellcheck disable=SC2046 # no mirror: debootstrap knows one
        quiet timeout 900 debootstrap --variant=minbase --include="$DEBIAN_PACKAGES" "$SUITE" "$made" $(debian_mirror)
        rm -f "$made"/var/cache/apt/archives/*.deb
        : >"$made/etc/machine-id"
        mv "$made" "$cache/$key"
    fi
    cp -a --reflink=auto "$cache/$key" "$1"
    exec {lock}>&-
}

# The mirror that this machine's own apt has the release from; DEBIAN_MIRROR goes first.
debian_mirror() {
    if [[ -n ${DEBIAN_MIRROR:-} ]]; then
        echo "$DEBIAN_MIRROR"
    else
        # shellcheck disable=SC2016 # apt-get fills it in
        apt-get indextargets --format '$(REPO_URI)' "Codename: $SUITE" "Created-By: Packages" "Component: main" 2>/dev/null | head -n 1
    fi
}

# PACKAGES: the folder with the .deb and the tarball, built where that is needed; DEB: the .deb. PUSHGATE_PACKAGES names a
# folder where they are already.
find_packages() {
    if [[ -z ${PUSHGATE_PACKAGES:-} ]]; then
        local tools=${XDG_CACHE_HOME:-$HOME/.cache}/pushgate-tools
        command -v dpkg-shlibdeps >/dev/null || install_packages dpkg-dev
        export PATH=$tools/bin:$PATH
        if ! cargo deb --version >/dev/null 2>&1; then
            say "installing cargo-deb, to be kept in $tools"
            # With a target folder of its own, so that it does not take part in the clone's.
            quiet env CARGO_TARGET_DIR="$WORK/cargo-deb" cargo install --locked --root "$tools" cargo-deb
            rm -rf "$WORK/cargo-deb"
        fi
        say "building the packages"
        packaging/build
        PUSHGATE_PACKAGES=target/package
    fi
    PACKAGES=$(realpath "$PUSHGATE_PACKAGES")
    DEB=$(echo "$PACKAGES"/pushgate_*.deb)
    [[ -f $DEB ]] || fail "there is not one .deb in $PACKAGES"
}
