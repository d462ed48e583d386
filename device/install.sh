#!/bin/sh
# Installs edge-cl on a board: Raspberry Pi OS (64-bit, bookworm, trixie), Debian, Ubuntu on a Jetson.
# Safe to run again: what is there is brought up to date, settings and learned state are never overwritten.
set -eu

usage() {
    cat <<'USAGE'
usage: sudo device/install.sh [options]
  --bundle FILE|URL    what the device runs; a URL is https://
  --sha256 HEX         what the bundle must hash to
  --with LIST          drivers: gpio,i2c,serial,audio,camera
  --runtime LIST       onnx (default), litert, or both: onnx,litert
  --jetson-index URL   package index with onnxruntime-gpu for this JetPack
  --extras LIST        other extras of the package, such as signed
  --wheel FILE         install this wheel, not the one of the package index
  --wheels FOLDER      offline: everything from this folder of wheels
  --python PROGRAM     Python 3.11 to 3.13; default: the newest found, the system's first
  --no-apt             install no system packages
  --no-start           enable the service, but leave it stopped
  --dry-run            print every command, change nothing
  --uninstall          remove it; keeps /etc/edge-cl and /var/lib/edge-cl
  --purge              with --uninstall: remove these, and the user, too
EDGE_CL_ROOT=/folder   look at, and write into, that folder; starts no service and adds no user
USAGE
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=${EDGE_CL_ROOT:-}
venv=$root/opt/edge-cl
etc=$root/etc/edge-cl
var=$root/var/lib/edge-cl
unit=$root/etc/systemd/system/edge-cl.service
link=$root/usr/local/bin/edge-cl
user=edge-cl

bundle='' sha256='' drivers='' runtimes=onnx jetson_index='' extras='' wheel='' wheels='' python=''
apt=yes start=yes dry='' uninstall='' purge=''

say() { printf 'edge-cl: %s\n' "$*"; }
fail() {
    printf 'edge-cl: %s\n' "$*" >&2
    exit 1
}

# Every change goes through here, so that --dry-run shows all of them.
run() {
    if [ -n "$dry" ]; then
        printf '+ %s\n' "$*"
    else
        "$@"
    fi
}

# run_to FILE MODE: standard input becomes the file.
run_to() {
    if [ -n "$dry" ]; then
        printf '+ write %s (%s)\n' "$1" "$2"
        cat >/dev/null
    else
        cat >"$1.part"
        chmod "$2" "$1.part"
        mv -f "$1.part" "$1"
    fi
}

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
        --bundle | --sha256 | --with | --runtime | --jetson-index | --extras | --wheel | --wheels | --python)
            [ $# -ge 2 ] || fail "$1 needs a value; see --help"
            case $1 in
            --bundle) bundle=$2 ;;
            --sha256) sha256=$2 ;;
            --with) drivers=$2 ;;
            --runtime) runtimes=$2 ;;
            --jetson-index) jetson_index=$2 ;;
            --extras) extras=$2 ;;
            --wheel) wheel=$2 ;;
            --wheels) wheels=$2 ;;
            --python) python=$2 ;;
            esac
            shift
            ;;
        --no-apt) apt='' ;;
        --no-start) start='' ;;
        --dry-run) dry=yes ;;
        --uninstall) uninstall=yes ;;
        --purge) purge=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) fail "unknown option $1; see --help" ;;
        esac
        shift
    done
}

# has LIST WORD: whether a list with commas holds a word
has() { case ,$1, in *,"$2",*) return 0 ;; *) return 1 ;; esac }

check_options() {
    for word in $(printf %s "$drivers" | tr , ' '); do
        has gpio,i2c,serial,audio,camera "$word" || fail "--with $word; known: gpio, i2c, serial, audio, camera"
    done
    for word in $(printf %s "$runtimes" | tr , ' '); do
        has onnx,litert "$word" || fail "--runtime $word; known: onnx, litert"
    done
    [ -z "$purge" ] || [ -n "$uninstall" ] || fail "--purge goes only with --uninstall"
    case $bundle in
    https://*) ;;
    http://*) [ -n "$sha256" ] || fail "--bundle over http:// needs --sha256: anybody on the way could change it" ;;
    '') [ -z "$sha256" ] || fail "--sha256 goes only with --bundle" ;;
    *) [ -f "$bundle" ] || fail "--bundle $bundle: no such file" ;;
    esac
    [ -z "$wheel" ] || [ -f "$wheel" ] || fail "--wheel $wheel: no such file"
    [ -z "$wheels" ] || [ -d "$wheels" ] || fail "--wheels $wheels: no such folder"
}

check_root() {
    [ -n "$dry" ] || [ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "needs root: sudo $0"
}

# ------------------------------------------------------------------ what this machine is

release() { sed -n "s/^$1=//p" "$root/etc/os-release" 2>/dev/null | tr -d '"' | head -n 1; }

# a property of the device tree, which ends with a zero byte
tree() { if [ -r "$root/proc/device-tree/$1" ]; then tr -d '\0' <"$root/proc/device-tree/$1"; fi; }

look() {
    model=$(tree model)
    serial=$(tree serial-number)
    os=$(release ID)
    os_version=$(release VERSION_ID)
    codename=$(release VERSION_CODENAME)
    board=other
    case $model in
    "Raspberry Pi"*) board=pi ;;
    *Jetson*) board=jetson ;;
    esac
    [ ! -f "$root/etc/nv_tegra_release" ] || board=jetson
    say "${model:-a board that does not say its name}, ${os:-unknown system} ${os_version:-} ${codename:-}"
}

# The fifth byte of any program says 1 for 32-bit, 2 for 64-bit; the kernel alone may be 64-bit.
check_bits() {
    for program in "$root/usr/bin/env" "$root/bin/sh"; do
        [ -r "$program" ] || continue
        bits=$(od -An -tu1 -j4 -N1 "$program" 2>/dev/null | tr -d ' ')
        [ "$bits" != 1 ] || fail "this system is 32-bit: there are no wheels of numpy and the runtimes for it." \
            "Write the card anew with the 64-bit image of Raspberry Pi OS"
        return 0
    done
}

# Sets $python_found; $python_version as 3.11
find_python() {
    for candidate in ${python:-$root/usr/bin/python3 python3 python3.13 python3.12 python3.11}; do
        path=$(command -v "$candidate" 2>/dev/null) || continue
        version=$("$path" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        case $version in
        3.11 | 3.12 | 3.13)
            python_found=$path python_version=$version
            return 0
            ;;
        esac
        say "$path is Python $version"
    done
    fail "needs Python 3.11, 3.12 or 3.13${python:+, not $python}. $(advise_python)"
}

advise_python() {
    case $os-$os_version in
    ubuntu-22.04) cat <<'ADVICE' ;;
Ubuntu 22.04 has 3.10. Take one of:
  sudo add-apt-repository ppa:deadsnakes/ppa && sudo apt-get install python3.11 python3.11-venv
  curl -LsSf https://astral.sh/uv/install.sh | sh && uv python install 3.12
and run this again with --python python3.11, or --python "$(uv python find 3.12)"
ADVICE
    debian-11) echo "Bullseye has 3.9: upgrade to bookworm" ;;
    *) echo "Install one, and name it: --python /path/to/python3.12" ;;
    esac
}

# Bindings that only apt has are seen from the environment only with the system's packages, and its Python.
needs_system_packages() { has "$drivers" camera || has "$drivers" gpio; }

check_system_python() {
    needs_system_packages || return 0
    case $python_found in
    "$root"/usr/bin/python3*) ;;
    *) say "note: $python_found is not the system's Python, so it cannot see apt's camera and GPIO packages" ;;
    esac
}

# ------------------------------------------------------------------ installing

apt_packages() {
    [ "$python_found" != "$root/usr/bin/python3" ] || printf 'python3-venv '
    if has "$drivers" gpio; then printf 'python3-lgpio python3-gpiozero '; fi
    if has "$drivers" audio; then printf 'libportaudio2 '; fi
    if has "$drivers" camera && [ "$board" = pi ]; then printf 'python3-picamera2 '; fi
}

install_apt() {
    [ -n "$apt" ] || return 0
    packages=$(apt_packages)
    [ -n "$packages" ] || return 0
    if ! command -v apt-get >/dev/null; then
        say "no apt-get here; these are needed: $packages"
        return 0
    fi
    missing=''
    for package in $packages; do
        if [ -n "$dry" ] || ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok'; then
            missing="$missing $package"
        fi
    done
    [ -n "$missing" ] || return 0
    run apt-get update -qq
    known=''
    for package in $missing; do
        if [ -n "$dry" ] || apt-cache show "$package" >/dev/null 2>&1; then
            known="$known $package"
        else
            say "note: this system has no package $package; Raspberry Pi OS has"
        fi
    done
    [ -n "$known" ] || return 0
    # shellcheck disable=SC2086  # a list of names
    run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $known
}

make_venv() {
    if [ -x "$venv/bin/python" ]; then
        found=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
        if [ "$found" = "$python_version" ] && { ! needs_system_packages || sees_system; }; then
            return 0
        fi
        say "the environment is of Python ${found:-unknown}, or does not see the system's packages: made anew"
        run rm -rf "$venv"
    fi
    if needs_system_packages; then
        run "$python_found" -m venv --system-site-packages "$venv"
    else
        run "$python_found" -m venv "$venv"
    fi
}

sees_system() { grep -qi '^include-system-site-packages *= *true' "$venv/pyvenv.cfg"; }

pip() {
    if [ -n "$wheels" ]; then
        run "$venv/bin/python" -m pip --disable-pip-version-check install -q --no-index --find-links "$wheels" "$@"
    else
        run "$venv/bin/python" -m pip --disable-pip-version-check install -q "$@"
    fi
}

all_extras() {
    list=$extras
    for word in $(printf %s "$drivers" | tr , ' '); do
        # picamera2 of the system comes before OpenCV
        [ "$word" != camera ] || [ "$board" != pi ] || continue
        list=$list,$word
    done
    for word in $(printf %s "$runtimes" | tr , ' '); do
        [ "$word" != onnx ] || ! gpu || continue
        list=$list,$word
    done
    printf %s "$list" | sed 's/^,*//; s/,,*/,/g; s/,*$//'
}

gpu() { [ "$board" = jetson ] && [ -n "$jetson_index" ] && has "$runtimes" onnx; }

has_package() { [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip show -q "$1" >/dev/null 2>&1; }

install_packages() {
    what=edge-cl
    [ ! -f "$here/../pyproject.toml" ] || what=$(CDPATH='' cd -- "$here/.." && pwd)
    [ -z "$wheel" ] || what=$(CDPATH='' cd -- "$(dirname -- "$wheel")" && pwd)/$(basename -- "$wheel")
    list=$(all_extras)
    # the two overwrite each other's files
    if gpu; then
        if has_package onnxruntime; then run "$venv/bin/python" -m pip uninstall -q -y onnxruntime; fi
        pip --upgrade onnxruntime-gpu --extra-index-url "$jetson_index"
    elif has_package onnxruntime-gpu && has "$runtimes" onnx; then
        run "$venv/bin/python" -m pip uninstall -q -y onnxruntime-gpu
    fi
    # the same version may have other contents while it is developed
    if [ "$what" != edge-cl ] && has_package edge-cl; then pip --force-reinstall --no-deps "$what"; fi
    pip --upgrade "$what${list:+[$list]}"
}

# The command without options means this board's service. Only a try-out by `edge-cl run` does not: with the
# service's settings it would be a second device of the same name.
write_command() {
    run mkdir -p "$root/usr/local/bin"
    run_to "$link" 0755 <<COMMAND
#!/bin/sh
# All but \`edge-cl run\`, which is another device, is about this board's service; others: --state, --config
[ "\${1-}" = run ] || export EDGE_CL_STATE="\${EDGE_CL_STATE-/var/lib/edge-cl/state}" EDGE_CL_CONFIG="\${EDGE_CL_CONFIG-/etc/edge-cl/config.toml}"
exec ${venv#"$root"}/bin/edge-cl "\$@"
COMMAND
}

add_user() {
    if [ -n "$root" ]; then
        say "EDGE_CL_ROOT is set: no user is added"
        return 0
    fi
    if ! getent passwd "$user" >/dev/null; then
        run useradd --system --user-group --home-dir /var/lib/edge-cl --no-create-home \
            --shell /usr/sbin/nologin "$user"
    fi
    for group in i2c gpio spi video audio dialout plugdev render; do
        if getent group "$group" >/dev/null; then run usermod -aG "$group" "$user"; fi
    done
}

owned() { if [ -z "$root" ]; then run chown "$user:$user" "$@"; fi; }

make_folders() {
    run mkdir -p "$etc" "$var/bundles" "$var/state"
    run chmod 0755 "$etc"
    run chmod 0750 "$var" "$var/bundles"
    # its group may talk to the device, and read nothing
    run chmod 0710 "$var/state"
    owned "$var" "$var/bundles" "$var/state"
}

write_settings() {
    if [ ! -f "$etc/config.toml" ]; then
        run_to "$etc/config.toml" 0644 <"$here/config/config.toml"
    elif ! cmp -s "$here/config/config.toml" "$etc/config.toml"; then
        say "$etc/config.toml is left as it is; the new defaults are in config.toml.new"
        run_to "$etc/config.toml.new" 0644 <"$here/config/config.toml"
    fi
    if [ ! -f "$etc/secrets.env" ]; then
        printf '# EDGE_CL_MQTT_PASSWORD=...\n# EDGE_CL_HTTP_TOKEN=...\n' | run_to "$etc/secrets.env" 0600
    fi
    # doctor compares: another number means that the card was copied
    if [ -n "$serial" ] && [ ! -f "$etc/board" ]; then
        printf '%s\n' "$serial" | run_to "$etc/board" 0644
    fi
}

# ------------------------------------------------------------------ the bundle and the service

place_bundle() {
    [ -n "$bundle" ] || return 0
    name=$(basename -- "${bundle%%\?*}")
    case $name in *.ecl) ;; *) name=$name.ecl ;; esac
    target=$var/bundles/$name
    part=$target.part
    case $bundle in
    http://* | https://*)
        run "$venv/bin/python" -c \
            'import shutil, sys, urllib.request as u; shutil.copyfileobj(u.urlopen(sys.argv[1], timeout=60), open(sys.argv[2], "wb"))' \
            "$bundle" "$part"
        ;;
    *) run cp -- "$bundle" "$part" ;;
    esac
    if [ -z "$dry" ]; then
        found=$(sha256sum "$part" | cut -d ' ' -f 1)
        if [ -n "$sha256" ] && [ "$found" != "$sha256" ]; then
            rm -f "$part"
            fail "$bundle has SHA-256 $found, not $sha256: it was changed or damaged; nothing was installed"
        fi
        if ! "$venv/bin/edge-cl" verify "$part" >/dev/null; then
            rm -f "$part"
            fail "$bundle does not work here"
        fi
        if [ -e "$var/bundles/current.ecl" ] && ! cmp -s "$part" "$var/bundles/current.ecl"; then
            other=$var/bundles/$(printf %.12s "$found")-$name
            chmod 0640 "$part"
            owned "$part"
            mv -f "$part" "$other"
            say "this device has a bundle already; to change it and keep what was learned:" \
                "sudo edge-cl install ${other#"$root"}"
            return 0
        fi
    fi
    run chmod 0640 "$part"
    owned "$part"
    run mv -f "$part" "$target"
    [ "$name" = current.ecl ] || run ln -sfn "$name" "$var/bundles/current.ecl"
}

# Without one the device reads standard input, which a service has not: it would end at once.
has_sensor() { grep -q '^ *\[sensor\]' "$etc/config.toml" 2>/dev/null; }

has_systemd() { [ -z "$root" ] && command -v systemctl >/dev/null && [ -d /run/systemd/system ]; }

write_unit() {
    version=unknown
    if [ -z "$dry" ]; then
        version=$("$venv/bin/python" -c 'import edge_cl; print(edge_cl.__version__)')
    fi
    run mkdir -p "$(dirname "$unit")"
    sed "s/@VERSION@/$version/" "$here/systemd/edge-cl.service" | run_to "$unit" 0644
    if ! has_systemd; then
        say "systemd does not run here: the unit is written and enabled, but not started"
        run mkdir -p "$(dirname "$unit")/multi-user.target.wants"
        run ln -sfn /etc/systemd/system/edge-cl.service "$(dirname "$unit")/multi-user.target.wants/edge-cl.service"
        return 0
    fi
    run systemctl daemon-reload
    run systemctl enable -q edge-cl
    if [ -n "$start" ] && has_sensor && { [ -e "$var/bundles/current.ecl" ] || [ -n "$bundle" ]; }; then
        run systemctl restart edge-cl
    fi
}

finish() {
    [ -z "$dry" ] || return 0
    if [ ! -e "$var/bundles/current.ecl" ]; then
        say "no bundle yet: copy one to /var/lib/edge-cl/bundles/current.ecl, then: sudo systemctl start edge-cl"
    fi
    if [ "$board" = jetson ] && ! gpu; then
        say "the encoder runs on the processor; for the GPU: --jetson-index URL (docs/boards.md)"
    fi
    if ! has "$runtimes" litert; then
        say "for less memory, where the bundle has a .tflite encoder (edge-cl verify FILE): --runtime litert"
    fi
    say "installed, Python $python_version, $(all_extras). Next: set a name and a sensor in" \
        "/etc/edge-cl/config.toml, look: edge-cl doctor, then: sudo systemctl restart edge-cl"
    if [ -n "${SUDO_USER:-}" ]; then
        say "sudo edge-cl label NAME teaches it; without sudo, after a new login: sudo usermod -aG $user $SUDO_USER"
    fi
}

remove() {
    if has_systemd && [ -f "$unit" ]; then run systemctl disable --now -q edge-cl; fi
    for path in "$unit" "$(dirname "$unit")/multi-user.target.wants/edge-cl.service" "$link"; do
        if [ -e "$path" ] || [ -L "$path" ]; then run rm -f "$path"; fi
    done
    if [ -d "$venv" ]; then run rm -rf "$venv"; fi
    if has_systemd; then run systemctl daemon-reload; fi
    if [ -z "$purge" ]; then
        say "removed; settings in /etc/edge-cl and what was learned in /var/lib/edge-cl are kept (--purge)"
        return 0
    fi
    for path in "$etc" "$var"; do
        if [ -d "$path" ]; then run rm -rf "$path"; fi
    done
    if [ -z "$root" ] && getent passwd "$user" >/dev/null; then run userdel "$user"; fi
    say "removed, with settings, what was learned, and the user; packages of the system are left"
}

main() {
    parse "$@"
    check_root
    if [ -n "$uninstall" ]; then
        remove
        return 0
    fi
    check_options
    look
    check_bits
    find_python
    check_system_python
    install_apt
    make_venv
    install_packages
    write_command
    add_user
    make_folders
    write_settings
    place_bundle
    write_unit
    finish
}

main "$@"
