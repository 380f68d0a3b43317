// SPDX-License-Identifier: Apache-2.0
// A fixed team of threads that run one function together and meet at barriers within it.
//
// A forward step has hundreds of short phases; waking threads for each would cost more than the phases. So the team
// stays inside one call, waits by spinning, and goes to sleep only when nothing has come for a while.
#pragma once

#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace autoglm {

class ThreadTeam {
public:
    explicit ThreadTeam(int threads);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    int size() const { return static_cast<int>(workers_.size()) + 1; }

    // Call body(thread) on every thread, the caller being thread 0. Returns when all have returned. The body must not
    // throw. One caller at a time.
    void run(const std::function<void(int)>& body);

    // Within run: nobody goes on before all have come.
    void barrier();

private:
    void work(int thread);

    // Linux tends to wake a thread on the core of the one that wakes it, where it then waits for a tick of the clock,
    // milliseconds, while its own core is idle. So threads that sleep are kept off the core that calls.
    void keep_off_callers_core();

    std::vector<std::thread> workers_;
    const std::function<void(int)>* body_ = nullptr;
    std::atomic<uint32_t> round_{0};
    std::atomic<int> unfinished_{0};
    std::atomic<bool> stopping_{false};
    std::atomic<int> asleep_{0};
#if defined(__linux__)
    cpu_set_t allowed_;
    int avoided_ = -1;
#endif
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace autoglm
