// SPDX-License-Identifier: Apache-2.0
// A fixed team of threads that run one function together and meet at barriers within it.
//
// A forward step has hundreds of short phases; waking threads for each would cost more than the phases. So the team
// stays inside one call, waits by spinning, and goes to sleep only when nothing has come for a while.
#pragma once

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

    // Whether a thread at a barrier may spin on for a while.
    bool take_patience();

    std::vector<std::thread> workers_;
    const std::function<void(int)>* body_ = nullptr;
    std::atomic<uint32_t> round_{0};
    std::atomic<int> unfinished_{0};
    std::atomic<bool> stopping_{false};
    std::atomic<int> asleep_{0};
    std::atomic<int> patience_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace autoglm
