"""Masked and diffusion auto-encoders, in JAX and Equinox.

Set `UMD_EQX_TYPECHECK=1` before the import to check the shapes and dtypes of every call with jaxtyping and beartype, as
the tests do. The checks take time during tracing only, not in a compiled step.
"""

import os

if os.environ.get("UMD_EQX_TYPECHECK") == "1":
    from jaxtyping import install_import_hook

    install_import_hook("umd_eqx", "beartype.beartype")
