#!/bin/bash
# The tour of README.md, from start to end, with everything checked: tour.sh [PATH OF WHARF]
#
# WHARF_TOUR_PORT is the first of ten ports it may use.
set -euo pipefail

wharf=${1:-wharf}
base=${WHARF_TOUR_PORT:-19500}
http=$base grpc=$((base + 1)) dns=$((base + 2)) server=$((base + 3)) upstream=$((base + 4)) admin=$((base + 5))
web() { echo $((base + 5 + $1)); }
api=http://127.0.0.1:$http
export WHARF_HTTP_ADDR=127.0.0.1:$http
work=$(mktemp -d)
pids=()

step() { echo; echo "== $*"; }
fail() {
    echo "FAILED: $*"
    for log in "$work"/*.log; do echo "--- $log"; tail -n 30 "$log"; done
    exit 1
}
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait || true
    rm -rf "$work"
}
trap finish EXIT
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

# Looks again and again until the command succeeds, for half a minute.
eventually() {
    local end=$((SECONDS + 30))
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "never happened: $*"
        sleep 0.1
    done
}
equal() { [ "$1" = "$2" ] || fail "expected '$2', got '$1'"; }
leads() { [ "$(curl -fsS "$api/v1/status/leader" | wc -c)" -gt 4 ]; }
passing() { curl -fsS "$api/v1/health/service/web?passing" | grep -c '"ID": "web-'; }
is_passing() { [ "$(passing)" = "$1" ]; }
resolve() { dig @127.0.0.1 -p "$dns" +short +tries=1 +time=5 "$@"; }
instances() { resolve web.service.consul SRV | awk '{print $3}' | sort | tr '\n' ' '; }

step "wharf agent -dev"
"$wharf" agent -dev -http-port="$http" -grpc-port="$grpc" -dns-port="$dns" -server-port="$server" \
    >"$work/agent.log" 2>&1 &
pids+=($!)
eventually leads
# Another agent on this port would have answered as well.
kill -0 "${pids[0]}" || fail "the agent has ended"
cat "$work/agent.log"

step "Keys and values"
equal "$(curl -fsS -X PUT -d hello "$api/v1/kv/greeting" | tr -d '[:space:]')" true
equal "$(curl -fsS "$api/v1/kv/greeting?raw")" hello
equal "$("$wharf" kv put config/color blue)" "Success! Data written to: config/color"
equal "$("$wharf" kv get config/color)" blue
"$wharf" kv get -detailed config/color

step "Three web servers with HTTP checks"
declare -A server_pid
for i in 1 2 3; do
    mkdir "$work/web-$i"
    echo "I am web-$i" >"$work/web-$i/index.html"
    python3 -m http.server --bind 127.0.0.1 --directory "$work/web-$i" "$(web $i)" \
        >"$work/web-$i.log" 2>&1 &
    server_pid[$i]=$!
    pids+=($!)
    eventually curl -fsS "http://127.0.0.1:$(web $i)/"
    curl -fsS -X PUT "$api/v1/agent/service/register" -d '{
        "ID": "web-'$i'", "Name": "web", "Address": "127.0.0.1", "Port": '"$(web $i)"',
        "Check": {"HTTP": "http://127.0.0.1:'"$(web $i)"'/", "Interval": "1s"}}'
done
eventually is_passing 3
"$wharf" catalog services -tags

step "DNS"
resolve web.service.consul A
resolve web.service.consul SRV
equal "$(resolve web.service.consul A | sort -u)" 127.0.0.1
equal "$(instances)" "$(web 1) $(web 2) $(web 3) "

step "A sidecar"
printf 'Kind = "service-defaults"\nName = "web"\nProtocol = "http"\n' | "$wharf" config write -
"$wharf" connect proxy -service me -upstream "web:$upstream" -grpc-addr "127.0.0.1:$grpc" \
    -admin-port "$admin" >"$work/sidecar.log" 2>&1 &
pids+=($!)
eventually curl -fsS "http://127.0.0.1:$admin/ready"
eventually curl -fsS "http://127.0.0.1:$upstream/"
for _ in $(seq 30); do curl -fsS "http://127.0.0.1:$upstream/"; done | sort | uniq -c | tee "$work/spread"
equal "$(wc -l <"$work/spread")" 3

step "One server is killed; requests go on"
kill -9 "${server_pid[2]}"
wait "${server_pid[2]}" 2>/dev/null || true
asked=0
while ! is_passing 2 || [ $asked -lt 100 ]; do
    curl -fsS "http://127.0.0.1:$upstream/" >/dev/null || fail "request $asked after the kill"
    asked=$((asked + 1))
    [ $asked -lt 2000 ] || fail "the check never turned critical"
done
for _ in $(seq 50); do curl -fsS "http://127.0.0.1:$upstream/" >/dev/null; done
echo "$((asked + 50)) requests, none failed"
equal "$(instances)" "$(web 1) $(web 3) "
echo "DNS has forgotten it: $(instances)"

step "Waiting for changes"
"$wharf" watch -type=keyprefix -prefix=config/ cat >"$work/watch.log" 2>&1 &
pids+=($!)
eventually grep -q config/color "$work/watch.log"
"$wharf" kv put config/color green
eventually grep -q "$(printf green | base64)" "$work/watch.log"

step "The end"
kill -INT "${pids[0]}"
wait "${pids[0]}"
echo "the tour works"
