// CUDA kernels for fp16 on a GPU, compiled together when they are first used (_launch.py); this is
// what they share.
//
// All are bound by memory: where they pass over activations, a thread moves 16 bytes at a time,
// eight values in fp16, computes in fp32, and touches each value once. They need nothing newer than
// a T4 (sm_75) and no header.

typedef unsigned char u8;
typedef unsigned short fp16;
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
// Indices as torch keeps them; counts and places are int, which is faster to divide
typedef long long i64;
struct alignas(16) Eight { fp16 at[8]; };
struct alignas(16) Four { float at[4]; };
struct alignas(16) Wide { float at[8]; };

__device__ float wide(fp16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
__device__ fp16 narrow(float x) {
    fp16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
__device__ Eight load(const fp16* from, int eight) {
    return reinterpret_cast<const Eight*>(from)[eight];
}
__device__ void store(fp16* to, int eight, Eight values) {
    reinterpret_cast<Eight*>(to)[eight] = values;
}
__device__ int thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

__device__ float sum_over(int lanes, float x) {
    for (int step = lanes / 2; step; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}

// Over a block of at most 1,024 threads; the same in all of them
__device__ float sum_over_block(float x) {
    __shared__ float of_warp[32];
    x = sum_over(32, x);
    __syncthreads();  // the last sum has been read
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    return sum_over(32, threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : 0.0f);
}

__device__ Wide load(const float* from, int eight) {
    Wide values;
    reinterpret_cast<Four*>(&values)[0] = reinterpret_cast<const Four*>(from)[2 * eight];
    reinterpret_cast<Four*>(&values)[1] = reinterpret_cast<const Four*>(from)[2 * eight + 1];
    return values;
}
__device__ void store(float* to, int eight, Wide values) {
    reinterpret_cast<Four*>(to)[2 * eight] = reinterpret_cast<Four*>(&values)[0];
    reinterpret_cast<Four*>(to)[2 * eight + 1] = reinterpret_cast<Four*>(&values)[1];
}
__device__ Wide widened(Eight values) {
    Wide out;
    for (int i = 0; i < 8; i++) out.at[i] = wide(values.at[i]);
    return out;
}
__device__ Eight narrowed(Wide values) {
    Eight out;
    for (int i = 0; i < 8; i++) out.at[i] = narrow(values.at[i]);
    return out;
}
