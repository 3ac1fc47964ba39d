#!/bin/sh
# run.sh SECONDS [TARGET...]: builds the fuzzers and runs each target for so long, or all in turn. What they find, and a
# log of each, is in .build/fuzz-findings; inputs that are worth keeping in .build/fuzz-corpus. Ends with 1 if anything
# was found.
#   run.sh 0 TARGET FILE   carries one input out
set -eu
cd "$(dirname "$0")/../.."
seconds=$1
shift

swift=$(command -v swift || echo /opt/swift/usr/bin/swift)
toolchain=$(dirname "$(dirname "$(realpath "$swift")")")
for library in "$toolchain"/lib/clang/*/lib/linux/libclang_rt.fuzzer_no_main-"$(uname -m)".a; do :; done
[ -f "$library" ] || { echo "run.sh: the Swift toolchain has no libFuzzer for $(uname -m)" >&2; exit 2; }

# The manifests of all packages read the variable. Internal declarations are looked into; the build has a place of its own.
BATON_FUZZ=$library "$swift" build --package-path Tests/Fuzzers --scratch-path .build/fuzz -c release \
    -Xswiftc -enable-testing --product fuzz
fuzz=.build/fuzz/release/fuzz
# libFuzzer itself says what a crash was.
export SWIFT_BACKTRACE=enable=no

if [ "$seconds" = 0 ]; then
    exec "$fuzz" "$@"
fi

findings=.build/fuzz-findings
mkdir -p "$findings"
[ $# -gt 0 ] || set -- $("$fuzz" --list)
status=0
printf '%-18s %12s %8s %8s  %s\n' target executions edges features result
for target in "$@"; do
    corpus=.build/fuzz-corpus/$target
    mkdir -p "$corpus"
    "$fuzz" "$target" --seeds "$corpus"
    "$fuzz" "$target" --dictionary ".build/fuzz-corpus/$target.dictionary"
    log=$findings/$target.log
    result=nothing
    # shellcheck disable=SC2046 # one word for each option
    if ! "$fuzz" "$target" $("$fuzz" "$target" --options) -dict=".build/fuzz-corpus/$target.dictionary" \
        -max_total_time="$seconds" -artifact_prefix="$findings/$target-" -print_final_stats=1 "$corpus" >"$log" 2>&1; then
        status=1
        result="$(grep -a -m 1 'FOUND:\|Fatal error\|ERROR: libFuzzer' "$log" || echo 'did not run'), see $log"
    fi
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    edges=$(grep -ao 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2)
    features=$(grep -ao 'ft: [0-9]*' "$log" | tail -1 | cut -d' ' -f2)
    printf '%-18s %12s %8s %8s  %s\n' "$target" "$executions" "$edges" "$features" "$result"
done
exit $status
