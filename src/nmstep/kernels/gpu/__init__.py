"""The kernels in Triton: for GPUs, and on the CPU in Triton's interpreter, which the tests use."""
