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

// out [tokens, width] in fp32: the sum of k rows, which index [tokens, k] names, on top of `onto` where there is one; a thread
// eight values
extern "C" __global__ void sum_rows(const fp16* rows, const i64* index, const float* onto, float* out, int tokens, int k,
                                    int width) {
    int eights = width / 8, token = thread() / eights, eight = thread() % eights;
    if (token >= tokens) return;
    Wide sums = {};
    if (onto) sums = load(onto, token * eights + eight);
    for (int j = 0; j < k; j++) {
        Wide values = widened(load(rows, (int)index[token * k + j] * eights + eight));
        for (int i = 0; i < 8; i++) sums.at[i] += values.at[i];
    }
    store(out, token * eights + eight, sums);
}
