// SPDX-License-Identifier: Apache-2.0
#include "thread_team.h"

#if defined(__linux__)
#include <pthread.h>
#endif

namespace autoglm {

namespace {

// Between steps: about 200 microseconds, longer than the caller's work then, shorter than anybody would notice.
constexpr int kIdleSpins = 8000;
// Within a step: longer than phases differ while every thread has its core. Whoever waits longer waits for a thread whose
// core another program holds, and does best to sleep: the system then runs it at once when it is woken, while one that
// keeps spinning or yielding loses its turn.
constexpr int kBarrierSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

ThreadTeam::ThreadTeam(int threads) {
#if defined(__linux__)
    CPU_ZERO(&allowed_);
    if (sched_getaffinity(0, sizeof(allowed_), &allowed_) != 0) CPU_ZERO(&allowed_);
#endif
    for (int thread = 1; thread < threads; thread++) workers_.emplace_back([this, thread] { work(thread); });
}

ThreadTeam::~ThreadTeam() {
    stopping_.store(true, std::memory_order_release);
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void ThreadTeam::run(const std::function<void(int)>& body) {
    if (workers_.empty()) return body(0);
    body_ = &body;
    unfinished_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    if (asleep_.load(std::memory_order_relaxed) > 0) keep_off_callers_core();
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    body(0);
    int left = unfinished_.load(std::memory_order_acquire);
    for (int spins = 0; left != 0; spins++, left = unfinished_.load(std::memory_order_acquire)) {
        if (spins < kBarrierSpins)
            relax();
        else
            unfinished_.wait(left, std::memory_order_acquire);
    }
}

void ThreadTeam::barrier() {
    if (workers_.empty()) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == static_cast<int>(workers_.size())) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        phase_.notify_all();
        return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
        if (spins < kBarrierSpins)
            relax();
        else
            phase_.wait(phase, std::memory_order_acquire);
    }
}

void ThreadTeam::keep_off_callers_core() {
#if defined(__linux__)
    const int core = sched_getcpu();
    if (core < 0 || core >= CPU_SETSIZE || core == avoided_) return;
    if (CPU_COUNT(&allowed_) < size() || !CPU_ISSET(core, &allowed_)) return;
    cpu_set_t others = allowed_;
    CPU_CLR(core, &others);
    for (std::thread& worker : workers_) pthread_setaffinity_np(worker.native_handle(), sizeof(others), &others);
    avoided_ = core;
#endif
}

void ThreadTeam::work(int thread) {
    uint32_t seen = 0;
    while (true) {
        for (int spins = 0; round_.load(std::memory_order_acquire) == seen; spins++) {
            if (spins < kIdleSpins) {
                relax();
                continue;
            }
            asleep_.fetch_add(1, std::memory_order_relaxed);
            round_.wait(seen, std::memory_order_acquire);
            asleep_.fetch_sub(1, std::memory_order_relaxed);
        }
        seen = round_.load(std::memory_order_acquire);
        if (stopping_.load(std::memory_order_acquire)) return;
        (*body_)(thread);
        if (unfinished_.fetch_sub(1, std::memory_order_release) == 1) unfinished_.notify_all();
    }
}

}  // namespace autoglm
