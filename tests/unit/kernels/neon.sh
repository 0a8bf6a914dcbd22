#!/usr/bin/env bash
# neon.sh ROOT SOURCE...: compiles the kernels for 64-bit Arm, warnings as errors, and looks for their NEON code. Nothing is
# run. Headers other than the system's own are the same for every processor.
set -euo pipefail
compiler=aarch64-linux-gnu-g++
command -v "$compiler" >/dev/null || { echo "[  SKIPPED ] $compiler is missing (Debian's g++-aarch64-linux-gnu)"; exit 77; }
[[ $(uname -m) != aarch64 ]] || { echo "[  SKIPPED ] this build is for Arm itself"; exit 77; }

root=$1
shift
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
compile() {
  "$1" -std=c++20 -O1 -fopenmp -Wall -Wextra -Werror "-I$2" -idirafter /usr/include -c "$2/kernels/$3" -o "$4/${3//\//_}.o"
}
export -f compile
printf '%s\n' "$@" | xargs -P 2 -I '{}' bash -c 'compile "$@"' _ "$compiler" "$root" '{}' "$objects"

for kernel in attend decode limits; do  # attend: the backward pass too
  functions=$(aarch64-linux-gnu-nm --demangle "$objects/cpu_$kernel.cc.o" | grep -c 'tessera::cpu::N_NEON::' || true)
  echo "kernels/cpu/$kernel.cc: $functions functions for NEON"
  ((functions > 0))
done
