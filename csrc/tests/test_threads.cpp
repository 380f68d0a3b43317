// SPDX-License-Identifier: Apache-2.0
#include "check.h"
#include "thread_team.h"

using namespace autoglm;
using namespace testing;

namespace {

TEST(team_runs_every_thread_once) {
    for (const int threads : {1, 2, 3, 8}) {
        ThreadTeam team(threads);
        CHECK(team.size() == threads, "%d threads", team.size());
        std::vector<int> calls(threads, 0);  // not atomic: run must order the rounds
        const int rounds = kSmall ? 100 : 300;
        for (int round = 0; round < rounds; round++) team.run([&](int thread) { calls[thread]++; });
        for (int thread = 0; thread < threads; thread++)
            CHECK(calls[thread] == rounds, "thread %d of %d ran %d times", thread, threads, calls[thread]);
    }
}

// Plain numbers that every thread reads after the barrier and one writes before it: a race, were it none.
TEST(team_barriers_separate_phases) {
    for (const int threads : {2, 3, 16}) {  // 16: more than there are cores
        ThreadTeam team(threads);
        const int phases = threads > 4 ? 30 : kSmall ? 100 : 500;
        std::vector<int> numbers(threads, 0);
        std::atomic<int> wrong{0};
        team.run([&](int thread) {
            for (int phase = 1; phase <= phases; phase++) {
                numbers[thread] = phase;
                team.barrier();
                for (const int number : numbers) wrong += number != phase;
                team.barrier();
            }
        });
        CHECK(wrong == 0, "%d of %d threads", wrong.load(), threads);
    }
}

TEST(team_wakes_after_a_sleep) {
    ThreadTeam team(3);
    for (int round = 0; round < 5; round++) {
        std::atomic<int> calls{0};
        team.run([&](int) { calls++; });
        CHECK(calls == 3, "%d", calls.load());
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
}

#if defined(__linux__)
// The threads that slept may be on any core but one, the caller's when it woke them.
TEST(team_that_slept_stays_off_the_callers_core) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
    ThreadTeam team(2);
    int cores = CPU_COUNT(&allowed);
    for (int round = 0; round < 200 && cores == CPU_COUNT(&allowed); round++) {  // one whose core is busy sleeps later
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        team.run([&](int thread) {
            cpu_set_t mine;
            CPU_ZERO(&mine);
            if (thread == 1 && sched_getaffinity(0, sizeof(mine), &mine) == 0) cores = CPU_COUNT(&mine);
        });
    }
    CHECK(cores == CPU_COUNT(&allowed) - 1, "%d of %d cores", cores, CPU_COUNT(&allowed));
    ThreadTeam more(CPU_COUNT(&allowed) + 1);  // more threads than cores go where they like
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> restricted{0};
    more.run([&](int thread) {
        cpu_set_t mine;
        CPU_ZERO(&mine);
        if (thread > 0 && sched_getaffinity(0, sizeof(mine), &mine) == 0) restricted += CPU_COUNT(&mine) < cores + 1;
    });
    CHECK(restricted == 0, "%d threads", restricted.load());
}
#endif

TEST(teams_come_and_go) {
    for (int round = 0; round < (kSmall ? 20 : 100); round++) {
        ThreadTeam team(1 + round % 4);
        if (round % 3) team.run([&](int) { team.barrier(); });
    }
}

}  // namespace
