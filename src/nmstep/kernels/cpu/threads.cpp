#include "threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <dlfcn.h>
#endif

namespace nmstep {
namespace {

using Fork = void (*)(void (*)(void *), void *, unsigned, unsigned);

// The entry by which compiled OpenMP code starts a team, in GCC's runtime and in LLVM's and Intel's alike. Linking an
// OpenMP runtime of our own would start a second pool, and two that wait actively for work slow each other tenfold.
Fork find_fork() {
#ifdef __linux__
    // A handle of torch's library looks through all that it depends on, so this is the runtime that torch uses.
    if (void *torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD))
        return reinterpret_cast<Fork>(dlsym(torch, "GOMP_parallel"));
#endif
    return nullptr;
}

Fork fork_of_torch() {
    static const Fork fork = find_fork();
    return fork;
}

// Ranges are taken one by one by whoever is free.
struct Team {
    const std::function<void(int64_t, int64_t)> &work;
    int64_t count, step;
    std::atomic<int64_t> next{0};
    std::exception_ptr error{};
    std::mutex mutex{};

    // No exception may leave a thread of the team; the first is kept for the caller.
    static void member(void *self) {
        Team &team = *static_cast<Team *>(self);
        try {
            for (int64_t at; (at = team.next.fetch_add(team.step)) < team.count;)
                team.work(at, std::min(at + team.step, team.count));
        } catch (...) {
            const std::lock_guard<std::mutex> lock(team.mutex);
            if (!team.error) team.error = std::current_exception();
        }
    }
};

// Where torch has no OpenMP runtime: threads for this call, as many as the system gives.
void run_on_own_threads(Team &team, int members) {
    std::vector<std::thread> others;
    try {
        for (int i = 1; i < members; ++i) others.emplace_back(&Team::member, &team);
    } catch (const std::system_error &) {
    }
    Team::member(&team);
    for (std::thread &other : others) other.join();
}

}  // namespace

void run_parallel(int64_t count, int threads, const std::function<void(int64_t, int64_t)> &work) {
    const int members = static_cast<int>(std::min<int64_t>(threads, count));
    if (members <= 1) {
        if (count > 0) work(0, count);
        return;
    }
    Team team{work, count, std::max<int64_t>(1, count / (8 * members))};
    if (Fork fork = fork_of_torch())
        fork(&Team::member, &team, static_cast<unsigned>(members), 0);
    else
        run_on_own_threads(team, members);
    if (team.error) std::rethrow_exception(team.error);
}

const char *thread_pool() { return fork_of_torch() ? "torch" : "own"; }

}  // namespace nmstep
