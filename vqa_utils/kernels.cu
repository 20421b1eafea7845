// CUDA kernels for fp16 on a GPU, compiled when they are first used (kernels.py has their callers and says what they compute).
//
// All are bound by memory: a thread moves 16 bytes, eight values in fp16, computes in fp32, and touches each value once.
// They need nothing newer than a T4 (sm_75) and no header.

typedef unsigned char u8;
typedef unsigned short fp16;
typedef long long i64;  // indices as torch keeps them; counts and places are int, which is faster to divide
struct alignas(16) Eight { fp16 at[8]; };
struct alignas(16) Four { float at[4]; };

__device__ float wide(fp16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
__device__ fp16 narrow(float x) { fp16 y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
__device__ Eight load(const fp16* from, int eight) { return reinterpret_cast<const Eight*>(from)[eight]; }
__device__ void store(fp16* to, int eight, Eight values) { reinterpret_cast<Eight*>(to)[eight] = values; }
__device__ int thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

__device__ float sum_over(int lanes, float x) {
    for (int step = lanes / 2; step; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}

// One projection's packed experts: NF4 [E, width / 2], scales of blocks of 64, in 8 bits where there is a scale of 256 of them.
struct Packed { const u8* weights; const void* absmax; const float* scale; const float* offset; int width; };

__device__ float scale_of(Packed from, int expert, int block, const float* __restrict__ dynamic_map) {
    int blocks = from.width / 64;
    if (!from.scale) return static_cast<const float*>(from.absmax)[expert * blocks + block];
    int groups = (blocks + 255) / 256;  // the 8-bit scales are kept in whole groups
    u8 code = static_cast<const u8*>(from.absmax)[expert * groups * 256 + block];
    // no fused multiply-add, so that the numbers are bitsandbytes' own
    return __fadd_rn(__fmul_rn(dynamic_map[code], from.scale[expert * groups + block / 256]), from.offset[expert]);
}

// out [experts, first.width + second.width]; a row of blocks (y) an expert, a thread eight weights
extern "C" __global__ void dequantize(const u8* weights, const void* absmax, const float* scale, const float* offset, int width,
                                      const u8* weights2, const void* absmax2, const float* scale2, const float* offset2,
                                      int width2, const float* dynamic_map, const i64* order, fp16* out) {
    __shared__ float nf4[16];
    const float code[16] = {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
                            -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
                            0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,
                            0.7229568362236023f, 1.0f};
    if (threadIdx.x < 16) nf4[threadIdx.x] = code[threadIdx.x];
    __syncthreads();
    int eight = thread(), eights = (width + width2) / 8, expert = order ? order[blockIdx.y] : blockIdx.y;
    if (eight >= eights) return;
    bool second = eight >= width / 8;
    Packed from = second ? Packed{weights2, absmax2, scale2, offset2, width2} : Packed{weights, absmax, scale, offset, width};
    int place = eight - (second ? width / 8 : 0);
    unsigned packed = reinterpret_cast<const unsigned*>(from.weights)[expert * (from.width / 8) + place];
    float largest = scale_of(from, expert, place / 8, dynamic_map);
    Eight values;
    for (int i = 0; i < 4; i++) {  // a byte has two weights, the first in its upper half
        unsigned byte = packed >> (8 * i) & 255;
        values.at[2 * i] = narrow(nf4[byte >> 4] * largest);
        values.at[2 * i + 1] = narrow(nf4[byte & 15] * largest);
    }
    store(out, blockIdx.y * eights + eight, values);
}

// h [rows, width] = silu(gate) * up * weight, of gate_up [rows, 2 * width]; a thread eight values
extern "C" __global__ void gate(const fp16* gate_up, const float* weights, const i64* pair, fp16* h, int rows, int width) {
    int eights = width / 8, row = thread() / eights, eight = thread() % eights;
    if (row >= rows) return;
    Eight g = load(gate_up, row * 2 * eights + eight), u = load(gate_up, (row * 2 + 1) * eights + eight), out;
    float weight = weights[pair[row]];
    for (int i = 0; i < 8; i++) {
        float x = wide(g.at[i]);
        out.at[i] = narrow(x / (1.0f + __expf(-x)) * wide(u.at[i]) * weight);
    }
    store(h, row * eights + eight, out);
}

// The backward of `gate`, in place of gate_up; back [rows, width] is h's gradient. dots [rows] = <back, silu(gate) * up>, the
// weight's gradient. A warp a row
extern "C" __global__ void gate_backward(fp16* gate_up, const fp16* back, const float* weights, const i64* pair, float* dots,
                                         int rows, int width) {
    int eights = width / 8, row = thread() / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    float weight = weights[pair[row]], dot = 0.0f;
    for (int eight = lane; eight < eights; eight += 32) {
        int first = row * 2 * eights + eight;
        Eight g = load(gate_up, first), u = load(gate_up, first + eights), b = load(back, row * eights + eight);
        for (int i = 0; i < 8; i++) {
            float x = wide(g.at[i]), y = wide(u.at[i]), grad = wide(b.at[i]), s = 1.0f / (1.0f + __expf(-x));
            dot += grad * x * s * y;
            grad *= weight;
            g.at[i] = narrow(grad * y * s * (1.0f + x * (1.0f - s)));
            u.at[i] = narrow(grad * x * s);
        }
        store(gate_up, first, g);
        store(gate_up, first + eights, u);
    }
    dot = sum_over(32, dot);
    if (lane == 0) dots[row] = dot;
}

// out [tokens, width] in fp32: the sum of k rows, which index [tokens, k] names; a thread eight values
extern "C" __global__ void sum_rows(const fp16* rows, const i64* index, float* out, int tokens, int k, int width) {
    int eights = width / 8, token = thread() / eights, eight = thread() % eights;
    if (token >= tokens) return;
    float sums[8] = {};
    for (int j = 0; j < k; j++) {
        Eight values = load(rows, (int)index[token * k + j] * eights + eight);
        for (int i = 0; i < 8; i++) sums[i] += wide(values.at[i]);
    }
    Four* to = reinterpret_cast<Four*>(out) + (token * eights + eight) * 2;
    to[0] = Four{sums[0], sums[1], sums[2], sums[3]};
    to[1] = Four{sums[4], sums[5], sums[6], sums[7]};
}

// load [experts], zero before: how many of the pairs go to each expert
extern "C" __global__ void count_loads(const i64* index, int* load, int pairs, int experts) {
    __shared__ int counts[1024];
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) counts[expert] = 0;
    __syncthreads();
    for (int pair = thread(); pair < pairs; pair += gridDim.x * blockDim.x) atomicAdd(&counts[index[pair]], 1);
    __syncthreads();
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x)
        if (counts[expert]) atomicAdd(&load[expert], counts[expert]);
}

// A slot from first[expert] on for each pair, in any order; counts load down to zero
extern "C" __global__ void place_pairs(const i64* index, const i64* first, int* load, i64* slot_of_pair, i64* pair_of_slot,
                                       i64* token_of_slot, int pairs, int k) {
    int pair = thread();
    if (pair >= pairs) return;
    int expert = index[pair], slot = first[expert] + atomicSub(&load[expert], 1) - 1;
    slot_of_pair[pair] = slot;
    pair_of_slot[slot] = pair;
    token_of_slot[slot] = pair / k;
}

// A head's RMS norm, then its rotation. x [rows, heads, d] with of_row values from row to row, cos and sin [rows, d] with equal
// halves, d = 8 * lanes and lanes a power of two up to 32; a thread eight values, whose partners in the other half are
// `lanes / 2` threads away
struct Head {
    int row, lane;
    Eight x, cos, sin;
    float rstd;
    __device__ Head(const fp16* xs, int of_row, const fp16* coss, const fp16* sins, int count, int heads, int lanes, float eps) {
        int head = min(thread() / lanes, count - 1);  // threads past the end compute again what is there, and store nothing
        row = head / heads;
        lane = threadIdx.x % lanes;
        x = load(xs + row * of_row, head % heads * lanes + lane);
        cos = load(coss, row * lanes + lane);
        sin = load(sins, row * lanes + lane);
        float squares = 0.0f;
        for (int i = 0; i < 8; i++) squares += wide(x.at[i]) * wide(x.at[i]);
        rstd = rsqrtf(sum_over(lanes, squares) / (8 * lanes) + eps);
    }
    // Turned by the angle, or back by it (sign -1)
    __device__ float turned(int i, float value, int lanes, float sign) {
        float partner = __shfl_xor_sync(0xffffffff, value, lanes / 2);
        return value * wide(cos.at[i]) + (lane < lanes / 2 ? -sign : sign) * partner * wide(sin.at[i]);
    }
};

extern "C" __global__ void norm_rotate(const fp16* x, int x_of_row, const float* weight, const fp16* cos, const fp16* sin, fp16* y, int count,
                                       int heads, int lanes, float eps) {
    Head head(x, x_of_row, cos, sin, count, heads, lanes, eps);
    Eight out;
    for (int i = 0; i < 8; i++)
        out.at[i] = narrow(head.turned(i, wide(head.x.at[i]) * head.rstd * weight[head.lane * 8 + i], lanes, 1.0f));
    if (thread() / lanes < count) store(y, thread(), out);
}

// grad [batch, length, heads, d] may lie in any order with d innermost: its strides in values; grad_x in order
extern "C" __global__ void norm_rotate_backward(const fp16* grad, int of_batch, int of_row, int of_head, int length,
                                                const fp16* x, int x_of_row, const float* weight, const fp16* cos, const fp16* sin,
                                                fp16* grad_x, int count, int heads, int lanes, float eps) {
    Head head(x, x_of_row, cos, sin, count, heads, lanes, eps);
    int number = min(thread() / lanes, count - 1) % heads;
    Eight g = load(grad + head.row / length * of_batch + head.row % length * of_row + number * of_head, head.lane);
    float scaled[8], mean = 0.0f;
    for (int i = 0; i < 8; i++) {
        scaled[i] = head.turned(i, wide(g.at[i]), lanes, -1.0f) * weight[head.lane * 8 + i];
        mean += scaled[i] * wide(head.x.at[i]) * head.rstd;
    }
    mean = sum_over(lanes, mean) / (8 * lanes);
    Eight out;
    for (int i = 0; i < 8; i++)
        out.at[i] = narrow(head.rstd * (scaled[i] - wide(head.x.at[i]) * head.rstd * mean));
    if (thread() / lanes < count) store(grad_x, thread(), out);
}
