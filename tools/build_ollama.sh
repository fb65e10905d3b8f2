#!/bin/sh
# Builds a real Ollama server from its pinned Go module into the user's cache, once.
# Where it cannot, it says what to do instead. Nothing outside the cache is touched, no root is needed.
#
#   tools/build_ollama.sh           build, or say that it is there
#   tools/build_ollama.sh --print   print the path of the binary, exit 1 when there is none
set -eu

version=0.24.0 # the last release whose module holds llama.cpp; later ones fetch it while they build
cache=${MEDLAB_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/medlab}
target=$cache/ollama/$version
binary=$target/ollama

if [ "${1:-}" = --print ]; then
    [ -x "$binary" ] || exit 1
    echo "$binary"
    exit 0
fi

if [ -x "$binary" ]; then
    echo "Ollama $version is there: $binary"
    exit 0
fi

instead="Install Ollama as its site says (https://ollama.com/download) and start it, or go on without:
the course then deploys on the embedded llama.cpp server and says so."

for tool in go cc c++; do
    if ! command -v "$tool" >/dev/null 2>&1; then
        echo "Ollama is not built: no '$tool' on PATH (Go >= 1.24 and a C++ compiler are needed). $instead"
        exit 0
    fi
done

work=$target.build
rm -rf "$work"
mkdir -p "$work/include" "$work/bin"
trap 'rm -rf "$work"' EXIT

# Go leaves vendor/ folders out of module archives, so three header-only libraries come from elsewhere.
# Debian's packages are unpacked here, not installed; on other systems they are looked for where they usually are.
headers_from_debian() {
    (cd "$work" && apt-get download nlohmann-json3-dev libstb-dev) >/dev/null 2>&1 || return 1
    for package in "$work"/*.deb; do
        dpkg-deb -x "$package" "$work/debian"
    done
    cp -R "$work/debian/usr/include/." "$work/include/"
}
headers_from_system() {
    for folder in /usr/include /usr/local/include /opt/homebrew/include; do
        if [ -e "$folder/nlohmann/json.hpp" ] && [ -e "$folder/stb/stb_image.h" ]; then
            ln -s "$folder/nlohmann" "$folder/stb" "$work/include/"
            return 0
        fi
    done
    return 1
}
if ! headers_from_system && ! headers_from_debian; then
    # a machine that has never listed its packages
    if [ "$(id -u)" != 0 ] || ! apt-get update -qq >/dev/null 2>&1 || ! headers_from_debian; then
        echo "Ollama is not built: the headers of nlohmann-json and stb are missing" \
            "(Debian and Ubuntu: apt-get install nlohmann-json3-dev libstb-dev). $instead"
        exit 0
    fi
fi

python=${PYTHON:-python3}
if ! "$python" -m pip download --quiet --no-deps --no-binary :all: --dest "$work" miniaudio==1.71 2>"$work/pip.log"; then
    echo "Ollama is not built: pip could not fetch miniaudio's sources: $(tail -n 1 "$work/pip.log"). $instead"
    exit 0
fi
tar -xzf "$work"/miniaudio-*.tar.gz -C "$work"
cp -R "$work"/miniaudio-*/miniaudio "$work/include/"

echo "Building Ollama $version: about 8 minutes on 2 cores the first time, seconds when Go's cache is warm."
flags="-O3 -march=native -I$work/include"
if ! GOBIN=$work/bin GOFLAGS=-buildvcs=false CGO_ENABLED=1 \
    CGO_CFLAGS="$flags" CGO_CXXFLAGS="$flags" CGO_CFLAGS_ALLOW='.*' CGO_CXXFLAGS_ALLOW='.*' \
    go install -ldflags "-s -w -X=github.com/ollama/ollama/version.Version=$version" \
    "github.com/ollama/ollama@v$version" 2>"$work/go.log"; then
    tail -n 20 "$work/go.log" >&2
    echo "Ollama is not built: the compiler failed, see above. $instead" >&2
    exit 1
fi
mkdir -p "$target"
mv "$work/bin/ollama" "$binary.new"
mv "$binary.new" "$binary" # the last act: a binary that is there is whole
echo "Ollama $version is built: $binary"
