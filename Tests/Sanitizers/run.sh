#!/bin/bash
# Runs the tests with a sanitizer of the toolchain's in everything that Baton is made of.
#
#   run.sh address|undefined|thread [OPTION...]    more options for swift test, such as --filter KVMTests
#
# address    memory that is not there, or not any more, in C and Swift
# undefined  undefined behaviour in C: Swift's own checks of overflow, bounds and casts are in every build
# thread     data races, in C and Swift
#
# The build has a place of its own, .build-SANITIZER. Tests that cannot work so are in left-out.txt, with why. A process in
# which something is found goes on; its report is in .build-SANITIZER/findings, of the tests as of each VMM and tool that
# they start. Ends with 1 if there is any, or if a test fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=Tests/Sanitizers
sanitizer=${1:-}
[ $# -eq 0 ] || shift

swift=$(PATH="$PATH:/opt/swift/usr/bin" command -v swift)
toolchain=$(dirname "$(dirname "$(realpath "$swift")")")
build=.build-$sanitizer
findings=$PWD/$build/findings
flags=(-c release --scratch-path "$build")

common=log_path=$findings/report:halt_on_error=0:external_symbolizer_path=$toolchain/bin/llvm-symbolizer:allow_addr2line=0
# Signals of a crash are Baton's own: it has handlers for them, and tests of these.
common+=:handle_segv=0:handle_sigbus=0:handle_sigill=0:handle_sigfpe=0:handle_abort=0
# It has a process of its own read the memory of one that has crashed, and that of the sanitizer with it.
export SWIFT_BACKTRACE=enable=no
case $sanitizer in
address)
    # What is found is reported, and carried out.
    flags+=(--sanitize address -Xswiftc -sanitize-recover=address -Xcc -fsanitize-recover=address)
    # The old VMM waits for the new one's exec beside its own process, in the same memory (beside.c): what is kept for each
    # thread would be used twice at once.
    common+=:detect_stack_use_after_return=0
    # A VMM ends with all that it has, and asks whoever is in its place for no memory back.
    common+=:detect_leaks=0
    # Each VMM has one; tests look at how much memory updates take.
    common+=:quarantine_size_mb=16
    export ASAN_OPTIONS=$common
    ;;
undefined)
    # Swift's compiler knows nothing of it for Linux. One runtime for the executable and all that it loads.
    for runtime in "$toolchain"/lib/clang/*/lib/linux/libclang_rt.ubsan_standalone-"$(uname -m)".so; do :; done
    flags+=(-Xcc -fsanitize=undefined -Xlinker "$runtime" -Xlinker -rpath -Xlinker "$(dirname "$runtime")")
    export UBSAN_OPTIONS=$common:print_stacktrace=1
    ;;
thread)
    flags+=(--sanitize thread)
    export TSAN_OPTIONS=$common:suppressions=$PWD/$here/thread.supp
    ;;
*)
    echo "run.sh: '$sanitizer' is none of address, undefined, thread" >&2
    exit 2
    ;;
esac

# The lines of left-out.txt that are this sanitizer's: tests, a tab, why.
left_out() {
    sed -n "s/^$sanitizer *| *\([^|]*[^ |]\) *| */\1\t/p" "$here/left-out.txt"
}
skips=()
while IFS=$'\t' read -r tests _; do skips+=(--skip "$tests"); done < <(left_out)

mkdir -p "$findings"
rm -f "$findings"/*
"$swift" build "${flags[@]}"
status=0
"$build/release/baton-demo" tests -- "$swift" test "${flags[@]}" --disable-testable-imports \
    ${skips[@]+"${skips[@]}"} "$@" || status=$?

left_out | sed 's/\(.*\)\t/left out: \1 — /'
reports=$(find "$findings" -type f | wc -l)
if [ "$reports" -gt 0 ]; then
    # A line for each kind and place.
    cat "$findings"/* | sed -n 's/^SUMMARY: /found: /p; s/^==[0-9]*==WARNING: \(.*\): stack type.*/found: \1/p' |
        sort | uniq -c | sort -rn
    echo "$sanitizer: reports of $reports processes in $findings"
    exit 1
fi
echo "$sanitizer: nothing was found"
exit "$status"
