#!/usr/bin/env bash
# Prints how many compile jobs fit this machine: one per core, and no more
# than memory holds at about 2 GB each (torch's headers are large).
set -euo pipefail
cores=$(nproc)
kib=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
limit=$(cat /sys/fs/cgroup/memory.max 2> /dev/null || echo max)
if [ "$limit" != max ] && [ $((limit / 1024)) -lt "$kib" ]; then
  kib=$((limit / 1024))
fi
jobs=$((kib / (2 * 1024 * 1024)))
[ "$jobs" -ge 1 ] || jobs=1
[ "$jobs" -le "$cores" ] || jobs=$cores
echo "$jobs"
