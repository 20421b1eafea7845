// load [experts], zero before: how many of the pairs go to each expert
extern "C" __global__ void count_loads(const i64* index, int* load, int pairs, int experts) {
    __shared__ int counts[1024];
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) counts[expert] = 0;
    __syncthreads();
    for (int pair = thread(); pair < pairs; pair += gridDim.x * blockDim.x)
        atomicAdd(&counts[index[pair]], 1);
    __syncthreads();
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x)
        if (counts[expert]) atomicAdd(&load[expert], counts[expert]);
}

// order [experts]: by descending load, equal ones by their number. One thread per expert counts the
// experts before it
extern "C" __global__ void order_loads(const int* load, i64* order, int experts) {
    int expert = thread(), before = 0;
    if (expert >= experts) return;
    for (int other = 0; other < experts; other++)
        before += load[other] > load[expert] || (load[other] == load[expert] && other < expert);
    order[before] = expert;
}

// A slot from first[expert] on for each pair, in any order; counts load down to zero. A block first
// counts its own pairs, eight a thread, and takes each expert's slots for all of them at once: few
// waits for a count that others change too
extern "C" __global__ void place_pairs(const i64* index, const i64* first, int* load,
                                       i64* slot_of_pair, i64* pair_of_slot, int pairs,
                                       int experts) {
    __shared__ int counts[1024], firsts[1024];
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) counts[expert] = 0;
    __syncthreads();
    int start = blockIdx.x * blockDim.x * 8 + threadIdx.x, expert_of[8], rank[8];
    _Pragma("unroll") for (int n = 0; n < 8; n++) {
        int pair = start + n * blockDim.x;
        if (pair >= pairs) continue;
        expert_of[n] = index[pair];
        rank[n] = atomicAdd(&counts[expert_of[n]], 1);
    }
    __syncthreads();
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        int count = counts[expert];
        if (count) firsts[expert] = first[expert] + atomicSub(&load[expert], count) - count;
    }
    __syncthreads();
    _Pragma("unroll") for (int n = 0; n < 8; n++) {
        int pair = start + n * blockDim.x;
        if (pair >= pairs) continue;
        int slot = firsts[expert_of[n]] + rank[n];
        slot_of_pair[pair] = slot;
        pair_of_slot[slot] = pair;
    }
}
