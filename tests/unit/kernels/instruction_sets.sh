#!/usr/bin/env bash
# instruction_sets.sh LIBRARY: fails when code outside the namespace of an instruction set uses its registers. The linker
# keeps one copy of an inline function: were it the one compiled for AVX-512, every other caller would crash where there
# is no AVX-512.
set -euo pipefail
command -v objdump >/dev/null || { echo "[  SKIPPED ] objdump is missing"; exit 77; }
[[ $(uname -m) == x86_64 ]] || { echo "[  SKIPPED ] knows the registers of x86-64 only"; exit 77; }

# The code of AVX2 and later lies in Highway's N_AVX2 and N_AVX3 (and what is nested there) and in cpu::bfloat16.
objdump --disassemble --demangle --no-show-raw-insn "$1" | awk '
  /^[0-9a-f]+ <.*>:$/ { name = $0; sub(/^[0-9a-f]+ </, "", name); sub(/>:$/, "", name); ++functions; next }
  /%[yz]mm[0-9]|%tmm[0-7]/ {
    if (name ~ /N_AVX[23]|tessera::cpu::bfloat16::/) { ++inside; next }
    if (!(name in seen)) { seen[name] = 1; print "leak: " name ": " $0; ++leaks }
  }
  END {
    print functions " functions, " inside + 0 " lines of wide instructions in their namespaces, " leaks + 0 " outside"
    exit (leaks > 0 || functions < 100 || inside < 1000)
  }'
