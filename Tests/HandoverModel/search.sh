#!/bin/bash
# Has spin search the models of this directory (README.md).
#
#   search.sh MODEL [MACRO...]   one search, as deep as a test has time for
#   search.sh --all              all of searches.txt, deeper and for cycles too, at low priority; a table
#
# Says `holds STATES`, or `PROPERTY STATES` of the first property that does not hold; with TRAIL=1 also by which steps.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
compiler=${CC:-$(PATH="$PATH:/opt/swift/usr/bin" command -v clang || command -v cc)}

work=
trap 'rm -rf "$work"' EXIT

# Makes the searching program.
#   make_search MODEL "OPTIONS OF SPIN" "OPTIONS OF THE COMPILER"
make_search() {
    rm -rf "$work"
    work=$(mktemp -d)
    cp "$here/$1.pml" "$work/"
    cd "$work"
    # shellcheck disable=SC2086
    spin -P"$compiler -E -x c" -a $2 "$1.pml" >spin.txt || { cat spin.txt >&2; exit 2; }
    # shellcheck disable=SC2086
    "$compiler" -w $3 -o search pan.c
}

# Runs it. -E: a process that waits is no fault by itself, AtTheEnd says what is.
run_search() {
    ./search -E -w22 -m1000000 "$@" >result.txt
    local states property
    states=$(sed -n 's/^ *\([0-9][0-9]*\) states, stored.*/\1/p' result.txt)
    property=holds
    if grep -q "errors: 0" result.txt; then
        # A search that was cut short proves nothing.
        if grep -qE "max search depth too small|out of memory" result.txt; then property=incomplete; fi
    elif grep -q "non-progress cycle" result.txt; then
        property=itEnds
    else
        property=$(sed -n 's/.*assertion violated (*\([A-Za-z]*\)||.*/\1/p' result.txt | sort -u | paste -sd,)
    fi
    echo "${property:-unknown} $states"
}

one() {
    local model=$1
    shift
    make_search "$model" "-DMOST_STEPS=2 ${*/#/-D}" "-O0 -DSAFETY"
    run_search
    if [ -n "${TRAIL:-}" ] && [ -e "$model.pml.trail" ]; then
        # shellcheck disable=SC2086
        spin -P"$compiler -E -x c" -k "$model.pml.trail" -t -p -DMOST_STEPS=2 ${*/#/-D} "$model.pml" || true
    fi
}

all() {
    local model expected what macros outcome cycles mark wrong=0
    renice -n 19 $$ >/dev/null
    printf '%-9s %-28s %12s %12s  %s\n' model macros states "for cycles" outcome
    while IFS='|' read -r model macros expected what; do
        model=${model// /} expected=${expected// /}
        case $model in '' | '#'*) continue ;; esac
        # shellcheck disable=SC2086
        set -- $macros
        make_search "$model" "-DMOST_STEPS=4 -DMOST_LOADS=2 ${*/#/-D}" "-O2 -DSAFETY"
        # Whatever it breaks, and not the first only.
        outcome=$(run_search -c0)
        cycles=
        if [ "$expected" = holds ]; then
            make_search "$model" "${*/#/-D}" "-O2 -DNP"
            cycles=$(run_search -l)
            [ "${cycles% *}" = holds ] || wrong=1
        fi
        case ,${outcome% *}, in *",$expected,"*) mark= ;; *) mark='(expected: '$expected')' wrong=1 ;; esac
        printf '%-9s %-28s %12s %12s  %s %s\n' \
            "$model" "$*" "${outcome##* }" "${cycles#holds }" "${outcome% *}" "$mark"
    done <"$here/searches.txt"
    return $wrong
}

if [ "${1:-}" = --all ]; then all; else one "$@"; fi
