// CUDA text on a CPU: blocks run one after the other, the threads of a block in turns, each on a stack of its own.
// A thread goes on until it waits: at a barrier for all threads of the block, at a shuffle for those of its warp.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)

struct Place { int x, y, z; };
static Place threadIdx, blockIdx;
using std::max;
using std::min;
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

namespace turns {
enum State { RUNNING, AT_BARRIER, AT_SHUFFLE, DONE };
static constexpr std::size_t STACK = 1 << 16;
static constexpr int WARP = 32;
static ucontext_t scheduler;
static std::vector<ucontext_t> contexts;
static std::vector<State> states;
static std::vector<std::uint64_t> slots[2];  // what threads give to a shuffle; the next shuffle has the other ones
static std::vector<int> turn;
static void (*work)();
static int current;

static void wait(State state) {
    states[current] = state;
    int self = current;
    swapcontext(&contexts[self], &scheduler);
    states[self] = RUNNING;
}

static void start() {
    work();
    states[current] = DONE;
    swapcontext(&contexts[current], &scheduler);
}

static void block(int threads) {
    static std::vector<char> stacks;
    stacks.resize(threads * STACK);
    contexts.assign(threads, {});
    states.assign(threads, RUNNING);
    turn.assign(threads, 0);
    for (auto& slot : slots) slot.assign(threads, 0);
    for (int i = 0; i < threads; i++) {
        getcontext(&contexts[i]);
        contexts[i].uc_stack.ss_sp = &stacks[i * STACK];
        contexts[i].uc_stack.ss_size = STACK;
        makecontext(&contexts[i], start, 0);
    }
    auto all = [&](State state) { return std::count(states.begin(), states.end(), state); };
    while (all(DONE) < threads) {
        bool open = all(DONE) + all(AT_BARRIER) == threads;
        for (current = 0; current < threads; current++) {
            if (states[current] == DONE || (states[current] == AT_BARRIER && !open)) continue;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &contexts[current]);
        }
    }
}

template <class T> T shuffle(T value, int source) {
    int self = current, own = turn[self]++ & 1;
    std::memcpy(&slots[own][self], &value, sizeof value);
    wait(AT_SHUFFLE);
    threadIdx = {self, 0, 0};
    if (source / WARP == self / WARP) std::memcpy(&value, &slots[own][source], sizeof value);
    return value;
}
}  // namespace turns

#define __syncthreads() turns::wait(turns::AT_BARRIER)
#define __activemask() 0xffffffffu
template <class T> T __shfl_down_sync(unsigned, T value, int by, int) {
    return turns::shuffle(value, turns::current + by);
}
template <class T> T __shfl_sync(unsigned, T value, int lane, int) {
    return turns::shuffle(value, turns::current / turns::WARP * turns::WARP + lane % turns::WARP);
}
