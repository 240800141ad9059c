"""What of the package cannot be imported here has no doctests; a test file that cannot be imported is an error."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") else ["src/nmstep/kernels/gpu/*"]
