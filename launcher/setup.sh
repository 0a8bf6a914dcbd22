# shellcheck shell=bash
# Installs the Debian packages Tessera is built from, where they are missing. Sourced by quickstart and tests/run.

tessera_packages=(
  g++ cmake ninja-build git python3-minimal
  openmpi-bin libopenmpi-dev libhwloc-dev
  libabsl-dev libhwy-dev libxxhash-dev libdnnl-dev libeigen3-dev
  nlohmann-json3-dev libcli11-dev librandom123-dev
  libgtest-dev libgmock-dev
)
# What tests use besides: a compiler for Arm.
# shellcheck disable=SC2034  # used by tests/run
tessera_test_packages=(g++-aarch64-linux-gnu)
# What the PyTorch door and benchmarks/lm need besides.
# shellcheck disable=SC2034  # used by tests/run
tessera_torch_packages=(python3-torch libtorch-dev pybind11-dev python3-dev python3-tqdm python3-matplotlib)

# tessera_setup [PACKAGE...]: installs these besides.
tessera_setup() {
  if ! command -v dpkg-query >/dev/null; then
    echo "tessera: this is not a Debian system; install the equivalents of: ${tessera_packages[*]}" >&2
    return 4
  fi
  local package missing=()
  for package in "${tessera_packages[@]}" "$@"; do
    [[ $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) == "install ok installed" ]] || missing+=("$package")
  done
  ((${#missing[@]} == 0)) && return 0

  local sudo=()
  if ((EUID != 0)); then
    if ! sudo -n true 2>/dev/null; then
      echo "tessera: packages are missing and this is not root. Run this, then start again:" >&2
      echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
      return 4
    fi
    sudo=(sudo)
  fi
  echo "== installing: ${missing[*]}"
  "${sudo[@]}" apt-get update -qq &&
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}
