// CUDA's words for a CPU. The threads of a block are fibers of one thread: each runs until it has to
// wait for its warp or its block, and goes on when all of these have come as far.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>
#undef INFINITY
#undef NAN
#define __global__
#define __device__
#define __expf expf  // a name of glibc's own
#define __shared__ static  // one block runs at a time
using std::min;

struct Index { int x, y, z; };
static Index threadIdx, blockIdx, blockDim, gridDim;

const int MOST = 1024, WARP_SIZE = 32, STACK = 64 * 1024;
enum State { READY, AT_WARP, AT_BLOCK, DONE };
static State states[MOST];
static ucontext_t scheduler, fibers[MOST];
static std::vector<char> stacks(MOST * STACK);
static std::function<void()> body;
static int current;
static unsigned slots[MOST];  // what a warp's threads show each other

static void wait_at(State where) {
    states[current] = where;
    swapcontext(&fibers[current], &scheduler);
}
static void __syncthreads() { wait_at(AT_BLOCK); }
static void __syncwarp() { wait_at(AT_WARP); }

template <typename T> T __shfl_xor_sync(unsigned, T value, int distance) {
    memcpy(&slots[current], &value, sizeof value);
    __syncwarp();
    memcpy(&value, &slots[current ^ distance], sizeof value);
    __syncwarp();  // before the next one's values
    return value;
}
static int __any_sync(unsigned, int value) {
    slots[current] = value;
    __syncwarp();
    int found = 0, first = current / WARP_SIZE * WARP_SIZE;
    for (int lane = 0; lane < WARP_SIZE; lane++) found |= slots[first + lane];
    __syncwarp();
    return found;
}
static int atomicAdd(int* at, int value) { return (*at += value) - value; }
static int atomicSub(int* at, int value) { return (*at -= value) + value; }
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static float __fadd_rn(float x, float y) { return x + y; }
static float __fmul_rn(float x, float y) { return x * y; }
static float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static float float_of_half(unsigned short bits) {
    _Float16 x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static unsigned short half_of_float(float value) {
    _Float16 x = value;
    unsigned short bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void run_fiber() {
    body();
    states[current] = DONE;  // and on to uc_link
}

// Lets those go on who have waited for each other: true if there are any
static bool release(int first, int count, State where) {
    bool waits = false;
    for (int i = first; i < first + count; i++) {
        if (states[i] != where && states[i] != DONE) return false;
        waits |= states[i] == where;
    }
    for (int i = first; i < first + count; i++)
        if (states[i] == where) states[i] = READY;
    return waits;
}

static void run_block(int threads) {
    for (int i = 0; i < threads; i++) {
        getcontext(&fibers[i]);
        fibers[i].uc_stack.ss_sp = &stacks[i * STACK];
        fibers[i].uc_stack.ss_size = STACK;
        fibers[i].uc_link = &scheduler;
        makecontext(&fibers[i], run_fiber, 0);
        states[i] = READY;
    }
    bool goes_on = true;
    while (goes_on) {
        for (int i = 0; i < threads; i++) {
            if (states[i] != READY) continue;
            current = threadIdx.x = i;
            swapcontext(&scheduler, &fibers[i]);
        }
        goes_on = release(0, threads, AT_BLOCK);
        for (int first = 0; first < threads; first += WARP_SIZE)
            goes_on |= release(first, WARP_SIZE, AT_WARP);
    }
    if (std::any_of(states, states + threads, [](State state) { return state != DONE; })) {
        fprintf(stderr, "threads of a block wait at different places\n");
        abort();
    }
}

static void run(int blocks, int rows, int threads, std::function<void()> kernel) {
    body = kernel;
    gridDim = {blocks, rows, 1};
    blockDim = {threads, 1, 1};
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < blocks; x++) {
            blockIdx = {x, y, 0};
            run_block(threads);
        }
}
