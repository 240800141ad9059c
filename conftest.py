"""What of the package cannot be imported here has no doctests; a test file that cannot be imported is an error."""

from importlib.util import find_spec

_NEEDED = {
    "triton": "src/nmstep/kernels/gpu/*",
    "transformers": "src/nmstep/integrations/transformers.py",
    "lightning": "src/nmstep/integrations/lightning.py",
}
collect_ignore_glob = [place for package, place in _NEEDED.items() if not find_spec(package)]
