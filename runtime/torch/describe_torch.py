"""Prints, as JSON, what building an extension of this Python's PyTorch needs, or ends with what is missing."""

import json
import os
import sys
import sysconfig

DEBIAN = "python3-torch libtorch-dev pybind11-dev python3-dev"
try:
    import torch
except ImportError as error:
    sys.exit(f"{sys.executable} has no PyTorch ({error}); on Debian: apt-get install {DEBIAN}")

root = os.path.dirname(torch.__file__)
library = os.path.join(root, "lib")
includes = [os.path.join(root, "include"), os.path.join(root, "include", "torch", "csrc", "api", "include"),
            sysconfig.get_paths()["include"]]
if not os.path.exists(os.path.join(library, "libtorch.so")):  # Debian keeps the libraries with all others
    library = os.path.join("/usr/lib", sysconfig.get_config_var("MULTIARCH") or "")
for header, folders in (("torch/extension.h", includes), ("Python.h", includes),
                        ("pybind11/pybind11.h", includes + ["/usr/include"])):
    if not any(os.path.exists(os.path.join(folder, header)) for folder in folders):
        sys.exit(f"{sys.executable} has PyTorch, but there is no {header}; on Debian: apt-get install {DEBIAN}")
# Types pass between extensions only when both were built alike in these; newer releases decide by themselves.
pybind = {f"PYBIND11_{name}": getattr(torch._C, f"_PYBIND11_{name}", None)
          for name in ("COMPILER_TYPE", "STDLIB", "BUILD_ABI")}
version = tuple(int(part) for part in torch.__version__.split(".")[:2])
print(json.dumps({
    "version": torch.__version__,
    "standard": 17 if version < (2, 6) else 20,
    "includes": ":".join(includes),
    "libraries": library,
    "abi": int(torch._C._GLIBCXX_USE_CXX11_ABI),
    "definitions": ";".join(f'{name}="{value}"' for name, value in pybind.items() if value),
    "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
}))
