# SPDX-License-Identifier: BSD-3-Clause
# Completion of qimg for bash.  What there is to complete is asked of `qimg --help` each time, which
# prints it from the tables that the command itself goes by.
# shellcheck shell=bash

# Prints the commands.
_qimg_commands() {
    qimg --help 2>/dev/null | sed -n 's/^  \([a-z][a-z]*\) .*/\1/p'
}

# _qimg_options COMMAND: prints its options, those with a value ending in "=" if they are long.
_qimg_options() {
    qimg "$1" --help 2>/dev/null | sed -n '/^  -/{s/^  //; s/  .*//; s/, /\n/g; p}' | sed -n 's/^\(--*[^= ]*=*\).*/\1/p'
}

# _qimg_argument COMMAND OPTION: prints what the help calls its value; nothing if it has none.
_qimg_argument() {
    qimg "$1" --help 2>/dev/null | sed -n "s/^  \(-., \)\{0,1\}$2\(, --[a-z-]*\)\{0,1\}[= ]\([A-Za-z][^ ]*\) .*/\3/p"
}

# _qimg_values COMMAND OPTION: prints what may follow it.  Nothing: the help doesn't say, or it has none.
_qimg_values() {
    local name
    name=$(_qimg_argument "$@")
    case $name in
    *'|'*) printf '%s\n' "${name//|/ }" ;;
    FMT) qimg --help | sed -n 's/^Disk images in the formats \([^:]*\):.*/\1/p' | tr -d , ;;
    esac
}

# The keys of `-o` for the format that the line names.
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

# The operands of a command that aren't files: verbs of job, the plugin's keys for serve.
_qimg_words() {
    case $1 in
    job) qimg job --help 2>/dev/null | sed -n '/^usage:/{:a;N;/\n[A-Z]/!ba; s/\n[A-Z].*//; s/ *\n */ /g; s/.*options\] //; s/ | /\n/g; s/ [A-Z][A-Z ]*//g; p;q}' ;;
    serve) nbdkit qimg --help 2>/dev/null | sed -n '1,/^plugin: qimg/d; s/^\[\{0,1\}\([a-z][a-z-]*=\).*/\1/p' ;;
    esac
}

# Offers words; behind a "=" no blank follows.
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

    # "--option=value" comes as three words, as bash divides them at "=".
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
