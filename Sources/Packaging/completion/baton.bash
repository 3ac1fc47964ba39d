# Completion of baton(1) for bash: options from -help, and what an option can be from its own help.
_baton() {
    local cur prev words cword
    _init_completion -n =,: 2>/dev/null || { cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}; }
    case $prev in
        -device | -object | -chardev | -netdev | -machine | -M | -accel | -cpu | -cpr-enable | -d | -trace)
            # Names stand at the beginning of a line, by themselves or in front of what they are.
            local names
            names=$("$1" "$prev" help 2>/dev/null | sed -nE 's/^ *(name ")?([A-Za-z0-9._-]+)("?,.*|"| .*|)$/\2/p')
            mapfile -t COMPREPLY < <(compgen -W "$names" -- "$cur")
            return ;;
        -m | -smp | -name | -uuid | -append | -fw_cfg | -rtc | -incoming | -msg) return ;;
    esac
    case $cur in
        -*) mapfile -t COMPREPLY < <(compgen -W "$("$1" -help 2>/dev/null | sed -nE 's/^(-[A-Za-z0-9_-]+).*/\1/p')" \
            -- "$cur") ;;
        @*)
            mapfile -t COMPREPLY < <(compgen -f -P @ -- "${cur#@}")
            compopt -o filenames ;;
        *)
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            compopt -o filenames ;;
    esac
} &&
    complete -F _baton baton
