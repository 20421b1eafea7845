// Packed matrices of one shape: NF4 [E, width / 2], scales of blocks of 64, in 8 bits where there
// is a scale of 256 of them
struct Packed {
    const u8* weights;
    const void* absmax;
    const float* scale;
    const float* offset;
    int width;
};

__device__ float scale_of(Packed from, int expert, int block,
                          const float* __restrict__ dynamic_map) {
    int blocks = from.width / 64;
    if (!from.scale) return static_cast<const float*>(from.absmax)[expert * blocks + block];
    int groups = (blocks + 255) / 256;  // the 8-bit scales are kept in whole groups
    u8 code = static_cast<const u8*>(from.absmax)[expert * groups * 256 + block];
    // no fused multiply-add, so that the numbers are bitsandbytes' own
    return __fadd_rn(__fmul_rn(dynamic_map[code], from.scale[expert * groups + block / 256]),
                     from.offset[expert]);
}

// out [experts, first.width + second.width + third.width]; one row of blocks (y) per expert, one
// thread per eight weights
extern "C" __global__ void dequantize(
    const u8* weights, const void* absmax, const float* scale, const float* offset, int width,
    const u8* weights2, const void* absmax2, const float* scale2, const float* offset2, int width2,
    const u8* weights3, const void* absmax3, const float* scale3, const float* offset3, int width3,
    const float* dynamic_map, const i64* order, fp16* out) {
    __shared__ float nf4[16];
    const float code[16] = {
        -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
        -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
        0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
        0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
    if (threadIdx.x < 16) nf4[threadIdx.x] = code[threadIdx.x];
    __syncthreads();
    int eight = thread(), eights = (width + width2 + width3) / 8,
        expert = order ? order[blockIdx.y] : blockIdx.y;
    if (eight >= eights) return;
    Packed from = {weights, absmax, scale, offset, width};
    int place = eight;  // among the eights of `from`
    if (place >= width / 8) {
        place -= width / 8;
        from = {weights2, absmax2, scale2, offset2, width2};
        if (place >= width2 / 8) {
            place -= width2 / 8;
            from = {weights3, absmax3, scale3, offset3, width3};
        }
    }
    unsigned packed =
        reinterpret_cast<const unsigned*>(from.weights)[expert * (from.width / 8) + place];
    float largest = scale_of(from, expert, place / 8, dynamic_map);
    Eight values;
    for (int i = 0; i < 4; i++) {  // a byte has two weights, the first in its upper half
        unsigned byte = packed >> (8 * i) & 255;
        values.at[2 * i] = narrow(nf4[byte >> 4] * largest);
        values.at[2 * i + 1] = narrow(nf4[byte & 15] * largest);
    }
    store(out, blockIdx.y * eights + eight, values);
}
