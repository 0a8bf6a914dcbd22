#!/bin/sh
# keep_ptxas.sh COMPILER ARGUMENT... compiles, and keeps what ptxas says of registers and spills beside the object, as
# OBJECT.ptxas, where tests/unit/kernels/cuda/registers.py finds it.
object=
previous=
for argument; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
if [ -z "$object" ]; then
  exec "$@"
fi
"$@" 2> "$object.stderr"
status=$?
grep -E '^ptxas info|bytes stack frame' "$object.stderr" > "$object.ptxas"
grep -vE '^ptxas info|bytes stack frame' "$object.stderr" >&2
rm -f "$object.stderr"
exit $status
