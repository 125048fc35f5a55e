#!/usr/bin/env bash
# Runs the parts one after another, fast ones first, and adds up what they
# counted: `test.sh all|check`. A part that fails does not stop the rest; the exit code
# tells at the end. A part that cannot run here is skipped in one line with its reason.
set -uo pipefail
cd "$(dirname "$0")/.."

logs=target/test-logs
passed=0 failed=0 skipped=0
broken=() times=()

# part NAME SECONDS COMMAND...: runs one part within its time and adds its counts.
part() {
    local name=$1 limit=$2 log=$logs/$1.log code began=$SECONDS counts
    shift 2
    printf '\n=== %s\n' "$name"
    timeout --foreground --kill-after=30 "$limit" "$@" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    read -ra counts < <(count "$log" "$code")
    passed=$((passed + counts[0])) failed=$((failed + counts[1])) skipped=$((skipped + counts[2]))
    ((code == 124)) && echo "$name did not end within $limit s"
    ((counts[1] > 0)) && broken+=("$name")
    printf -- '--- %s: %d passed, %d failed, %d skipped in %d s\n' \
        "$name" "${counts[@]}" $((SECONDS - began))
    times+=("$name $((SECONDS - began)) s")
}

# skip NAME REASON: one line, counted.
skip() {
    skipped=$((skipped + 1))
    printf '\nSKIP %s: %s\n' "$1" "$2"
}

# count LOG CODE: "passed failed skipped" from what the test runners print. A part
# that counts nothing itself is one test; one that ends badly without having named
# a failure has failed once.
count() {
    sed 's/\x1b\[[0-9;]*m//g' "$1" | awk -v code="$2" '
        function add(word,   n) {
            if (match($0, "[0-9]+ " word)) { split(substr($0, RSTART), n, " "); return n[1] }
            return 0
        }
        /^ *Summary \[/ || /^test result: / || /^total: / {
            seen = 1
            p += add("passed"); f += add("failed") + add("timed out") + add("exec failed")
        }
        # What nextest skips was not asked for, or is told at the end as ignored.
        /^total: / { s += add("skipped") }
        # pytest
        /^=+ .* in [0-9.]+s/ {
            seen = 1
            p += add("passed"); s += add("skipped"); f += add("failed") + add("errors?")
        }
        END {
            if (!seen && code == 0) p = 1
            if (f == 0 && code != 0) f = 1
            print p + 0, f + 0, s + 0
        }'
}

tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --locked --no-tests=pass "$@"
    else
        cargo test --locked --no-fail-fast "$@"
    fi
}
export -f tests

# Builds what later parts need, in time that nothing else wants: tests of clusters mostly wait. Such
# a part waits for its build, or makes it itself if there is none.
build_ahead() {
    ahead scripts/dist.sh build
    [[ ! -f fuzz/Cargo.toml ]] || RUSTC_BOOTSTRAP=1 ahead cargo fuzz build
}

# ahead COMMAND...: in a session of its own, since the kernel weighs sessions against each other.
ahead() {
    setsid bash -c '{ echo 19 >/proc/self/autogroup; } 2>/dev/null; exec chrt --idle 0 "$@"' - "$@" \
        >>"$logs/ahead.log" 2>&1 &
    echo $! >"$logs/ahead.pid"
    wait $!
}

end_build_ahead() {
    kill "$builder" 2>/dev/null
    [[ ! -f $logs/ahead.pid ]] || kill -- "-$(<"$logs/ahead.pid")" 2>/dev/null
    rm -f "$logs/ahead.pid"
}

# All of tests/ as arguments to cargo, but for tidy, which runs with the fast ones, for the
# simulation, which is built in another way, and for attacks and costs, on what is published.
integration_tests() {
    local file
    for file in tests/*.rs tests/*/main.rs; do
        [[ -f $file ]] || continue
        file=${file#tests/} file=${file%/main.rs} file=${file%.rs}
        [[ $file == tidy || $file == simulation || $file == attacks || $file == costs ]] || printf -- '--test %s ' "$file"
    done
}

static_checks() {
    part format 120 cargo fmt --all --check
    part clippy 1500 cargo clippy --locked --all-targets -- -D warnings
    part documentation 900 env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --lib --document-private-items
}

dependency_checks() {
    if ! cargo deny --version >/dev/null 2>&1 &&
        ! cargo install --locked --debug --quiet cargo-deny; then
        skip dependencies "cargo-deny is not installed and could not be"
        return
    fi
    part dependencies 120 cargo deny --log-level error check bans licenses sources
    # The advisories live in a git repository of their own, which not every machine can reach.
    if timeout 120 cargo deny --log-level error fetch db >"$logs/advisories.log" 2>&1; then
        part advisories 120 cargo deny --log-level error check --disable-fetch advisories
    else
        skip advisories "the RustSec advisory database cannot be fetched from here"
    fi
}

# Packages, real hosts and monitoring, where such tests are.
ops_tests() {
    local folder
    # The first builds what is packed.
    local -A limits=([packages]=1500 [hosts]=900 [monitoring]=600)
    for folder in packages hosts monitoring; do
        compgen -G "tests/ops/$folder/test_*.py" >/dev/null || continue
        part "$folder" "${limits[$folder]}" tests/ops/run.sh "$folder"
    done
}

# What needs no hosts; `make test-ansible` does the rest, too.
ansible_tests() {
    part ansible 600 tests/ops/run.sh ansible/test_0_gates.py ansible/test_0_prometheus.py ansible/test_6_written.py
    skip ansible-hosts "takes some 30 minutes; make test-ansible runs it"
}

fuzz_targets() {
    [[ -f fuzz/Cargo.toml ]] || return 0
    if ! cargo fuzz --version >/dev/null 2>&1 &&
        ! cargo install --locked --debug --quiet cargo-fuzz; then
        skip fuzz "cargo-fuzz is not installed and could not be"
        return
    fi
    # The coverage flags are unstable; this lets the pinned stable compiler take
    # them, so that no second toolchain is needed.
    export RUSTC_BOOTSTRAP=1
    part fuzz-build 1500 cargo fuzz build
    local target
    for target in $(cargo fuzz list); do
        part "fuzz-$target" 300 cargo fuzz run "$target" -- -max_total_time=20 -rss_limit_mb=4096
    done
    unset RUSTC_BOOTSTRAP
}

# Tests marked as ignored, with the reason that stands beside the mark.
say_ignored() {
    local file line mark
    while IFS=: read -r file line mark; do
        skip "$file:$line" "$(sed -E 's/.*= *"(.*)".*/\1/' <<<"$mark")"
    done < <(grep -rnE --include='*.rs' '#\[ignore' src tests)
}

# The names of what failed, and how each complained, once more where the totals stand.
say_failed() {
    local name
    for name in "${broken[@]}"; do
        printf 'failed: %s (%s)\n' "$name" "$logs/$name.log"
        sed 's/\x1b\[[0-9;]*m//g' "$logs/$name.log" |
            grep -E -A3 '^ +(FAIL|TIMEOUT|SIGABRT|SIGSEGV) \[|panicked at|^error|^(FAILED|ERROR) ' | cut -c1-300 | tail -40
    done
}

if [[ ${1:-all} == check ]]; then scripts/setup.sh build; else scripts/setup.sh test; fi || exit 1
mkdir -p "$logs"

static_checks
if [[ ${1:-all} != check ]]; then
    part unit 1500 bash -c 'tests --lib --bins --test tidy'
    # What is timed comes first, with nothing beside it.
    timed=()
    if cargo nextest --version >/dev/null 2>&1; then
        timed=(-E 'not (binary(cluster) and test(/^failover::/))')
        part failover 1200 bash -c 'tests "$@"' tests --test cluster -E 'test(/^failover::/)'
    fi
    # Optimised, since it runs thousands of histories, on the libraries that are built already; with
    # the rules that can be broken on purpose.
    part simulation 2100 env AEGIS_SEEDS="${AEGIS_SEEDS:-5000}" bash -c 'tests "$@"' tests \
        --config profile.dev.package.aegiskv.opt-level=2 --features mutations --test simulation \
        --success-output final
    build_ahead &
    builder=$!
    trap end_build_ahead EXIT
    part integration 3300 bash -c 'tests "$@"' tests $(integration_tests) "${timed[@]}"
    part doc-tests 600 cargo test --locked --doc
    part corpus 600 python3 tests/corpus/run.py
    part openapi 600 python3 tests/openapi/run.py --seconds 75
    ops_tests
    ansible_tests
    fuzz_targets
    # Timed, so last: nothing is built beside them.
    part attacks 1500 bash -c 'scripts/dist.sh build && AEGIS_TEST_PROGRAM=${CARGO_TARGET_DIR:-$PWD/target}/dist/aegiskv tests "$@"' \
        tests --test attacks
    part costs 300 bash -c 'AEGIS_TEST_PROGRAM=${CARGO_TARGET_DIR:-$PWD/target}/dist/aegiskv tests "$@"' \
        tests --test costs
    say_ignored
fi
dependency_checks

printf '\n'
((${#broken[@]} == 0)) || say_failed
printf -v all ', %s' "${times[@]}"
printf 'took %d min %d s: %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "${all#, }"
printf 'total: %d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
((failed == 0))
