#!/usr/bin/env bash
# Prints each include that goes against the direction of the layers, and each include guard that
# isn't named after its file; exit status 1 if there are any.
#
#     base <- storage <- mcache <- block <- {raw, qed, qcow2, luks} <- registry <- server
#     base <- {codec, crypto} <- block        registry <- jobs <- server
#     registry <- common <- {server, cli}
#
# Jobs work on nodes: they include headers of base, block and the registry only.
#
# Of a driver X only X/X.h may be included elsewhere, and only by registry.c.  nbdkit's headers may be
# included in server/ only, not in its subfolders.  JSON is used in server/, and below it only by the
# parser of names.  A header that says "private to this folder" may be included only there.  Each source
# begins with its licence and a comment on its purpose.

# SPDX-License-Identifier: BSD-3-Clause
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$root"

drivers="raw qed qcow2 luks"
declare -A may_use=(
    [base]="base"
    [storage]="base storage"
    [mcache]="base storage mcache"
    [codec]="base codec"
    [crypto]="base crypto"
    [block]="base storage mcache codec crypto block"
    [registry]="base storage mcache codec crypto block registry $drivers"
    [jobs]="base block registry jobs"
    [common]="base storage mcache codec crypto block registry common"
    [server]="base storage mcache codec crypto block registry jobs common server"
    [cli]="base storage mcache codec crypto block registry jobs common cli"
)
for driver in $drivers; do
    may_use[$driver]="base storage mcache codec crypto block $driver"
done

violations=0
violation() {
    echo "$*"
    violations=$((violations + 1))
}

# layer_of PATH: sets $layer.
layer_of() {
    case $1 in
    formats/*/*) layer=${1#formats/} layer=${layer%%/*} ;;
    formats/*) layer=registry ;;
    server/cli/*) layer=cli ;;
    server/common/*) layer=common ;;
    *) layer=${1%%/*} ;;
    esac
}

# resolve FILE NAME: sets $target to the path that the include means, empty when it isn't ours.
resolve() {
    local place
    for place in "${1%/*}" formats server/cli server .; do
        target=$place/$2
        target=${target#./}
        if [ -e "$target" ]; then
            if [[ $target == *..* ]]; then
                target=$(realpath --relative-to=. "$target")
            fi
            return
        fi
    done
    target=
}

# is_private HEADER: does it say that it is private to its folder?
is_private() {
    [[ $1 == *internal.h ]] || tr '\n' ' ' <"$1" | sed 's/ \*  *//g' | grep -qi 'private to this folder'
}

mapfile -t sources < <(find formats jobs server -name '*.[ch]' 2>/dev/null | sort)
if [ ${#sources[@]} -eq 0 ]; then
    die "no sources found"
fi

includes='^[[:space:]]*#[[:space:]]*include[[:space:]]*\("[^"]*"\|<[^>]*>\)'
while IFS=: read -r file line text; do
    name=${text#*[\"<]} name=${name%[\">]}
    layer_of "$file"
    from=$layer
    if [[ $name == nbdkit* || $name == */nbdkit* ]] && [ "$from" != server ]; then
        violation "$file:$line: nbdkit's headers are for server/ only: $name"
    fi
    if [[ $name == jansson.h && $file == formats/* && $file != formats/block/json_name.c ]]; then
        violation "$file:$line: JSON is for server/: formats fill structs"
    fi
    if [[ $text == *\<* ]]; then
        continue
    fi
    resolve "$file" "$name"
    if [ -z "$target" ]; then
        if [[ $name != nbdkit* ]]; then
            violation "$file:$line: no such header: $name"
        fi
        continue
    fi
    layer_of "$target"
    if [ "$from" != "$layer" ] && is_private "$target"; then
        violation "$file:$line: private to the folder it lies in: $target"
    fi
    if [ -z "${may_use[$from]:-}" ]; then
        violation "$file:$line: $from is no layer"
    elif [[ " ${may_use[$from]} " != *" $layer "* ]]; then
        violation "$file:$line: $from must not use $layer: $target"
    elif [ "$from" = registry ] && [[ " $drivers " == *" $layer "* ]] &&
        [[ $file != formats/registry.c || $target != "formats/$layer/$layer.h" ]]; then
        violation "$file:$line: only $layer/$layer.h is public, to registry.c: $target"
    fi
done < <(grep -Hno "$includes" "${sources[@]}")

# formats/block/node.h: BLOCK_NODE_H; formats/qed/qed_format.h: QED_FORMAT_H, too.
for file in "${sources[@]}"; do
    if [[ $file != *.h ]]; then
        continue
    fi
    folder=${file%/*}
    wanted=${folder##*/}_${file##*/}
    wanted=${wanted//[.-]/_}
    wanted=${wanted^^}
    guard=$(sed -n 's/^#ifndef \([A-Za-z0-9_]*\)$/\1/p' "$file" | head -n 1)
    base=${file##*/} base=${base//[.-]/_}
    if [[ $guard != "$wanted" && $guard != "SERVER_$wanted" ]] &&
        [[ $base != "${folder##*/}_"* || $guard != "${base^^}" ]]; then
        violation "$file: the include guard is ${guard:-missing} instead of $wanted"
    fi
done

# Each file begins with its licence and a comment on its purpose.
for file in "${sources[@]}"; do
    if ! sed -n '1p' "$file" | grep -q '^/\* SPDX-License-Identifier: BSD-3-Clause \*/$' ||
        ! sed -n '2p' "$file" | grep -q '^/\* [^ ]'; then
        violation "$file: doesn't begin with its licence and its purpose"
    fi
done

if [ "$violations" -gt 0 ]; then
    echo "check-layers: $violations violations"
    exit 1
fi
echo "check-layers: ${#sources[@]} files keep to the layers"
