# SPDX-License-Identifier: BSD-3-Clause
# Completion of qimg for bash.  Commands, options and values are read from the output of
# `qimg --help` each time, so that they always match the installed command.
# shellcheck shell=bash

# Prints the commands.
_qimg_commands() {
    qimg --help 2>/dev/null | sed -n 's/^  \([a-z][a-z]*\) .*/\1/p'
}

# _qimg_options COMMAND: prints the command's options; long ones that take a value end in "=".
_qimg_options() {
    qimg "$1" --help 2>/dev/null | sed -n '/^  -/{s/^  //; s/  .*//; s/, /\n/g; p}' | sed -n 's/^\(--*[^= ]*=*\).*/\1/p'
}

# _qimg_argument COMMAND OPTION: prints the help's name of the option's value; nothing if it takes none.
_qimg_argument() {
    qimg "$1" --help 2>/dev/null | sed -n "s/^  \(-., \)\{0,1\}$2\(, --[a-z-]*\)\{0,1\}[= ]\([A-Za-z][^ ]*\) .*/\3/p"
}

# _qimg_values COMMAND OPTION: prints the option's values; nothing if the help doesn't list them.
_qimg_values() {
    local name
    name=$(_qimg_argument "$@")
    case $name in
    *'|'*) printf '%s\n' "${name//|/ }" ;;
    FMT) qimg --help | sed -n 's/^Disk images in the formats \([^:]*\):.*/\1/p' | tr -d , ;;
    esac
}

# Prints the keys of `-o` for the format given on the command line.
_qimg_create_options() {
    local i format=raw letter=-f
    [ "$1" = create ] || letter=-O
    for ((i = 2; i < COMP_CWORD; i++)); do
        if [ "${COMP_WORDS[i]}" = $letter ]; then
            format=${COMP_WORDS[i + 1]}
        fi
    done
    qimg create -f "$format" -o help 2>/dev/null | sed -n 's/^  \([a-z0-9_.-]*=\).*/\1/p'
}

# Prints operands other than files: for job its verbs, for serve the plugin's keys.
_qimg_words() {
    case $1 in
    job) qimg job --help 2>/dev/null | sed -n '/^usage:/{:a;N;/\n[A-Z]/!ba; s/\n[A-Z].*//; s/ *\n */ /g; s/.*options\] //; s/ | /\n/g; s/ [A-Z][A-Z ]*//g; p;q}' ;;
    serve) nbdkit qimg --help 2>/dev/null | sed -n '1,/^plugin: qimg/d; s/^\[\{0,1\}\([a-z][a-z-]*=\).*/\1/p' ;;
    esac
}

# _qimg_offer WORDS PREFIX: completes to one of the words; no blank is added after a "=".
_qimg_offer() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2")
    if [ ${#COMPREPLY[@]} -eq 1 ] && [[ ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
}

_qimg() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]} option
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        _qimg_offer "$(_qimg_commands) --help --version" "$word"
        return
    fi

    # bash splits "--option=value" into three words, at the "=".
    option=$before
    if [ "$word" = = ]; then
        word=
    elif [ "$before" = = ]; then
        option=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    if [ "$option" = -o ]; then
        _qimg_offer "$(_qimg_create_options "$command")" "$word"
    elif [[ $option == -* ]] && [ -n "$(_qimg_argument "$command" "$option")" ]; then
        _qimg_offer "$(_qimg_values "$command" "$option")" "$word"
        [ ${#COMPREPLY[@]} -gt 0 ] || mapfile -t COMPREPLY < <(compgen -f -- "$word")
    elif [[ $word == -* ]]; then
        _qimg_offer "$(_qimg_options "$command")" "$word"
    else
        _qimg_offer "$(_qimg_words "$command")" "$word"
        mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$word")
    fi
}

complete -o filenames -F _qimg qimg
