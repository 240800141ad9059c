// Work on several threads: those of the OpenMP runtime that torch itself has loaded, so that there is one pool.
#pragma once

#include <cstdint>
#include <functional>

namespace nmstep {

// Calls work(begin, end) for ranges that together are [0, count), on at most so many threads.
void run_parallel(int64_t count, int threads, const std::function<void(int64_t, int64_t)> &work);

// Where the threads come from: "torch" or "own".
const char *thread_pool();

}  // namespace nmstep
